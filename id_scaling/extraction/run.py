"""One run of a model over contexts: parts, resuming after a kill, publishing. `extraction.compute` has the numbers."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import torch
from threadpoolctl import threadpool_limits

from id_scaling.errors import Ended, InputError, ResourceError, StoreError, made_anew
from id_scaling.extraction.compute import Extraction, ModelRun
from id_scaling.models.loading import pick_device, pick_dtype
from id_scaling.models.modules import Site
from id_scaling.runtime.atomic_files import digest, sha256, sweep
from id_scaling.runtime.locks import Lease, leased
from id_scaling.runtime.logging import LOG, Progress
from id_scaling.storage.layer_writer import (
    TOKENS_FILE,
    PartWriter,
    assemble,
    attribute,
    drop_parts,
    is_made_with,
    is_whole,
    plan_parts,
)
from id_scaling.storage.layout import WEIGHTS_RECORD, file_of, weights_record
from id_scaling.storage.records import key_of, read_record, read_table, write_record, write_table


@dataclass(frozen=True)
class Execution:
    """How a job runs, which is not to change what it writes.

    It does not on CPUs: extractions with batches of other sizes and on other numbers of threads are compared bit by bit
    in the tests. On a GPU this has not been shown: products of other sizes may use other kernels, and round otherwise.
    """

    batch_size: int = 1
    n_threads: int = 1
    use_accelerator: bool = False


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
    contexts, identity, made_from = _read_inputs(inputs, extraction.is_own_tokenizer)
    device = pick_device()
    made_of = {
        "settings": dict(settings),
        "made_from": made_from,
        **made_from,
        "device": device.type,
        "dtype": str(pick_dtype(extraction.dtype, device, identity["n_parameters"])).removeprefix("torch."),
        "versions": versions(),
    }
    made_of["digest"] = digest(made_of)
    with leased(folder) as lease:
        is_extracted = _is_extracted(folder, made_of["digest"])
        parts_folder = None if is_extracted else _fresh_parts(folder, made_of["digest"])
        try:
            if is_extracted:
                LOG.info("all %d contexts already extracted in %s", len(contexts), folder)
            else:
                facts = _extract_parts(extraction, contexts, identity, parts_folder, execution, lease)
                _assemble(folder, parts_folder, len(contexts), made_of, facts)
            lease.check()
            # The commit is no part of the digest: another one with the same weights and config makes the same.
            _publish(folder, contexts, {**made_of, "commit": identity["commit"]})
        except Ended:
            n_left = 0 if is_extracted else sum(map(len, _missing(parts_folder, len(contexts))))
            n_kept = len(contexts) - n_left
            LOG.info("ended with %d of %d contexts extracted; the next run goes on there", n_kept, len(contexts))
            raise
        drop_parts(folder / "parts")
        sweep(folder)


def _is_extracted(folder: Path, key: str) -> bool:
    """Return whether a folder holds every file of the extraction `key`, each whole.

    `tokens.h5` is assembled last and names the sites. So an extraction that ended after Snakemake was killed, whose
    declared outputs Snakemake then removed, is published again and not computed again.
    """
    tokens = folder / TOKENS_FILE
    if not is_made_with(tokens, {"digest": key}):
        return False
    files = [folder / name for name in _layer_files(attribute(tokens, "facts")["sites"])]
    return all(is_made_with(path, {"digest": key}) and is_whole(path) for path in [*files, tokens])


def _layer_files(sites: list[list[Any]]) -> list[str]:
    """Return the names of the files that hold some sites."""
    return list(dict.fromkeys(file_of(layer) for _, layer, _ in sites))


def versions() -> dict[str, str]:
    """Return the versions of what computes the numbers."""
    names = ("numpy", "torch", "transformers", "h5py", "id_scaling")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _read_inputs(inputs: Inputs, is_own_tokenizer: bool) -> tuple[pl.DataFrame, dict[str, Any], dict[str, str]]:
    """Return the contexts, the model's identity with a folder of weights, and what both are, as hashes.

    They are known to belong together.
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
    largest, n_tokens = contexts["input_ids"].explode().max(), identity["architecture"]["vocab_size"]
    if largest >= n_tokens:
        raise InputError(f"{name}: found token {largest} in {inputs.contexts}, but the model knows {n_tokens} tokens")
    made_from = {
        "contexts": key_of(made_with),
        "weights": identity["weights_sha256"],
        "config": identity["config_sha256"],
    }
    return contexts, identity, made_from


def _fresh_parts(folder: Path, key: str) -> Path:
    """Return the folder for parts made of `key`, free of what was made of anything else."""
    parts = folder / "parts"
    for stale in parts.glob("*") if parts.is_dir() else ():
        if stale.name != key:
            drop_parts(stale)
    sweep(folder)
    if not (parts / key).is_dir():
        for old in (*folder.glob("layer_*.h5"), *folder.glob("outblock.h5"), *folder.glob(TOKENS_FILE)):
            old.unlink()
    (parts / key).mkdir(parents=True, exist_ok=True)
    sweep(parts / key)
    return parts / key


def _extract_parts(
    extraction: Extraction,
    contexts: pl.DataFrame,
    identity: dict[str, Any],
    parts_folder: Path,
    execution: Execution,
    lease: Lease,
) -> dict[str, Any]:
    """Compute the parts that are missing; return the facts of the model as it ran."""
    flat = contexts["input_ids"].explode().to_numpy().astype(np.int64)
    input_ids = torch.from_numpy(flat.reshape(len(contexts), -1))
    missing = _missing(parts_folder, len(input_ids))
    n_done = len(input_ids) - sum(map(len, missing))
    LOG.info("%d contexts of %d tokens, %d already extracted", *input_ids.shape, n_done)
    facts_path = parts_folder / "facts.json"
    if not missing and facts_path.is_file():
        with contextlib.suppress(StoreError):  # damaged: the model is loaded again to say them
            return read_record(facts_path)
    run = ModelRun(extraction, identity, execution.n_threads, execution.use_accelerator, input_ids)
    write_record(facts_path, run.facts())
    progress = Progress("extracted context", len(input_ids), n_done)
    _extract_missing(run, input_ids, missing, parts_folder, execution.batch_size, progress, lease)
    return read_record(facts_path)


def _extract_missing(
    run: ModelRun, input_ids, parts, parts_folder: Path, batch_size: int, progress, lease: Lease
) -> None:
    """Compute parts one by one, each complete or absent."""
    for part in parts:
        # Clouds are shared out over processes, one BLAS thread each: how many there are does not change a number.
        with threadpool_limits(1, user_api="blas"), PartWriter(_part(parts_folder, part), len(part)) as writer:
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
            lease.check()


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


def _assemble(
    folder: Path, parts_folder: Path, n_contexts: int, made_of: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Put the layer files together from the parts, and last the tokens, which carry the facts of the whole."""
    parts = [_part(parts_folder, part) for part in plan_parts(n_contexts)]
    names = _layer_files(facts["sites"])
    for name in (*names, TOKENS_FILE):
        assemble(parts, name, folder / name, {**made_of, "facts": facts})
    LOG.info("wrote %d layer files, %d sites in %s", len(names), len(facts["sites"]), folder)


def _publish(folder: Path, contexts: pl.DataFrame, made_of: dict[str, Any]) -> None:
    """Write what the workflow declares: the tokens as a table, and last the manifest, which names every layer file."""
    facts = attribute(folder / TOKENS_FILE, "facts")
    _write_tokens(folder / TOKENS_FILE, contexts, folder / "tokens.parquet", made_of["digest"])
    paths = [folder / name for name in (*_layer_files(facts["sites"]), TOKENS_FILE)]
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}
    manifest = {**made_of, **facts, "n_contexts": len(contexts), "files": files}
    write_record(folder / "manifest.json", manifest)


def _write_tokens(source: Path, contexts: pl.DataFrame, output: Path, key: str) -> None:
    """Write one row per token: `context`, `position`, `token`, `loss`, `entropy` in nats."""
    with h5py.File(source, "r") as file:
        scores = {name: file[name][:].ravel() for name in ("loss", "entropy")}
    n_contexts, n_tokens = len(contexts), len(contexts["input_ids"][0])
    table = pl.DataFrame(
        {
            "context": np.repeat(np.arange(n_contexts), n_tokens),
            "position": np.tile(np.arange(n_tokens), n_contexts),
            "token": contexts["input_ids"].explode(),
            **scores,
        }
    )
    write_table(output, table, {"digest": key})
