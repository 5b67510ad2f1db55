"""A causal language model in memory; imports no file format, no neighbor search and no estimator."""
