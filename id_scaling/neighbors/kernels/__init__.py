"""The innermost loops over the coordinates of points: compiled for numpy, torch's own functions for torch."""
