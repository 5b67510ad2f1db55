"""How fast and how right the three estimators of the default study are, beside scikit-dimension and the bound.

`python -m tests.benchmarks.estimators [--rounds N] [--widths D …] [--without-model]` runs one process on each core, one
BLAS thread each, all at once. In each round of a process, one after another:

- three calls of scikit-dimension on a cloud of float16 rows;
- one neighbor search of scikit-learn, shared, with the three formulas on top;
- ours: `estimate_batch` on float16 rows, per cloud;
- the bound: one symmetric product in float32, the fastest of numpy's, scipy's and torch's, and the same in float64;
- ours from stored neighbors, reading them from HDF5 included, per cloud.

Printed are medians over rounds and processes, the ratios of medians, the share of points that needed more than
float32, and the worst relative difference of an ID to that from direct float64 differences of coordinates.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.texts import prepare

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
N, WIDTHS = 1024, (576, 2048, 4096)
NAMES = ("mle", "twoNN_f10", "mind_ml")
BATCH = 16


def main() -> None:
    """Run a worker on each core and print what they measured."""
    arguments = parser().parse_args()
    if arguments.worker:
        json.dump(measure(arguments), sys.stdout)
        return
    if not arguments.without_model:
        prepare()  # once, before the workers
    command = [sys.executable, "-m", "tests.benchmarks.estimators", "--worker", *sys.argv[1:]]
    environment = {**os.environ, **ONE_THREAD}
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(os.cpu_count() or 1)]
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        sys.exit("a worker failed")
    show([json.loads(output) for output in outputs])


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    result = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    result.add_argument("--rounds", type=int, default=15, help="rounds for the smooth clouds; others have three")
    result.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="numbers of coordinates")
    result.add_argument("--without-model", action="store_true", help="leave out the sites of SmolLM2")
    result.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return result


def measure(arguments: argparse.Namespace) -> list[dict]:
    """Return what one process measures: a row for each cloud."""
    warnings.simplefilter("ignore")
    rows = []
    for d in arguments.widths:
        bound = Bound(d)
        for name, points in clouds(d):
            is_smooth = name == "smooth"
            rows.append(
                {
                    "set": f"d = {d}",
                    "cloud": name,
                    **timed(points, bound, arguments.rounds if is_smooth else 3, is_smooth),
                }
            )
    if not arguments.without_model:
        bound = Bound(576)
        for name, points in sites_of_smollm2():
            rows.append({"set": "SmolLM2", "cloud": name, **timed(points.astype(np.float16), bound, 3, False)})
    return rows


def clouds(d: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the smooth cloud and each stressed one, rows in float16."""
    from tests.stress import STRESSES, smooth, stressed

    yield "smooth", smooth(N, d).astype(np.float16)
    for stress in STRESSES:
        yield stress.__name__, stressed(stress, N, d).astype(np.float16)


def sites_of_smollm2() -> Iterator[tuple[str, np.ndarray]]:
    """Yield the cloud of one context at each block, attention, MLP and at the final norm of the embedded model."""
    import torch

    from id_scaling.models.loading import load_model, watching
    from id_scaling.models.modules import SiteRequest, resolve_sites
    from tests.benchmarks.texts import context, model_folder

    folder = model_folder()
    model = load_model(folder, torch.float32, torch.device("cpu"), use_accelerator=False)
    request = SiteRequest(layers=None, inblock=("block", "attn", "mlp"), outblock=("unemb",), mapping=None)
    sites = resolve_sites(request, model.config.model_type, model.config.num_hidden_layers)
    found: dict[str, np.ndarray] = {}
    with (
        torch.inference_mode(),
        watching(model, sites, lambda site, x: found.update({repr(site): x[0].numpy().copy()})),
    ):
        model.base_model(torch.from_numpy(context(folder, N))[None])
    yield from found.items()


class Bound:
    """The float32 and float64 symmetric products of one width, the fastest library's of each."""

    def __init__(self, d: int) -> None:
        import numpy as np
        import torch
        from scipy.linalg.blas import dsyrk, ssyrk

        torch.set_num_threads(1)
        narrow = np.random.default_rng(0).standard_normal((N, d)).astype(np.float32)
        wide = narrow.astype(np.float64)
        tensor = torch.from_numpy(narrow)
        contenders = (
            lambda: narrow @ narrow.T,
            lambda: ssyrk(1.0, narrow.T, trans=1),
            lambda: tensor @ tensor.T,
        )
        self.narrow = min(contenders, key=lambda call: min(seconds(call) for _ in range(3)))
        self.wide = lambda: dsyrk(1.0, wide.T, trans=1)


def timed(points: np.ndarray, bound: Bound, rounds: int, has_rivals: bool) -> dict:
    """Return medians in milliseconds per cloud, accuracy, and the share of points that needed more than float32."""
    from id_scaling.estimators.arrays import estimate_batch

    batch = np.stack([points] * BATCH)
    contenders: dict[str, Callable] = {
        "bound": bound.narrow,
        "float64_product": bound.wide,
        "ours": lambda: estimate_batch(batch, NAMES),
    }
    if has_rivals:
        contenders |= {"skdim": lambda: by_skdim(points), "shared": lambda: by_shared_search(points)}
    per_call = {"ours": BATCH}
    with tempfile.TemporaryDirectory() as folder:
        if has_rivals:
            contenders["stored"] = Stored(Path(folder), points).estimate
            per_call["stored"] = Stored.N_CLOUDS
        for call in contenders.values():
            call()
        times = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, call in contenders.items():
                times[name].append(1e3 * seconds(call) / per_call.get(name, 1))
    return {"times": times, "error": error(points), "share": share_of_more(points)}


def seconds(call: Callable) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def by_skdim(points: np.ndarray) -> list[float]:
    """Return the three IDs by three calls of scikit-dimension, as one would write them."""
    import skdim.id

    return [
        skdim.id.MLE().fit_transform(points),
        skdim.id.TwoNN().fit_transform(points),
        skdim.id.MiND_ML(D=100).fit_transform(points),
    ]


def by_shared_search(points: np.ndarray) -> tuple[float, ...]:
    """Return the three IDs by one neighbor search of scikit-learn and the formulas."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=21).fit(points)
    return formulas(search.kneighbors()[0])


def formulas(distances: np.ndarray) -> tuple[float, float, float]:
    """Return MLE, TwoNN and MiND_ML of ascending distances (n, 21), written down once more."""
    from scipy.optimize import brentq

    n = len(distances)
    log = np.log(distances / distances[:, :1])
    mle = np.mean(19 / (log[:, 19:20] - log[:, :19]).sum(axis=1))
    kept = n * 90 // 100
    x, y = np.sort(log[:, 1])[:kept], -np.log1p(-np.arange(1, kept + 1) / n)
    a = log[:, 20]
    score = lambda d: n / d - a.sum() + 19 * (a / np.expm1(np.minimum(a * d, 700.0))).sum()  # noqa: E731
    mind = brentq(score, n / a.sum(), 20 * n / a.sum(), xtol=1e-13, rtol=1e-14)
    return mle, (x * y).sum() / (x * x).sum(), mind


class Stored:
    """Neighbors of some clouds in a layer file, as extraction leaves them."""

    N_CLOUDS = 32

    def __init__(self, folder: Path, points: np.ndarray) -> None:
        import numpy as np

        from id_scaling.models.modules import Site
        from id_scaling.neighbors.find import find_neighbors
        from id_scaling.neighbors.views import View, default_ranks
        from id_scaling.storage.layer_writer import assemble, writing_part

        ranks = default_ranks(N)
        found = find_neighbors(points, [View(0)], ranks)[0]
        arrays = {
            "v/r1": found.r1,
            "v/log_ratio": found.log_ratio.astype(np.float32),
            "v/statistics": np.array(list(found.statistics.values())),
        }
        with writing_part(folder / "part", self.N_CLOUDS) as writer:
            for row in range(self.N_CLOUDS):
                writer.write_site(Site("block", 0, ""), row, {name: one[None] for name, one in arrays.items()})
        self.path = folder / "layer_00.h5"
        files = {self.path.name: assemble([folder / "part"], self.path.name, self.path, {})}
        self.manifest = {"ranks": ranks, "statistics": list(found.statistics), "files": files}

    def estimate(self) -> None:
        """Estimate each cloud by each estimator, each reading anew as jobs do."""
        from id_scaling.estimators.apply import estimate_from_neighbors
        from id_scaling.estimators.registry import get_estimator
        from id_scaling.storage.layer_reader import read_neighbors, reading

        for name in NAMES:
            estimator = get_estimator(name)
            with reading(self.path, self.manifest) as file:
                neighbors = read_neighbors(file, "block/v", self.manifest, range(self.N_CLOUDS), estimator.ranks)
            estimate_from_neighbors(estimator, neighbors)


def error(points: np.ndarray) -> float:
    """Return the worst relative difference of the three IDs to those from direct float64 differences."""
    from scipy.spatial.distance import cdist

    from id_scaling import estimate

    found = estimate(points, NAMES)
    rows = np.unique(points.astype(np.float64) + 0.0, axis=0)
    squares = cdist(rows, rows, "sqeuclidean")  # differences of coordinates, one pair after the other
    np.fill_diagonal(squares, np.inf)
    distances = np.sqrt(np.sort(squares, axis=1)[:, :21])
    return max(abs(found[name].value / value - 1) for name, value in zip(NAMES, formulas(distances), strict=True))


def share_of_more(points: np.ndarray) -> float:
    """Return the share of points whose distances needed more than a float32 product."""
    from id_scaling.neighbors.points import prepare_points
    from id_scaling.neighbors.search import find_nearest

    cloud = prepare_points(points)
    selection = np.unique(cloud.first)
    found = find_nearest(cloud, selection, 21, np.empty(0, dtype=int))
    return 1.0 if "float64" in str(found.centred.gram.dtype) else found.n_again / len(selection)


def show(outputs: list[list[dict]]) -> None:
    """Print the rows of all processes as tables."""
    rows = []
    for same in zip(*outputs, strict=True):
        times = {name: np.concatenate([one["times"][name] for one in same]) for name in same[0]["times"]}
        rows.append({**same[0], "times": {name: float(np.median(values)) for name, values in times.items()}})
    print(f"{len(outputs)} processes at once, one BLAS thread each; milliseconds per cloud of {N} points, medians\n")
    header = ("cloud", "bound", "f64/bound", "ours", "ours/bound", "more than f32", "worst ID error")
    for title in dict.fromkeys(row["set"] for row in rows):
        table = [row for row in rows if row["set"] == title]
        print(f"{title}\n  {header[0]:32}" + "".join(f"{word:>15}" for word in header[1:]))
        shown = table if title != "SmolLM2" else []
        for row in shown:
            print(line(row["cloud"], row))
        if not shown:
            for word, pick in (("median of sites", np.median), ("worst of sites", np.max)):
                print(line(f"{word} ({len(table)})", combined(table, pick)))
        for row in table:
            if "skdim" in row["times"]:
                print(against_rivals(row["times"]))
        print()


def combined(table: list[dict], pick: Callable) -> dict:
    """Return a row with one figure of many rows in each place."""
    names = table[0]["times"]
    ratio = pick([row["times"]["ours"] / row["times"]["bound"] for row in table])
    times = {name: float(pick([row["times"][name] for row in table])) for name in names}
    times["ours"] = ratio * times["bound"]
    return {"times": times, "share": pick([r["share"] for r in table]), "error": pick([r["error"] for r in table])}


def line(name: str, row: dict) -> str:
    """Return one line of a table."""
    times = row["times"]
    ratios = times["float64_product"] / times["bound"], times["ours"] / times["bound"]
    return (
        f"  {name:32}{times['bound']:15.1f}{ratios[0]:15.2f}{times['ours']:15.1f}{ratios[1]:15.2f}"
        f"{row['share']:15.3f}{row['error']:15.1e}"
    )


def against_rivals(times: dict[str, float]) -> str:
    """Return the lines about other programs."""
    return (
        f"  three scikit-dimension calls {times['skdim']:.0f} ms: {times['skdim'] / times['ours']:.1f} x ours, "
        f"{times['skdim'] / times['stored']:.0f} x ours from stored neighbors ({times['stored']:.2f} ms)\n"
        f"  one shared scikit-learn search {times['shared']:.0f} ms: {times['shared'] / times['ours']:.1f} x ours"
    )


if __name__ == "__main__":
    main()
