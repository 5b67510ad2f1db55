"""Documents to contexts; imports no model, no neighbor search and no estimator."""
