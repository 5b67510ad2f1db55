"""One estimator a file, and what they share; knows no file and no model, imports no torch."""
