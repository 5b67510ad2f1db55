"""What the config of a model alone says of a run: sites, parameters, FLOPs; without weights, and in no memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from id_scaling.errors import InputError
from id_scaling.models.modules import Site, SiteRequest, check_paths, request_of
from id_scaling.sources.build import built
from id_scaling.sources.cache import RESOURCES
from id_scaling.sources.model_config import check_request, read_architecture
from id_scaling.sources.models import known_identity
from id_scaling.storage.layout import Run, run_folder, slug, weights_folder
from id_scaling.study.study import Study

BYTES_OF_FLOAT32 = 4
# Not counted by running: one token after the other takes minutes, and torch counts no products of experts.
UNCOUNTED_TYPES, UNCOUNTED_KEYS = ("mamba", "rwkv"), ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Shape:
    """What a model is, as its config says.

    Parameters
    ----------
    n_layers, n_parameters, weight_bytes : int
        Blocks, parameters, and their bytes in the precision that the config names.
    widths : mapping of Site to int
        Dimension of the activations at each site.
    forward : mapping of int to float
        FLOPs of a forward pass over one context, by its number of tokens.
    is_counted : bool
        Whether these were counted operation by operation; else they are 2 x parameters x tokens.
    """

    n_layers: int
    n_parameters: int
    weight_bytes: int
    widths: Mapping[Site, int]
    forward: Mapping[int, float]
    is_counted: bool


def shape_in(study: Study, model: str) -> Shape:
    """Return the shape of a model of a study, from its folder, what was fetched of it, the hub's cache or the hub.

    Raises
    ------
    InputError
        There is no config in any of them, or transformers cannot build a model of it.
    ConfigError
        The model lacks a layer, a module or the positions that are asked for.
    """
    with TemporaryDirectory() as aside:
        folder = _config_folder(study, model, Path(aside))
        return shape_of(folder, request_of(study.sites(model)), study.config.ctx_len)


def shape_of(folder: Path, request: SiteRequest, lengths: Sequence[int]) -> Shape:
    """Return the shape of the model whose config is in a folder, with the sites and lengths that are asked for."""
    architecture = read_architecture(folder)
    sites = check_request(request, max(lengths), architecture)
    model, weight_bytes = _without_memory(folder)
    check_paths(sites, {name for name, _ in model.named_modules()})
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    counted = {ctx_len: _forward(model, sites, ctx_len) for ctx_len in lengths}
    is_counted = all(flops is not None for flops, _ in counted.values())
    seen = counted[max(lengths)][1]
    return Shape(
        n_layers=architecture.n_layers,
        n_parameters=n_parameters,
        weight_bytes=n_parameters * weight_bytes,
        widths={site: seen.get(site, architecture.width) for site in sites},
        forward={
            n: flops if is_counted and flops is not None else 2 * n_parameters * n for n, (flops, _) in counted.items()
        },
        is_counted=is_counted,
    )


@dataclass(frozen=True)
class Weights:
    """Where the weights of a model come to, the bytes still to come, the most that lie there at once, do they stay."""

    folder: Path
    n_bytes: float
    at_once: float
    do_stay: bool = True


def weights_of(study: Study, model: str, shape: Shape) -> Weights:
    """Return what of a model's weights is still to come; those of local folders are read where they are."""
    checkpoints, session = study.models[model].model_checkpoint, Path(study.session)
    missing = [one for one in checkpoints if not study.identity_path(model, slug(one)).is_file()]
    n_derived: float = (
        sum(study.model_source(model, one).is_made for one in missing) * shape.n_parameters * BYTES_OF_FLOAT32
    )
    if n_to_prepare := study.model_source(model, checkpoints[0]).n_to_prepare():
        n_bytes = n_derived + n_to_prepare * shape.weight_bytes
        return Weights(RESOURCES, n_bytes, n_bytes)
    # Each run that is not extracted brings its own, unless they are kept: then each checkpoint does.
    lacking = [run for run in study.runs if run.model == model and not _has_weights(study, run)]
    each = _bytes_on_hub(study, model, study.checkpoints[lacking[0].checkpoint], shape) if lacking else 0
    if study.config.keep_weights:
        n_bytes = n_derived + len({run.checkpoint for run in lacking}) * each
        return Weights(_hub_cache(), n_bytes, n_bytes)
    return Weights(session, n_derived + len(lacking) * each, n_derived + each, do_stay=not lacking)


def _has_weights(study: Study, run: Run) -> bool:
    """Return whether the weights of a run are there, or not needed: it is extracted, or they are made here."""
    is_extracted = (run_folder(Path(study.session), run) / "manifest.json").is_file()
    return (
        is_extracted
        or weights_folder(Path(study.session), run).is_dir()
        or not study.is_on_hub(run.model, run.checkpoint)
    )


def _hub_cache() -> Path:
    """Return where the hub's client keeps what it downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _bytes_on_hub(study: Study, model: str, checkpoint: str, shape: Shape) -> float:
    """Return the bytes of a checkpoint's weights as the hub says, or else as its config says."""
    try:
        return study.model_source(model, checkpoint).bytes_to_download(study.models[model].allow_pickle)
    except InputError:
        return shape.weight_bytes


def _config_folder(study: Study, model: str, aside: Path) -> Path:
    """Return a folder with a model's config; of the hub's files its settings alone are fetched, if they must be."""
    from huggingface_hub import try_to_load_from_cache

    name, checkpoints = study.models[model].model_name, study.models[model].model_checkpoint
    source = study.model_source(model, checkpoints[0])
    if not source.is_remote:
        return source.config_folder(aside)
    identities = [study.identity_path(model, slug(checkpoint)) for checkpoint in checkpoints]
    known = [identity for identity in map(known_identity, identities) if identity]
    fetched = [Path(identity["path"]) for identity in known if identity["path"]]
    cached = [try_to_load_from_cache(name, "config.json", revision=checkpoint) for checkpoint in checkpoints]
    there = [*fetched, *(Path(path).parent for path in cached if isinstance(path, str))]
    found = next((folder for folder in there if (folder / "config.json").is_file()), None)
    return found or source.config_folder(aside)


def _without_memory(folder: Path) -> tuple[Any, int]:
    """Return a model of the config in a folder whose tensors have a shape alone, and the bytes of a weight in files."""
    import torch
    from transformers import AutoConfig

    model = built(folder, "meta", attn_implementation="eager", dtype=torch.float32).eval()
    said = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().dtype
    return model, (said or torch.float32).itemsize


def _forward(model: Any, sites: Sequence[Site], ctx_len: int) -> tuple[float | None, dict[Site, int]]:
    """Return the FLOPs of one context and the widths at sites, from a forward pass that computes shapes alone.

    Attention counts all pairs of tokens, those after a token too.
    """
    import torch
    from torch._subclasses import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from id_scaling.models.loading import watching

    config, widths = model.config.get_text_config(), {}
    if config.model_type in UNCOUNTED_TYPES or any(getattr(config, key, None) for key in UNCOUNTED_KEYS):
        return None, {}
    counter = FlopCounterMode(display=False)
    modes = FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter
    try:
        with ExitStack() as stack:
            for mode in (*modes, watching(model, sites, lambda site, seen: widths.update({site: seen.shape[-1]}))):
                stack.enter_context(mode)
            model(torch.zeros(1, ctx_len, dtype=torch.long, device="meta"), use_cache=False)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return None, {}
    return counter.get_total_flops(), widths
