"""One run of a model over contexts; imports no source, no text and no estimator."""
