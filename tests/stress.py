"""Clouds that are hard on distances from a product, shared by tests and benchmarks."""

from __future__ import annotations

import numpy as np


def smooth(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Return n points of a curved ten-dimensional sheet in d coordinates, with noise of 1e-3."""
    rng = np.random.default_rng(seed)
    latent = rng.uniform(-1, 1, (n, 10))
    waves = np.sin(latent @ rng.standard_normal((10, 48)) + rng.uniform(0, 2 * np.pi, 48))
    features = np.concatenate([waves, latent], axis=1)
    return features @ rng.standard_normal((58, d)) / np.sqrt(58) + 1e-3 * rng.standard_normal((n, d))


def constant_coordinate(points: np.ndarray, rng: np.random.Generator) -> None:
    points[:, 3] = 1000


def two_modes(points: np.ndarray, rng: np.random.Generator) -> None:
    points[:, 3] = rng.choice([-1000, 1000], len(points))


def wide_coordinate(points: np.ndarray, rng: np.random.Generator) -> None:
    points[:, 3] = 1000 * rng.standard_normal(len(points))


def coordinate_smooth_in_position(points: np.ndarray, rng: np.random.Generator) -> None:
    points[:, 3] = 1000 * np.sin(2 * np.pi * np.arange(len(points)) / len(points))


def massive_first_token(points: np.ndarray, rng: np.random.Generator) -> None:
    points[0, 5], points[0, 9] = 1000, -1500


def log_normal_norms(points: np.ndarray, rng: np.random.Generator) -> None:
    points *= np.exp(1.5 * rng.standard_normal((len(points), 1)))


def common_mean(points: np.ndarray, rng: np.random.Generator) -> None:
    points += 10


def tight_clusters(points: np.ndarray, rng: np.random.Generator) -> None:
    centres = rng.standard_normal((16, points.shape[1]))
    points[:] = centres[rng.integers(0, 16, len(points))] + 0.004 * rng.standard_normal(points.shape)


def near_duplicates(points: np.ndarray, rng: np.random.Generator) -> None:
    half = len(points) // 2
    offsets = rng.standard_normal((half, points.shape[1]))
    norms = np.linalg.norm(points[:half], axis=1) / np.linalg.norm(offsets, axis=1)
    points[half:] = points[:half] + 1e-3 * norms[:, None] * offsets


STRESSES = [
    constant_coordinate,
    two_modes,
    wide_coordinate,
    coordinate_smooth_in_position,
    massive_first_token,
    log_normal_norms,
    common_mean,
    tight_clusters,
    near_duplicates,
]


def stressed(stress, n: int, d: int, seed: int = 0) -> np.ndarray:
    """Return a smooth cloud under one stress, in float64."""
    points = smooth(n, d, seed)
    stress(points, np.random.default_rng(seed + 1))
    return points
