"""The ID table of the embedded default against scikit-dimension on the clouds it saved.

`python -m tests.simulations.against_scikit_dimension` extracts the embedded default with its clouds in float32 and
compares every estimate of the default view: each difference must be within 1e-5. The same clouds in float16, as
`save_fp: float16` rounds them, are what scikit-dimension would see of a smaller dump: that difference is printed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import h5py
import joblib
import numpy as np
import polars as pl
import yaml

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


def main() -> int:
    """Compare both precisions; 1 when float32 differs by more than the tolerance."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        run = run_default(Path(folder))
        ours = pl.concat([pl.read_parquet(path) for path in run.glob("ids/*/*.parquet")])
        ours = ours.filter(pl.col("view") == "default")
        worst = {precision: compare(run, ours, precision) for precision in ("float32", "float16")}
    return int(worst["float32"] > TOLERANCE)


def compare(run: Path, ours: pl.DataFrame, precision: str) -> float:
    """Return the worst relative difference to scikit-dimension on the clouds in a precision."""
    jobs = [
        joblib.delayed(by_scikit_dimension)(path, precision)
        for path in sorted([*run.glob("layer_*.h5"), run / "outblock.h5"])
    ]
    theirs = pl.concat(joblib.Parallel(n_jobs=2)(jobs))
    keys = ["layer", "module", "context", "estimator"]
    both = theirs.join(ours, on=keys, how="left", nulls_equal=True, validate="1:1")
    both = both.with_columns((pl.col("value") / pl.col("theirs") - 1).abs().alias("difference"))
    # Below 4 scikit-dimension's optimiser of MiND_ML can stick at its integer start.
    both = both.filter((pl.col("estimator") != "mind_ml") | (pl.col("theirs") >= 4))
    difference = pl.col("difference")
    summary = [pl.len().alias("n"), difference.median().alias("median"), difference.max().alias("worst")]
    print(f"clouds in {precision}: relative difference to scikit-dimension")
    print(both.group_by("estimator").agg(summary).sort("estimator"), flush=True)
    is_complete = both["difference"].is_finite().all() and not both["difference"].null_count()
    return both["difference"].max() if is_complete else float("inf")


def run_default(folder: Path) -> Path:
    """Run the embedded default in `folder` and return the folder of its run."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config["cacheing_config"] |= {"save_cache_tensors": True, "save_fp": "float32"}
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    if (ROOT / "resources").is_dir():
        (folder / "resources").symlink_to(ROOT / "resources")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(folder / "study.yaml"), "--profile", str(ROOT / "profiles" / "local")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return next(folder.glob("results/default/runs/*/*/*/*/*/*"))


def by_scikit_dimension(path: Path, precision: str) -> pl.DataFrame:
    """Return scikit-dimension's estimates of every cloud in a layer file: points 1 on, equal ones once."""
    with warnings.catch_warnings():
        from skdim.id import MLE, MiND_ML, TwoNN

    layer = None if path.stem == "outblock" else int(path.stem.removeprefix("layer_"))
    rows = []
    with h5py.File(path, "r") as file:
        for module, group in file.items():
            for context, cloud in enumerate(group["activations"]):
                points = np.unique(cloud[1:].astype(precision), axis=0).astype(np.float64)
                values = {
                    "mle": MLE().fit_transform(points),
                    "twoNN_f10": TwoNN().fit_transform(points),
                    "mind_ml": MiND_ML(k=20, D=points.shape[1]).fit_transform(points),
                }
                rows += [(layer, module, context, name, float(value)) for name, value in values.items()]
    schema = {"layer": pl.Int64, "module": pl.String, "context": pl.Int64, "estimator": pl.String, "theirs": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


if __name__ == "__main__":
    raise SystemExit(main())
