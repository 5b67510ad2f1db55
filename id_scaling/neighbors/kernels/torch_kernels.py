"""Kernels for torch, on the CPU or a GPU: the functions of `numba_kernels`; results per point are on the host."""

from __future__ import annotations

import numpy as np
import torch

from id_scaling.neighbors.clusters import Shifts
from id_scaling.neighbors.kernels.survey import Survey

# Number of coordinate differences in memory at once: 512 MB on a GPU, 32 MB on a CPU.
HELD_ON_GPU, HELD_ON_CPU = 2**26, 2**22


def in_order(points: torch.Tensor) -> torch.Tensor:
    """Return points with contiguous rows."""
    return points.contiguous()


def widened(points: torch.Tensor) -> torch.Tensor:
    """Return points in float64 if they are float64, else in float32, with contiguous rows."""
    return points.to(torch.float64 if points.dtype == torch.float64 else torch.float32).contiguous()


def means(points: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Return the mean of the finite points of each cluster, in float64; zero for no points.

    Sums differences from a point of the cluster, so the mean of a constant coordinate is exactly its value.
    """
    n_groups, is_finite = int(labels.max(initial=0)) + 1, points.isfinite().all(dim=1)
    groups = torch.from_numpy(labels).to(points.device).long()
    is_member = torch.nn.functional.one_hot(groups, n_groups).double() * is_finite[:, None]
    finite = torch.where(is_finite[:, None], widened(points), 0.0).double()
    origins = finite[is_member.argmax(dim=0)]
    shifted = torch.where(is_finite[:, None], finite - origins[groups], 0.0)
    return _host(origins + (is_member.T @ shifted) / is_member.sum(dim=0).clamp(min=1)[:, None])


def survey(points: torch.Tensor, centres: np.ndarray, labels: np.ndarray, dtype: type, probes: np.ndarray) -> Survey:
    """Return the results of one pass over the coordinates, with centered points in the given dtype."""
    rows, torch_dtype = widened(points), torch.float32 if dtype == np.float32 else torch.float64
    wide = rows.double()
    squared_norms = wide.square().sum(dim=1)
    weights = torch.from_numpy(np.random.default_rng(0).standard_normal(rows.shape[1])).to(rows.device)
    shifted = (
        rows.to(torch_dtype) - torch.from_numpy(centres).to(rows.device, torch_dtype)[torch.from_numpy(labels).long()]
    )
    centred = torch.where(squared_norms.isfinite()[:, None], shifted, 0.0)
    return Survey(
        _host(squared_norms),
        _host(torch.linalg.vecdot(wide, weights)),
        centred,
        _host(centred.double().square().sum(dim=1)),
        _host(centred[torch.from_numpy(probes).to(rows.device)] @ centred.T),
    )


def projections(centred: torch.Tensor, centres: np.ndarray) -> np.ndarray:
    """Return the inner products of rows with all centers, in float64."""
    return _host(centred.double() @ torch.from_numpy(centres).to(centred.device, torch.float64).T)


def gram(centred: torch.Tensor, shifts: Shifts | None = None) -> torch.Tensor:
    """Return all inner products of rows, minus the corrections between clusters."""
    product = centred @ centred.T
    if shifts is None:
        return product
    table = torch.from_numpy(shifts.table).to(product.device)[:, torch.from_numpy(shifts.labels).long()]
    return product.sub_(table + table.T)


def nearest(
    product: torch.Tensor, squared_norms: np.ndarray, counts: np.ndarray, n_nearest: int, further: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return squares (n, n_nearest) and indices of the nearest, ascending, and the squares at further ranks.

    Only rows and columns in `counts` are used. Where there are too few, squares are infinite and indices -1.
    """
    n = len(product)
    norms = torch.from_numpy(squared_norms).to(product.device)
    is_excluded = torch.from_numpy(~counts).to(product.device)
    keys = torch.where(is_excluded, torch.inf, norms / 2).to(product.dtype) - product
    keys.fill_diagonal_(torch.inf)
    keys[is_excluded] = torch.inf
    n_filled = min(n_nearest, n)
    lowest, indices = torch.topk(keys, n_filled, dim=1, largest=False)
    squares = norms[:, None] + norms[indices] - 2 * product.gather(1, indices).double()
    squares, order = torch.where(lowest.isinf(), torch.inf, squares).sort(dim=1)
    indices = torch.where(squares.isinf(), -1, indices.gather(1, order))
    beyond = torch.empty((n, 0))
    if len(further):
        beyond = norms[:, None] + 2.0 * keys.sort(dim=1).values[:, torch.from_numpy(further - 1)].double()
    padded_squares, padded_indices = np.full((n, n_nearest), np.inf), np.full((n, n_nearest), -1, np.int32)
    padded_squares[:, :n_filled], padded_indices[:, :n_filled] = _host(squares), _host(indices)
    return padded_squares, padded_indices, _host(beyond)


def differences(points: torch.Tensor, sources: np.ndarray, targets: np.ndarray, dtype: type) -> np.ndarray:
    """Return squared distances of points `sources` (m,) to points `targets` (m, k), from differences in a dtype."""
    squares = np.empty(targets.shape)
    torch_dtype = torch.float32 if dtype == np.float32 else torch.float64
    max_held = HELD_ON_CPU if points.device.type == "cpu" else HELD_ON_GPU
    step = max(1, max_held // (targets.shape[1] * points.shape[1]))
    for start in range(0, len(sources), step):
        batch = slice(start, start + step)
        source_points = points[torch.from_numpy(sources[batch]).to(points.device).long()].to(torch_dtype)
        target_points = points[torch.from_numpy(targets[batch]).to(points.device).long()].to(torch_dtype)
        squares[batch] = _host((source_points[:, None, :] - target_points).square().sum(dim=2))
    return squares


def gram_sums(product: torch.Tensor, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sum of each row, its sum of squares, and its product with all sums, over rows and columns in use."""
    is_counted = torch.from_numpy(counts).to(product.device)
    wide = torch.where(is_counted[:, None] & is_counted[None, :], product, 0.0).double()
    sums = wide.sum(dim=1)
    return _host(sums), _host(wide.square().sum(dim=1)), _host(wide @ sums)


def n_within(product: torch.Tensor, squared_norms: np.ndarray, counts: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return how many other points are nearer to each point than each of the squared distances, (n_squares, n)."""
    half = torch.from_numpy(np.where(counts, squared_norms / 2, np.inf)).to(product.device)
    keys = half.to(product.dtype)[None, :] - product
    keys.fill_diagonal_(torch.inf)
    limits = [(square / 2 - half).to(product.dtype)[:, None] for square in squares]
    return np.stack([_host((keys < limit).sum(dim=1)) for limit in limits])


def mean_of(points: torch.Tensor, selection: np.ndarray) -> np.ndarray:
    """Return the mean of the selected points, in float64; exact for a constant coordinate."""
    rows = points[torch.from_numpy(selection).to(points.device).long()].double()
    return _host(rows[0] + (rows - rows[0]).mean(dim=0))


def weighted_sum(points: torch.Tensor, weights: np.ndarray) -> np.ndarray:
    """Return the weighted sum of points, in float64; a point of weight zero need not be finite."""
    rows = widened(points)
    weighted = torch.from_numpy(np.flatnonzero(weights)).to(rows.device)
    factors = torch.from_numpy(weights[weights != 0]).to(rows.device, rows.dtype)
    return _host((factors @ rows[weighted]).double())


def submatrix(matrix: torch.Tensor, selection: np.ndarray) -> torch.Tensor:
    """Return the selected rows and columns."""
    index = torch.from_numpy(selection).to(matrix.device)
    return matrix[index][:, index]


def centred_spectrum(gram: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Return the ascending eigenvalues of H G H with H = 1 - 11ᵀ / n, and the eigenvectors, as columns."""
    means = gram.mean(dim=0)
    values, vectors = torch.linalg.eigh(gram - means[:, None] - means[None, :] + means.mean())
    return _host(values), vectors


def turned(points: torch.Tensor) -> torch.Tensor | None:
    """Return points (n, d) rotated into n coordinates, with the same products; None if they are linearly dependent."""
    factor, failed_at = torch.linalg.cholesky_ex(points @ points.T)
    return None if failed_at else factor


def weighted_squares(matrix: torch.Tensor, weights: np.ndarray) -> np.ndarray:
    """Return the sum of squares of each row, weighted by column."""
    return _host(matrix.square() @ torch.from_numpy(weights).to(matrix.device, matrix.dtype))


def _host(values: torch.Tensor) -> np.ndarray:
    """Return a tensor's values as numpy, on the host."""
    return values.cpu().numpy()
