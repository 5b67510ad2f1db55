"""Coverage of the summary's intervals, whose unit is the document: how often they hold what they are of.

`python -m tests.simulations.coverage_of_intervals` simulates 40,000 means of documents of one to eight contexts, half
of whose variance is their document's, that is normal or skewed: intervals of 95 per cent must cover in the shares that
docs/statistics.md states. Of 4,000 partial rank correlations, given two covariates and the source, they must in 92 to
97 per cent; and where value and score have nothing in common but those, p-values of 5 per cent and less may be 6 per
cent of all, three standard errors more than 5; there documents have two or four contexts.
"""

from __future__ import annotations

import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from id_scaling.results.uncertainty import mean_interval, rank_correlation
from tests.unit.results.test_uncertainty import clustered, confounded, sizes_of, truth

N_MEANS, N_CORRELATIONS, N_A_SIZE = 40_000, 4_000, 100
# Three standard errors of a share of so many are less than half a point.
CHANCE = 0.5
# Documents and sources.
OF_CORRELATIONS = [(20, 1), (30, 4), (50, 4)]
R = 0.5
N_PROCESSES = 2


def skewed(random: np.random.Generator, sizes: np.ndarray, n_rows: int) -> np.ndarray:
    """Return rows of contexts of variance 1, half of which is of exponentially distributed documents."""
    of_document = np.repeat(random.standard_exponential((n_rows, len(sizes))) - 1, sizes, axis=1)
    return 0.5**0.5 * (of_document + random.standard_normal(of_document.shape))


DRAW = {"normal": clustered, "skewed": skewed}


def said() -> dict[tuple[str, int], float]:
    """Return what docs/statistics.md states of the mean, in per cent, by distribution and number of documents."""
    text = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()
    (numbers,) = re.findall(r"^\| documents \|(.*)\|$", text, flags=re.MULTILINE)
    found = {}
    for name in DRAW:
        (row,) = re.findall(rf"^\| {name} documents .*$", text, flags=re.MULTILINE)
        shares = re.findall(r"([\d.]+) %", row)
        found |= {(name, int(n)): float(share) for n, share in zip(numbers.split("|"), shares, strict=True)}
    return found


def of_mean(distribution: str, n_documents: int) -> float:
    """Return in how many per cent an interval of the mean holds 0, which it is."""
    random, n_covered = np.random.default_rng(n_documents), 0
    for _ in range(N_MEANS // N_A_SIZE):
        sizes = sizes_of(random, n_documents)
        low, high = mean_interval(DRAW[distribution](random, sizes, N_A_SIZE), sizes)
        n_covered += ((low <= 0) & (high >= 0)).sum()
    return 100 * n_covered / N_MEANS


def of_correlation(n_documents: int, n_sources: int, r: float) -> tuple[float, float]:
    """Return in how many per cent an interval of a partial correlation holds it, and p is 5 % at most."""
    random, expected = np.random.default_rng(n_documents), truth(n_sources, r)
    covered, rejected = [], []
    for number in range(N_CORRELATIONS):
        if number % N_A_SIZE == 0:
            sizes = sizes_of(random, n_documents) if r else np.resize([4, 4, 4, 4, 2, 2, 2, 2], n_documents)
        value, *given = confounded(random, sizes, n_sources, r)
        _, (low,), (high,), (p,) = rank_correlation(value[None], *given)
        covered.append(low <= expected <= high)
        rejected.append(p <= 0.05)
    return 100 * np.mean(covered), 100 * np.mean(rejected)


def main() -> int:
    """Print the coverages; 1 when one is out of bounds."""
    outside, expected = 0, said()
    with ProcessPoolExecutor(N_PROCESSES) as pool:
        means = {of: pool.submit(of_mean, *of) for of in expected}
        given = [(*of, r) for of in OF_CORRELATIONS for r in (R, 0.0)]
        correlations = {of: pool.submit(of_correlation, *of) for of in given}
        for (name, n), found in means.items():
            print(f"mean, {name}, {n} documents: {found.result():.1f} %, docs/statistics.md says {expected[name, n]}")
            outside += abs(found.result() - expected[name, n]) > CHANCE
        for (n, n_sources, r), found in correlations.items():
            covered, rejected = found.result()
            what = f"partial correlation, r = {r}, {n} documents, {n_sources} sources"
            print(f"{what}: {covered:.1f} %, p ≤ .05 in {rejected:.1f} %")
            outside += not 92 <= covered <= 97 or (r == 0 and rejected > 6)
    print(f"{outside} out of bounds")
    return int(outside > 0)


if __name__ == "__main__":
    raise SystemExit(main())
