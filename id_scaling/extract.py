"""One run: a forward pass over its contexts, the neighbors of every site, the loss of every token.

Each site's activations are reduced to neighbor distances as the forward pass leaves it, on the device, so
no more than one site of one batch is held. Everything is computed from the activations as the model
made them; only a saved copy is rounded to `save_fp`.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import torch
from threadpoolctl import threadpool_limits

from id_scaling.errors import Ended, InputError, ResourceError, StoreError, made_anew
from id_scaling.files import digest, sha256, sweep
from id_scaling.kernels import kernels_of
from id_scaling.lease import Lease, leased
from id_scaling.logs import LOG, Progress
from id_scaling.meaning import check_meaning
from id_scaling.models import (
    LossHead,
    last_hidden,
    load_model,
    n_embedding_parameters,
    pick_device,
    pick_dtype,
    watching,
)
from id_scaling.neighbors import Neighbors
from id_scaling.paths import WEIGHTS_RECORD, file_of, weights_record
from id_scaling.sealed import read_record, read_table, write_record, write_table
from id_scaling.searchers import Searchers, on_host
from id_scaling.sites import Site, SiteRequest, check_paths, resolve_mapping, resolve_sites
from id_scaling.statistics import names_of
from id_scaling.store import (
    TOKENS_FILE,
    PartWriter,
    assemble,
    attribute,
    drop_parts,
    is_made_with,
    is_whole,
    plan_parts,
)
from id_scaling.views import View, default_ranks, views_at

# The neighbors of one cloud under each view.
OfViews = dict[str, Neighbors]


@dataclass(frozen=True)
class Extraction:
    """What an extraction computes and stores.

    Parameters
    ----------
    request : SiteRequest
        Where activations are read, and which views are made at some layers alone.
    views : mapping of str to View
        Under which views neighbors are sought, by name.
    ranks : tuple of int, or None
        Neighbor ranks stored; None for the default ladder.
    groups : tuple of str
        Groups of cloud statistics stored.
    save_clouds, save_means : bool
        Whether the whole manifold, and its centre, are stored.
    save_fp : str
        Precision of saved clouds.
    dtype : str
        Precision of the weights; `auto` is float32 on a CPU and bfloat16 on a GPU.
    is_own_tokenizer : bool
        Whether the contexts must have been made with the checkpoint's own tokenizer.
    positions : tuple of int
        Positions whose tokens are stored, in float32.
    """

    request: SiteRequest
    views: Mapping[str, View]
    ranks: tuple[int, ...] | None
    groups: tuple[str, ...]
    save_clouds: bool
    save_means: bool
    save_fp: str
    dtype: str
    is_own_tokenizer: bool = True
    positions: tuple[int, ...] = ()


@dataclass(frozen=True)
class Execution:
    """How a job runs, which cannot change what it writes."""

    batch_size: int = 1
    n_threads: int = 1
    use_accelerator: bool = False


@dataclass(frozen=True)
class Inputs:
    """The contexts, the model's identity, and its weights where the identity names no folder that holds them."""

    contexts: Path
    identity: Path
    weights: Path | None = None


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
    contexts, identity = _read_inputs(inputs, extraction.is_own_tokenizer)
    device = pick_device()
    made_of = {
        "settings": dict(settings),
        "contexts": sha256(inputs.contexts),
        "weights": identity["weights_sha256"],
        "config": identity["config_sha256"],
        "device": device.type,
        "dtype": str(pick_dtype(extraction.dtype, device)).removeprefix("torch."),
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


def _read_inputs(inputs: Inputs, is_own_tokenizer: bool) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the contexts and the model's identity with a folder of weights, once they are known to belong together."""
    (contexts, made_with), identity = read_table(inputs.contexts, ["input_ids"]), read_record(inputs.identity)
    name = f"{identity['model_name']} at {identity['checkpoint']}"
    if is_own_tokenizer and made_with["tokenizer_sha256"] != identity["tokenizer_sha256"]:
        raise InputError(
            f"{name}: its tokenizer is not the one that {inputs.contexts} was tokenised with; study it in a session of "
            "its own, or name the tokenizer to use in model_config.tokenizer"
        )
    again = made_anew(inputs.weights or inputs.identity)
    if identity["path"] is None:
        if inputs.weights is None:
            raise InputError(f"{name}: its weights are on the hub, and none are given; `fetch-weights` brings them")
        identity["path"] = str(inputs.weights)
        record = inputs.weights / WEIGHTS_RECORD
        if not record.is_file() or read_record(record) != weights_record(identity):
            raise InputError(f"{name}: {inputs.weights} holds other weights than its identity says; {again}")
    lacking = [one for one in ("config.json", *identity["weights"]) if not (Path(identity["path"]) / one).is_file()]
    if lacking:
        raise InputError(f"{name}: {identity['path']}/{lacking[0]} is not there; {again}")
    largest, n_tokens = contexts["input_ids"].explode().max(), identity["architecture"]["vocab_size"]
    if largest >= n_tokens:
        raise InputError(f"{name}: found token {largest} in {inputs.contexts}, but the model knows {n_tokens} tokens")
    return contexts, identity


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
    run = _Run(extraction, identity, execution, input_ids)
    write_record(facts_path, run.facts())
    progress = Progress("extracted context", len(input_ids), n_done)
    _extract_missing(run, input_ids, missing, parts_folder, execution.batch_size, progress, lease)
    return read_record(facts_path)


def _extract_missing(run: _Run, input_ids, parts, parts_folder: Path, batch_size: int, progress, lease: Lease) -> None:
    """Compute parts one by one, each complete or absent."""
    for part in parts:
        # Clouds are shared out over processes, one BLAS thread each: how many there are does not change a number.
        with threadpool_limits(1, user_api="blas"), PartWriter(_part(parts_folder, part), len(part)) as writer:
            first = 0
            while first < len(part):
                rows = part[first : first + batch_size]
                LOG.debug("forward pass over contexts %d to %d", rows[0], rows[-1])
                try:
                    run.extract_batch(input_ids[rows.start : rows.stop], writer, first)
                except torch.OutOfMemoryError as error:
                    batch_size = _halved(len(rows), error)
                    continue
                first += len(rows)
                progress.step(len(rows))
            lease.check()


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


class _Run:
    """A loaded model and what is read of it."""

    def __init__(
        self, extraction: Extraction, identity: dict[str, Any], execution: Execution, input_ids: torch.Tensor
    ) -> None:
        torch.set_num_threads(execution.n_threads)
        self.device = pick_device()
        dtype = pick_dtype(extraction.dtype, self.device)
        self.model = load_model(
            Path(identity["path"]), dtype, self.device, execution.use_accelerator, identity["is_pickled"]
        )
        architecture = identity["architecture"]
        self.n_layers = architecture["n_layers"]
        self.sites = resolve_sites(extraction.request, architecture["model_type"], architecture["n_layers"])
        check_paths(self.sites, {name for name, _ in self.model.named_modules()})
        self.extraction, self.searchers = extraction, Searchers(execution.n_threads)
        kernels_of(np.empty((0, 0)))  # loads their BLAS before its threads are limited
        n_counted = input_ids.shape[1] - min(view.skip_first_tokens for view in extraction.views.values())
        self.ranks = extraction.ranks or default_ranks(n_counted)
        first = input_ids[:1].to(self.device)
        mapping = resolve_mapping(extraction.request.mapping, architecture["model_type"])
        self.meaning = check_meaning(self.model, self.sites, mapping, architecture["model_type"], first)
        with torch.inference_mode():
            self.loss_head = LossHead(self.model, first)

    def facts(self) -> dict[str, Any]:
        """Return what is known of the model only once it is loaded."""
        return {
            "attention": self.model.config._attn_implementation,
            "device_map": {key: str(value) for key, value in getattr(self.model, "hf_device_map", {}).items()},
            "ranks": list(self.ranks),
            "statistics": list(names_of(self.extraction.groups)),
            "n_layers": self.n_layers,
            "n_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "n_embedding_parameters": n_embedding_parameters(self.model),
            "sites": [[site.module, site.layer, site.path] for site in self.sites],
            "meaning": self.meaning,
        }

    @torch.inference_mode()
    def extract_batch(self, input_ids: torch.Tensor, writer: PartWriter, first: int) -> None:
        """Run one batch and write what its sites and tokens give, from context `first` of the part on."""
        seen: list[Site] = []
        before: dict[str, tuple[int, list[OfViews]]] = {}  # module -> the layer last seen, and its neighbors

        def visit(site: Site, activations: torch.Tensor) -> None:
            seen.append(site)
            clouds = _as_clouds(activations, site, input_ids.shape)
            layer, below = before.get(site.module, (None, None))
            is_next = site.layer is not None and layer == site.layer - 1
            views = views_at(site.layer, self.extraction.views, self.extraction.request.views)
            found = self._neighbors(clouds, input_ids.numpy(), views, below if is_next else None)
            before[site.module] = site.layer, found
            writer.write_site(site, first, self._arrays(clouds, found))

        on_device = input_ids.to(self.device)
        with watching(self.model, self.sites, visit):
            hidden = last_hidden(self.model, on_device)
        if sorted(map(repr, seen)) != sorted(map(repr, self.sites)):
            missed = [site.path for site in self.sites if seen.count(site) != 1]
            raise InputError(
                f"model_config.module_name_mapping: a forward pass does not leave {', '.join(missed)} exactly once; "
                "name modules inside the base model (the output embedding is none: `unemb` is the final norm's output)"
            )
        loss, entropy = self.loss_head(on_device, hidden)
        writer.write_tokens(first, {"loss": loss.numpy(), "entropy": entropy.numpy()})

    def _arrays(self, clouds: torch.Tensor, found: list[OfViews]) -> dict[str, np.ndarray]:
        """Return the datasets of one site for one batch: `found` is a list over contexts."""
        arrays = {}
        for view in found[0]:
            of_view = [neighbors[view] for neighbors in found]
            arrays[f"{view}/r1"] = np.stack([one.r1 for one in of_view])
            arrays[f"{view}/log_ratio"] = np.stack([one.log_ratio for one in of_view]).astype(np.float32)
            arrays[f"{view}/statistics"] = np.array([list(one.statistics.values()) for one in of_view])
        if self.extraction.save_means:
            arrays["mean"] = clouds.double().mean(dim=1).float().cpu().numpy()
        for position in self.extraction.positions:
            arrays[f"positions/{position}"] = clouds[:, position].float().cpu().numpy()
        if self.extraction.save_clouds:
            arrays["activations"] = rounded(on_host(clouds), self.extraction.save_fp)
        return arrays

    def _neighbors(
        self, clouds: torch.Tensor, token_ids: np.ndarray, names: Sequence[str], below: list[OfViews] | None
    ) -> list[OfViews]:
        """Return the neighbors of each cloud of a batch under some views; a view that is not made below has none."""
        views, groups = [self.extraction.views[name] for name in names], self.extraction.groups
        same = {"views": views, "ranks": self.ranks, "groups": groups}
        under_each = below or [{}] * len(clouds)
        lists = [[under[name].nearest if name in under else None for name in names] for under in under_each]
        each = zip(token_ids, lists, strict=True)
        found = self.searchers.find(clouds, [{**same, "token_ids": ids, "below": under} for ids, under in each])
        return [dict(zip(names, of_views, strict=True)) for of_views in found]


def _as_clouds(activations: torch.Tensor, site: Site, shape: torch.Size) -> torch.Tensor:
    """Return activations as (contexts, tokens, d); some modules see contexts and tokens as one axis."""
    if not isinstance(activations, torch.Tensor):
        raise InputError(
            f"module {site.path}: found an output of type {type(activations).__name__}, expected a tensor; name "
            "another module in model_config.module_name_mapping"
        )
    if activations.ndim == 2 and len(activations) == shape.numel():
        activations = activations.unflatten(0, tuple(shape))
    if activations.ndim != 3 or activations.shape[:2] != shape:
        raise InputError(
            f"module {site.path}: found an output of shape {tuple(activations.shape)}, expected (contexts, tokens, "
            f"d) = ({shape[0]}, {shape[1]}, d); name another module in model_config.module_name_mapping"
        )
    return activations


def rounded(values: np.ndarray, save_fp: str) -> np.ndarray:
    """Return values in the precision to save, or in float32 where that would turn a finite one infinite."""
    with np.errstate(over="ignore"):
        narrow = values.astype(save_fp)
    if np.isfinite(narrow).all() or not np.isfinite(values[~np.isfinite(narrow)]).any():
        return narrow
    LOG.debug("values beyond %s: this site is saved in float32", save_fp)
    return values.astype(np.promote_types(save_fp, np.float32))


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
