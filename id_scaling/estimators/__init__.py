"""One estimator per file, and their shared code; uses no files and no model, imports no torch."""
