"""Checks before any job: models, shards and tokenizers of a study against what is on disk."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from id_scaling.errors import IdScalingError, StoreError
from id_scaling.models.modules import request_of, with_layers
from id_scaling.sources.model_checks import check_built, check_model, check_paths_of
from id_scaling.sources.model_config import Architecture, check_request
from id_scaling.sources.models import check_unlike, known_identity
from id_scaling.storage.layout import contexts_path, slug
from id_scaling.storage.records import read_facts, read_record
from id_scaling.study.config import ModelConfig
from id_scaling.study.tokenizer_checks import check_tokenizers
from id_scaling.text.shuffling import NONE

if TYPE_CHECKING:
    from id_scaling.study.study import Study


def check_study(study: Study, is_thorough: bool = False) -> None:
    """Check models and shards against what is on disk, before any job.

    Parameters
    ----------
    is_thorough : bool
        Whether local models are also built, without their weights, which takes seconds for each checkpoint.

    Raises
    ------
    IdScalingError
        A local model, checkpoint or shard is missing; a model whose config is on disk lacks a layer, a module
        or the positions asked for; a tokenizer on disk cannot be read, lacks the token that contexts are to
        start with, makes tokens that a model does not know, or is not the same for all checkpoints of a model.
    """
    for name, dataset in study.datasets.items():
        for subset in dataset.dataset_subset:
            _check_shard(study, name, subset)
    for name, model in study.models.items():
        for checkpoint in model.model_checkpoint:
            _check_model(study, name, model, checkpoint, is_thorough)
    check_tokenizers(study)
    study.summarize_settings()
    study.batch_settings(study.runs[0], product(study.modules, study.estimators))
    if not study.config.allow_identical_checkpoints:
        _check_distinct(study)


def _check_shard(study: Study, name: str, subset: int) -> None:
    """Check a shard, as far as what is on disk tells: that it is there, and has the fields that the study reads.

    What neither its beginning nor its contexts tell is checked where the contexts are cut, before any extraction.
    """
    files = [Path(path) for path in study.shard_files(name, subset) if os.path.isfile(path)]
    dataset, keys, contexts = study.datasets[name], study.group_by(name), _plain_contexts(study, name, subset)
    changed = max((path.stat().st_mtime for path in files), default=0.0)
    # Contexts of a shard that was replaced are cut again.
    cut = {path: made for path, made in contexts.items() if path.is_file() and path.stat().st_mtime >= changed}
    is_text = all(path.suffix == ".txt" for path in files)
    if not keys and (is_text or all(_is_made_with(path, cut.get(path)) for path in contexts)):
        return
    # polars and pyarrow, which take a quarter of a second.
    from id_scaling.study.record_fields import check_records
    from id_scaling.text.documents import check_groups
    from id_scaling.text.readers import Shard

    if files:
        shard, is_strict = Shard(files, dataset.text_column, dataset.id_column), dataset.max_broken_share == 0
        check_records(shard, keys, dataset.max_dataset_size, dataset.dataset_name, is_strict)
    for path, settings in cut.items():
        check_groups(path, keys, settings)


def _plain_contexts(study: Study, name: str, subset: int) -> dict[Path, dict[str, Any]]:
    """Return the plain contexts of a shard, and the settings that they would be cut with now."""
    runs = [replace(run, control=NONE) for run in study.runs if (run.dataset, run.subset) == (name, subset)]
    paths = {contexts_path(Path(study.session), run, study.tokenizer_of(run.model)): run for run in runs}
    return {path: json.loads(study.contexts_settings(run)) for path, run in paths.items()}


def _check_model(study: Study, name: str, model: ModelConfig, checkpoint: str, is_thorough: bool) -> None:
    """Check one checkpoint by its folder, or by what was found when it was fetched from the hub."""
    source, ctx_len = study.model_source(name, checkpoint), max(study.config.ctx_len)
    folder, identity = source.folder(), study.identity_path(name, slug(checkpoint))
    try:
        n_layers = source.n_layers() if folder is None else None
        request = request_of(study.sites(name))
        if folder is not None and (folder / "config.json").is_file():
            headers = check_model(folder, request, ctx_len, model.allow_pickle, has_weights=not source.is_made)
            check = check_built if is_thorough else check_paths_of
            check(folder, request, headers)
            study.model_files(name, slug(checkpoint))
        elif architecture := source.architecture():
            check_request(request, ctx_len, architecture)
        elif fetched := known_identity(identity):
            check_request(request, ctx_len, Architecture(**fetched["architecture"]))
        elif n_layers:
            with_layers(request, n_layers)
    except IdScalingError as error:
        raise type(error)(f"{model.model_name} at {checkpoint}: {error}") from None


def _check_distinct(study: Study) -> None:
    """Check that those checkpoints that were fetched have weights of their own."""
    alike: dict[str, list[Path]] = defaultdict(list)
    for name, model in study.models.items():
        for checkpoint in model.model_checkpoint:
            path = study.identity_path(name, slug(checkpoint))
            if identity := known_identity(path):
                alike[identity["weights_sha256"]].append(path)
    for first, *others in alike.values():
        check_unlike(read_record(first), others)


def _is_made_with(table: Path, settings: Mapping[str, Any] | None) -> bool:
    """Return whether a table says that it was made with some settings; None are those of a table that is not there."""
    if settings is None:
        return False
    try:
        return read_facts(table).get("settings") == settings
    except StoreError:
        return False
