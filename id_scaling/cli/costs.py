"""What a run takes, as far as it can be known before it starts: contexts, bytes, FLOPs, jobs, room.

All of it follows from the configuration, from the shape of the model and from the shards that are on this machine.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import compress
from math import ceil
from pathlib import Path
from typing import NamedTuple

from id_scaling.cli.model_size import Shape, Weights, shape_in, weights_of
from id_scaling.errors import IdScalingError, StoreError
from id_scaling.models.layers import layers_of
from id_scaling.neighbors.cloud_kinds import CONTEXT, clouds_of_run, view_of_run
from id_scaling.neighbors.statistics import names_of
from id_scaling.neighbors.views import View, default_ranks, views_at
from id_scaling.sources import bundled
from id_scaling.storage.layer_writer import RANKS_A_CHUNK
from id_scaling.storage.layout import Run, file_of, run_folder
from id_scaling.storage.records import read_table
from id_scaling.study.config import CacheingConfig
from id_scaling.study.jobs import RULES, Job, jobs_of, plain_contexts_job
from id_scaling.study.study import Study
from id_scaling.text.shuffling import NONE

# As an estimate takes of a cloud of a run, whose view scales it or replaces it by a null.
PRODUCTS_OF_A_SCALED_VIEW = 5
# What text is about, where there is only its size: bytes of a token, and how often compressed text is as long.
BYTES_A_TOKEN, INFLATION = 4, 3
# Measured on whole files: what HDF5 adds, what tokens.h5 and tokens.parquet hold of a token, tables of IDs.
BYTES_A_FILE, BYTES_A_DATASET, BYTES_A_CHUNK = 7_000, 400, 36
BYTES_OF_SCORES, BYTES_A_TABLE, BYTES_A_ROW = 18, 7_500, 77
BYTES_OF_FLOAT = {"float16": 2, "float32": 4, "float64": 8}
# FLOPs by n² d: the inner products of a cloud are n² d multiply-adds, and the rest is taken to cost as much.
SEARCH = 4
CUT = "set max_contexts, or cut them first: snakemake … --until chunk_dataset"


class Contexts(NamedTuple):
    """How many contexts a shard gives, and what the number is: exact, `≤` an upper bound, `≈` an estimate."""

    number: int
    sign: str = ""


@dataclass(frozen=True)
class Cost:
    """What one run takes.

    Parameters
    ----------
    disk, largest : float
        Bytes of its files, and of the largest layer file, which stands beside its parts for a moment.
    forward, search : float
        FLOPs of forward passes, and of the search for neighbors.
    n_tokens : int
        Tokens of the clouds that each estimator estimates.
    of_run : float
        Multiplications of products of all contexts of a run, which each estimator makes of clouds of these.
    is_done : bool
        Whether the run is extracted already.
    """

    disk: float
    largest: float
    forward: float
    search: float
    n_tokens: int
    of_run: float
    is_done: bool


def contexts_of(study: Study, run: Run) -> Contexts | None:
    """Return how many contexts a run has, as far as can be known; None where nothing tells.

    A control has as many as `none`, which are cut first.
    """
    run, dataset, subset = replace(run, control=NONE), run.dataset, run.subset
    (path,) = plain_contexts_job(study, run).outputs
    settings = json.loads(study.contexts_settings(run))
    with contextlib.suppress(StoreError):  # what is not there, or not as it was written, will be cut anew
        table, facts = read_table(path, ["context"])
        if facts["settings"] == settings:
            return Contexts(len(table))
    of_dataset = study.datasets[dataset]
    n_documents, n_chunks = of_dataset.max_dataset_size, of_dataset.filter_and_chunk_config.max_chunks_from_a_document
    bounds = [n_documents * n_chunks if n_documents and n_chunks else None, of_dataset.max_contexts]
    found = [Contexts(bound, "≤") for bound in bounds if bound]
    files = [path for path in map(Path, study.shard_files(dataset, subset)) if path.is_file()]
    if files:
        n_bytes = sum(path.stat().st_size * (1 if path.suffix in (".jsonl", ".txt") else INFLATION) for path in files)
        found.append(Contexts(max(1, n_bytes // BYTES_A_TOKEN // run.ctx_len), "≈"))
    return min(found, default=None)


def cost_of(study: Study, run: Run, shape: Shape, n_contexts: int) -> Cost:
    """Return what one run takes."""
    n_tokens, cacheing = run.ctx_len, study.config.cacheing_config
    files = layer_bytes(study, shape, n_contexts, n_tokens)
    n_clouds = sum(_n_clouds(cacheing, site.layer, shape.n_layers, n_contexts) for site in shape.widths)
    disk = sum(files.values()) + n_contexts * n_tokens * BYTES_OF_SCORES
    disk += len(study.estimators) * (len(study.modules) * BYTES_A_TABLE + n_clouds * BYTES_A_ROW)
    widths = sum(width * _n_products(cacheing, site.layer, shape.n_layers) for site, width in shape.widths.items())
    search = SEARCH * n_contexts * n_tokens**2 * widths
    is_done = (run_folder(Path(study.session), run) / "manifest.json").is_file()
    forward = n_contexts * shape.forward[n_tokens]
    of_run = (
        sum(width * _n_searches(cacheing, site.layer, shape.n_layers) for site, width in shape.widths.items())
        * n_contexts**2
    )
    return Cost(disk, max(files.values()), forward, search, n_clouds * n_tokens, of_run, is_done)


def _views_at(cacheing: CacheingConfig, layer: int | None, n_layers: int) -> list[View]:
    """Return the views of a site of a model with so many layers, each draw being one."""
    drawn = cacheing.drawn_views
    layers = {name: layers_of(some, n_layers, f"views.{name}.layers") for name, some in cacheing.view_layers.items()}
    return [drawn[name] for name in views_at(layer, drawn, layers)]


def _n_products(cacheing: CacheingConfig, layer: int | None, n_layers: int) -> int:
    """Return how many products of its points a cloud takes at a site."""
    return 1 + sum(not view.is_as_made for view in _views_at(cacheing, layer, n_layers))


def _n_searches(cacheing: CacheingConfig, layer: int | None, n_layers: int) -> int:
    """Return how many products an estimator makes of clouds of all contexts of a run at a site."""
    views = [view for view in _views_at(cacheing, layer, n_layers) if view_of_run(view)]
    n_products = sum(1 if view.is_as_made else PRODUCTS_OF_A_SCALED_VIEW for view in views)
    return n_products * len(clouds_of_run(cacheing.clouds, cacheing.save_positions))


def _n_clouds(cacheing: CacheingConfig, layer: int | None, n_layers: int, n_contexts: int) -> int:
    """Return how many clouds an estimator estimates at a site."""
    views = _views_at(cacheing, layer, n_layers)
    of_contexts = n_contexts * len(views) if CONTEXT in cacheing.clouds else 0
    n_views = sum(view_of_run(view) is not None for view in views)
    return of_contexts + n_views * len(clouds_of_run(cacheing.clouds, cacheing.save_positions))


def layer_bytes(study: Study, shape: Shape, n_contexts: int, n_tokens: int) -> dict[str, float]:
    """Return the bytes of each layer file of a run, as `id_scaling.storage.layer_writer` lays them out."""
    cacheing = study.config.cacheing_config
    n_points = n_tokens - min(view.skip_first_tokens for view in cacheing.views.values())
    ranks = default_ranks(n_points) if cacheing.neighbor_ranks == "default" else cacheing.neighbor_ranks
    # Ranks are stored in whole chunks.
    n_chunks = ceil(len(ranks) / RANKS_A_CHUNK)
    n_stored = n_chunks * min(len(ranks), RANKS_A_CHUNK)
    of_view = 8 * n_tokens + 4 * n_tokens * n_stored + 8 * len(names_of(cacheing.cloud_statistics))
    of_view += (2 + n_chunks) * BYTES_A_CHUNK
    n_vectors, of_cloud = cacheing.save_mean_tensors + len(cacheing.save_positions), 0
    if cacheing.save_cache_tensors:
        of_cloud = n_tokens * BYTES_OF_FLOAT[cacheing.save_fp]
    files: dict[str, float] = defaultdict(lambda: BYTES_A_FILE)
    for site, width in shape.widths.items():
        n_views = len(_views_at(cacheing, site.layer, shape.n_layers))
        of_context = n_views * of_view + n_vectors * (4 * width + BYTES_A_CHUNK) + width * of_cloud
        files[file_of(site.layer)] += n_contexts * of_context + (3 * n_views + n_vectors) * BYTES_A_DATASET
    return files


def count_jobs(study: Study) -> dict[str, int]:
    """Return how many jobs of each rule a study has, when nothing of it is made yet but bundled models and texts."""
    jobs = (job for job in jobs_of(study) if job.stage and not _is_prepared(study, job))
    return dict(Counter(job.rule for job in jobs))


def _is_prepared(study: Study, job: Job) -> bool:
    """Return whether a job makes what comes with the project, and that is there, or not needed any more."""
    if job.stage != "prepare":
        return False
    is_studied = any(dataset.dataset_name in bundled.DATASETS for dataset in study.config.datasets)
    is_needed = job.rule != "prepare_dataset" or is_studied or bool(models_to_train(study))
    return not is_needed or all(output.is_file() for output in job.outputs)


def models_to_train(study: Study) -> list[str]:
    """Return the models of a study that are trained before anything else."""
    names = [model.model_name for model in study.config.models]
    return [name for name in names if name in bundled.TRAINED and not bundled.is_prepared(name)]


def n_submissions(study: Study) -> int:
    """Return how many submissions the Slurm profile makes of a study.

    The estimates of a run are one, however many tables they are; what fetches runs where Snakemake does.
    """
    jobs = (job for job in jobs_of(study) if not RULES[job.rule].is_local and not _is_prepared(study, job))
    return sum(1 for _ in jobs)


def shortages(to_come: Iterable[tuple[Path, float]]) -> list[tuple[Path, float, float]]:
    """Return (folder, bytes to come, bytes free) for each file system without the room for what is to come to it."""
    needed: dict[int, float] = defaultdict(float)
    folders: dict[int, Path] = {}
    for path, n_bytes in to_come:
        whole = path.expanduser().absolute()
        folder = next(parent for parent in (whole, *whole.parents) if parent.exists())
        folders.setdefault(folder.stat().st_dev, folder)
        needed[folder.stat().st_dev] += n_bytes
    places = [(folder, needed[device], shutil.disk_usage(folder).free) for device, folder in folders.items()]
    return [place for place in places if place[1] > place[2]]


# ---- all runs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The runs of one model; what is None is unknown, and `unknown` says why.

    Parameters
    ----------
    name : str
        `model_name` of the configuration.
    lengths : list of int
        Tokens of a context of each run.
    contexts : list of Contexts or None
        Of each run.
    shape : Shape or None
        What the model is.
    costs : list of Cost or None
        What each run takes.
    weights : Weights
        What of its weights is still to come.
    unknown : str
        What cannot be known, and what to do.
    """

    name: str
    lengths: list[int]
    contexts: list[Contexts | None]
    shape: Shape | None = None
    costs: list[Cost] | None = None
    weights: Weights | None = None
    unknown: str = ""

    def by_length(self) -> list[Row]:
        """Return a row for each length of the runs."""
        return [self._of([one == ctx_len for one in self.lengths]) for ctx_len in dict.fromkeys(self.lengths)]

    def _of(self, is_in: list[bool]) -> Row:
        """Return the row of some of the runs."""
        lengths, contexts = list(compress(self.lengths, is_in)), list(compress(self.contexts, is_in))
        costs = None if self.costs is None else list(compress(self.costs, is_in))
        return replace(self, lengths=lengths, contexts=contexts, costs=costs)


def rows_of(study: Study) -> list[Row]:
    """Return what the runs of each model take."""
    plain = {_key(study, run): run for run in study.runs}
    counted = {key: contexts_of(study, run) for key, run in plain.items()}
    return [_row(study, model, counted) for model in study.models]


def _key(study: Study, run: Run) -> Path:
    """Return the plain contexts of a run, which say how many it has."""
    return plain_contexts_job(study, run).outputs[0]


def _row(study: Study, model: str, counted: dict[Path, Contexts | None]) -> Row:
    """Return what the runs of one model take."""
    name, runs = study.models[model].model_name, [run for run in study.runs if run.model == model]
    lengths, contexts = [run.ctx_len for run in runs], [counted[_key(study, run)] for run in runs]
    try:
        shape = shape_in(study, model)
    except IdScalingError as error:
        return Row(name, lengths, contexts, unknown=str(error))
    weights = weights_of(study, model, shape)
    counts = [one.number for one in contexts if one is not None]
    if len(counts) < len(contexts):
        unknown = f"{name}: how many contexts its shards give; {CUT}"
        return Row(name, lengths, contexts, shape, weights=weights, unknown=unknown)
    costs = [cost_of(study, run, shape, number) for run, number in zip(runs, counts, strict=True)]
    return Row(name, lengths, contexts, shape, costs, weights)
