"""In which precision clouds are saved: the one that is asked for, or a wider one for those that it cannot hold."""

from __future__ import annotations

import numpy as np


def exceeds(clouds: np.ndarray, save_fp: str) -> np.ndarray:
    """Return of each cloud whether it has a finite value that a precision would turn infinite: above 65,504 in float16.

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
    """Return clouds in the precision to save, or all in float32 with only those rounded that the precision can hold.

    What is rounded depends on each cloud only, so neither the batch nor the part that a cloud is in changes it.

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
