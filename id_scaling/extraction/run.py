"""One run of a model over contexts: parts, resuming after a kill, publishing. `extraction.compute` has the numbers."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from threadpoolctl import threadpool_limits

from id_scaling.errors import Ended, InputError, ResourceError, StoreError, made_anew
from id_scaling.extraction.compute import Extraction, ModelRun
from id_scaling.models.loading import pick_device, pick_dtype
from id_scaling.models.modules import Site
from id_scaling.runtime.atomic_files import digest, sweep
from id_scaling.runtime.locks import Lease, leased
from id_scaling.runtime.logging import LOG, Progress
from id_scaling.storage.context_hashes import recipe_of
from id_scaling.storage.layer_writer import (
    TOKENS_FILE,
    DamagedPartError,
    PartWriter,
    assemble,
    drop_parts,
    drop_pieces,
    find_damage,
    is_as_recorded,
    plan_parts,
    read_tokens,
    writing_part,
)
from id_scaling.storage.layout import ASSEMBLED, LAYOUT_VERSION, WEIGHTS_RECORD, file_of, weights_record
from id_scaling.storage.progress import write_progress
from id_scaling.storage.records import key_of, read_record, read_table, write_record, write_table

# A part found damaged is computed again; a disk on which that happens so often is not one to go on with.
MOST_DAMAGED = 3


@dataclass(frozen=True)
class Execution:
    """How a job runs, and what it refuses, which is not to change what it writes.

    Contexts that must have been made with the checkpoint's own tokenizer are refused otherwise.
    It does not on CPUs: extractions with batches of other sizes and on other numbers of threads are compared bit by bit
    in the tests. On a GPU this has not been shown: products of other sizes may use other kernels, and round otherwise.
    """

    batch_size: int = 1
    n_threads: int = 1
    use_accelerator: bool = False
    is_own_tokenizer: bool = True


@dataclass(frozen=True)
class Inputs:
    """The contexts, the model's identity, and the folder that holds its weights; None where they are not here yet."""

    contexts: Path
    identity: Path
    weights: Path | None


def extract(
    extraction: Extraction,
    inputs: Inputs,
    settings: Mapping[str, Any],
    manifest_path: Path,
    execution: Execution,
) -> None:
    """Extract one run into the folder of `manifest_path`, going on where a killed extraction stopped.

    Writes `layer_*.h5`, `outblock.h5` and `tokens.parquet`, and last the manifest, which names them all.

    Raises
    ------
    InputError
        The checkpoint's tokenizer is not the one the contexts were made with.
    """
    folder = manifest_path.parent
    contexts, identity, made_from, noted = _read_inputs(inputs, execution.is_own_tokenizer)
    device = pick_device()
    made_of: dict[str, Any] = {
        "layout": LAYOUT_VERSION,
        "settings": dict(settings),
        "made_from": made_from,
        **made_from,
        "device": device.type,
        "dtype": str(pick_dtype(extraction.dtype, device, identity["n_parameters"])).removeprefix("torch."),
        "versions": versions(),
    }
    made_of["digest"] = digest(made_of)
    with leased(folder) as lease:
        assembled = _read_assembled(folder, made_of["digest"])
        is_extracted = _is_complete(assembled)
        parts_folder = None if is_extracted else _fresh_parts(folder, made_of["digest"])
        try:
            if parts_folder is None:
                LOG.info("all %d contexts already extracted in %s", len(contexts), folder)
            else:
                job = _Job(extraction, contexts, identity, folder, parts_folder, execution, lease)
                assembled = _extract_and_assemble(job, made_of)
            lease.check()
            _publish(folder, contexts, {**made_of, **noted}, assembled)
        except Ended:
            n_left = 0 if parts_folder is None else sum(len(part) for part in _missing(parts_folder, len(contexts)))
            n_kept = len(contexts) - n_left
            LOG.info("ended with %d of %d contexts extracted; the next run goes on there", n_kept, len(contexts))
            raise
        drop_parts(folder / "parts")
        sweep(folder)


@dataclass(frozen=True)
class _Job:
    """What one run is computed from, and where it is put."""

    extraction: Extraction
    contexts: pl.DataFrame
    identity: dict[str, Any]
    folder: Path
    parts_folder: Path
    execution: Execution
    lease: Lease


def _extract_and_assemble(job: _Job, made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the parts that are missing and put them together; a part that is found damaged is computed again."""
    for _ in range(MOST_DAMAGED):
        assembled = _read_assembled(job.folder, made_of["digest"])
        _drop_damaged(job.parts_folder, len(job.contexts), assembled["files"])
        facts = _extract_parts(job)
        try:
            return _assemble(job, {**made_of, "facts": facts}, assembled["files"])
        except DamagedPartError as error:
            LOG.warning("%s while it was waiting to be assembled", error)
    raise StoreError(
        f"{job.parts_folder}: parts were damaged {MOST_DAMAGED} times between their writing and their reading; look at "
        "the disk, or choose another session_path, and run again"
    )


def _read_assembled(folder: Path, key: str) -> dict[str, Any]:
    """Return the facts of the extraction `key`, and its assembled files that are there to the last bit.

    So an extraction that ended after Snakemake was killed, whose declared outputs Snakemake then removed, is published
    again and not computed again.
    """
    path = folder / ASSEMBLED
    nothing: dict[str, Any] = {"digest": key, "facts": None, "files": {}}
    try:
        record = read_record(path) if path.exists() else nothing
    except StoreError as error:
        LOG.warning("%s", str(error).partition("; ")[0])
        return nothing
    if record["digest"] != key:
        return nothing
    whole = {name: entry for name, entry in record["files"].items() if is_as_recorded(folder / name, entry)}
    for name in record["files"].keys() - whole.keys():
        LOG.warning("%s: not there, or not as it was written: extracted again", folder / name)
    return {**record, "files": whole}


def _is_complete(assembled: Mapping[str, Any]) -> bool:
    """Return whether every file of an extraction is assembled."""
    facts, files = assembled["facts"], assembled["files"]
    return facts is not None and {*_layer_files(facts["sites"]), TOKENS_FILE} <= files.keys()


def _drop_damaged(parts_folder: Path, n_contexts: int, assembled: Mapping[str, Any]) -> None:
    """Remove the parts that are not as they were written."""
    for part in plan_parts(n_contexts):
        path = _part(parts_folder, part)
        if path.exists() and (damage := find_damage(path, without=assembled.keys())):
            LOG.warning("%s: damaged (%s): its %d contexts are computed again", path, damage, len(part))
            drop_parts(path)


def _layer_files(sites: list[list[Any]]) -> list[str]:
    """Return the names of the files that hold some sites."""
    return list(dict.fromkeys(file_of(layer) for _, layer, _ in sites))


def versions() -> dict[str, str]:
    """Return the versions of what computes the numbers."""
    names = ("numpy", "torch", "transformers", "h5py", "id_scaling")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _read_inputs(
    inputs: Inputs, is_own_tokenizer: bool
) -> tuple[pl.DataFrame, dict[str, Any], dict[str, str], dict[str, str | None]]:
    """Return the contexts, the model's identity with a folder of weights, and what both are, as hashes.

    They are known to belong together. Last comes what they in turn were made from. It is noted, and no part of the
    digest: contexts cut otherwise that have the same tokens, another commit with the same weights, make the same.
    """
    (contexts, made_with), identity = read_table(inputs.contexts, ["input_ids"]), read_record(inputs.identity)
    name = f"{identity['model_name']} at {identity['checkpoint']}"
    if is_own_tokenizer and made_with["tokenizer_sha256"] != identity["tokenizer_sha256"]:
        raise InputError(
            f"{name}: its tokenizer is not the one that {inputs.contexts} was tokenised with; study it in a session of "
            "its own, or name the tokenizer to use in model_config.tokenizer"
        )
    again = made_anew(inputs.weights or inputs.identity)
    if inputs.weights is None:
        raise InputError(f"{name}: its weights are on the hub, and none are given; `fetch-weights` brings them")
    if identity["path"] is None:
        record = inputs.weights / WEIGHTS_RECORD
        if not record.is_file() or read_record(record) != weights_record(identity):
            raise InputError(f"{name}: {inputs.weights} holds other weights than its identity says; {again}")
    # Where they are now: a session may have been moved since.
    identity["path"] = str(inputs.weights)
    lacking = [one for one in ("config.json", *identity["weights"]) if not (Path(identity["path"]) / one).is_file()]
    if lacking:
        raise InputError(f"{name}: {identity['path']}/{lacking[0]} is not there; {again}")
    largest = cast("int", contexts["input_ids"].explode().max())
    n_tokens = identity["architecture"]["vocab_size"]
    if largest >= n_tokens:
        raise InputError(f"{name}: found token {largest} in {inputs.contexts}, but the model knows {n_tokens} tokens")
    made_from = {
        "contexts": made_with["tokens_sha256"],
        "weights": identity["weights_sha256"],
        "config": identity["config_sha256"],
    }
    noted = {
        "contexts_key": key_of(made_with),
        "contexts_recipe": recipe_of(made_with),
        "source_sha256": identity["source_sha256"],
        "commit": identity["commit"],
    }
    return contexts, identity, made_from, noted


def _fresh_parts(folder: Path, key: str) -> Path:
    """Return the folder for parts made of `key`, free of what was made of anything else."""
    parts = folder / "parts"
    for stale in parts.glob("*") if parts.is_dir() else ():
        if stale.name != key:
            drop_parts(stale)
    sweep(folder)
    if not (parts / key).is_dir():
        for pattern in ("layer_*.h5", "outblock.h5", TOKENS_FILE, ASSEMBLED):
            for old in folder.glob(pattern):
                old.unlink()
    (parts / key).mkdir(parents=True, exist_ok=True)
    sweep(parts / key)
    return parts / key


def _extract_parts(job: _Job) -> dict[str, Any]:
    """Compute the parts that are missing; return the facts of the model as it ran."""
    flat = job.contexts["input_ids"].explode().to_numpy().astype(np.int64)
    input_ids = torch.from_numpy(flat.reshape(len(job.contexts), -1))
    missing = _missing(job.parts_folder, len(input_ids))
    n_done = len(input_ids) - sum(map(len, missing))
    LOG.info("%d contexts of %d tokens, %d already extracted", *input_ids.shape, n_done)
    note = partial(write_progress, job.parts_folder, len(input_ids))
    note(n_done, None)
    facts_path = job.parts_folder / "facts.json"
    if not missing and facts_path.is_file():
        with contextlib.suppress(StoreError):  # damaged: the model is loaded again to say them
            return read_record(facts_path)
    run = ModelRun(job.extraction, job.identity, job.execution.n_threads, job.execution.use_accelerator, input_ids)
    facts = run.facts()
    write_record(facts_path, facts)
    _extract_missing(run, input_ids, missing, job, Progress("extracted context", len(input_ids), n_done, note))
    return facts


def _extract_missing(run: ModelRun, input_ids: torch.Tensor, parts: list[range], job: _Job, progress: Progress) -> None:
    """Compute parts one by one, each complete or absent."""
    batch_size = job.execution.batch_size
    for part in parts:
        # Clouds are shared out over processes, one BLAS thread each: how many there are does not change a number.
        with (
            threadpool_limits(1, user_api="blas"),
            writing_part(_part(job.parts_folder, part), len(part)) as writer,
        ):
            first = 0
            while first < len(part):
                rows = part[first : first + batch_size]
                LOG.debug("forward pass over contexts %d to %d", rows[0], rows[-1])
                try:
                    scores = run.extract_batch(input_ids[rows.start : rows.stop], partial(_write_site, writer, first))
                except torch.OutOfMemoryError as error:
                    batch_size = _halved(len(rows), error)
                    continue
                writer.write_tokens(first, scores)
                first += len(rows)
                progress.step(len(rows))
            job.lease.check()


def _write_site(writer: PartWriter, first: int, site: Site, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays of one site, from context `first` of the part on."""
    writer.write_site(site, first, arrays)


def _halved(batch_size: int, error: torch.OutOfMemoryError) -> int:
    """Return half of a batch that a GPU has no memory for."""
    words = str(error).split(". ")[0]
    if batch_size == 1:
        raise ResourceError(
            f"one context does not fit in the GPU's memory ({words}); use_accelerator: true spreads the model over "
            "several GPUs and the host, dtype: bfloat16 halves it, and a shorter ctx_len takes less"
        ) from error
    half = batch_size // 2
    LOG.warning("%d contexts at once do not fit in the GPU's memory (%s): on with %d", batch_size, words, half)
    torch.cuda.empty_cache()
    return half


def _part(parts_folder: Path, part: range) -> Path:
    """Return the folder of a part."""
    return parts_folder / f"contexts_{part.start:07d}"


def _missing(parts_folder: Path, n_contexts: int) -> list[range]:
    """Return the parts that are not there yet."""
    return [part for part in plan_parts(n_contexts) if not _part(parts_folder, part).is_dir()]


def _assemble(job: _Job, made_of: Mapping[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    """Put the layer files together from the parts, and last the tokens; return the record of all of them."""
    facts = made_of["facts"]
    parts = [_part(job.parts_folder, part) for part in plan_parts(len(job.contexts))]
    names = _layer_files(facts["sites"])
    record = {"digest": made_of["digest"], "facts": facts, "files": dict(files)}
    for name in (*names, TOKENS_FILE):
        if name not in record["files"]:
            record["files"][name] = assemble(parts, name, job.folder / name, dict(made_of))
            write_record(job.folder / ASSEMBLED, record)
        drop_pieces(parts, name)
    LOG.info("wrote %d layer files, %d sites in %s", len(names), len(facts["sites"]), job.folder)
    return record


def _publish(folder: Path, contexts: pl.DataFrame, made_of: Mapping[str, Any], assembled: Mapping[str, Any]) -> None:
    """Write what the workflow declares: the tokens as a table, and last the manifest, which names every layer file."""
    _write_tokens(folder / TOKENS_FILE, contexts, folder / "tokens.parquet", made_of["digest"])
    manifest = {**made_of, **assembled["facts"], "n_contexts": len(contexts), "files": assembled["files"]}
    write_record(folder / "manifest.json", manifest)


def _write_tokens(source: Path, contexts: pl.DataFrame, output: Path, key: str) -> None:
    """Write one row per token: `context`, `position`, `token`, `loss`, `entropy` in nats.

    The first token of a context is not predicted, so its scores are null. A score that came out of the model as no
    number stays NaN: a mean over it is to be none, too.
    """
    of_tokens = read_tokens(source)
    scores = {name: of_tokens[name].ravel() for name in ("loss", "entropy")}
    n_contexts, n_tokens = len(contexts), len(contexts["input_ids"][0])
    table = pl.DataFrame(
        {
            "context": np.repeat(np.arange(n_contexts), n_tokens),
            "position": np.tile(np.arange(n_tokens), n_contexts),
            "token": contexts["input_ids"].explode(),
            **scores,
        }
    )
    table = table.with_columns(pl.when(pl.col("position") > 0).then(pl.col(name)).alias(name) for name in scores)
    write_table(output, table, {"digest": key})
