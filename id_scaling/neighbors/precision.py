"""Precision of saved clouds: the configured one, or a wider one if a cloud exceeds its range."""

from __future__ import annotations

import numpy as np


def exceeds(clouds: np.ndarray, save_fp: str) -> np.ndarray:
    """Return which clouds have a finite value that becomes infinite in a precision: above 65,504 in float16.

    Parameters
    ----------
    clouds : (clouds, …) array
    save_fp : str

    Returns
    -------
    (clouds,) bool array

    Examples
    --------
    >>> exceeds(np.array([[1.0], [70_000.0]]), "float16").tolist()
    [False, True]
    """
    with np.errstate(over="ignore"):
        is_lost = np.isfinite(clouds) & ~np.isfinite(clouds.astype(save_fp))
    return is_lost.reshape(len(clouds), -1).any(axis=1)


def rounded(clouds: np.ndarray, save_fp: str) -> np.ndarray:
    """Return clouds in the precision to save, or all in float32 if one exceeds it: then the other clouds are rounded.

    Rounding depends on each cloud only, so neither its batch nor its part changes its values.

    Examples
    --------
    >>> rounded(np.array([[1.0001], [70_000.0]]), "float16").tolist()
    [[1.0], [70000.0]]
    """
    with np.errstate(over="ignore"):
        narrow = clouds.astype(save_fp)
    is_wide = exceeds(clouds, save_fp)
    if not is_wide.any():
        return narrow
    saved = narrow.astype(np.promote_types(save_fp, np.float32))
    saved[is_wide] = clouds[is_wide]
    return saved
