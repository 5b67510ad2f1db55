"""Whether a study can run on the model in a folder: by its config, the headers of its weights, and as it is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from id_scaling.models.modules import Site, SiteRequest, check_paths, resolve_sites
from id_scaling.sources.config_checks import check_layers
from id_scaling.sources.meta_model import MetaModel, inspect
from id_scaling.sources.model_config import check_request, read_architecture, read_config
from id_scaling.sources.safe_files import check_settings, is_pickled, weight_files
from id_scaling.sources.weight_headers import Stored, modules_of, read_headers


def check_model(
    folder: Path, request: SiteRequest, ctx_len: int, allow_pickle: bool = False, has_weights: bool = True
) -> dict[str, Stored]:
    """Check a model by its config and the headers of its weight files only; return the tensors in its safetensors.

    Raises
    ------
    InputError
        The config or a weight file is damaged, impossible, or needs a package that is not installed.
    ConfigError
        The model lacks a layer, a module key or the positions that are asked for.
    """
    files = weight_files(folder, allow_pickle) if has_weights else []
    architecture = read_architecture(folder)
    check_settings(folder, read_config(folder))
    headers = read_headers(folder) if files and not is_pickled(path.name for path in files) else {}
    if headers:
        check_layers(architecture.n_layers, len(headers), folder / "config.json")
    check_request(request, ctx_len, architecture)
    return headers


def check_paths_of(folder: Path, request: SiteRequest, headers: Mapping[str, Stored]) -> None:
    """Raise a ConfigError where a module path that is given is not in the model.

    Paths of a preset are known to fit. Modules that hold tensors are known from the headers; only for others, and for
    models that may need code of their own, is the model built.
    """
    if request.mapping is None:
        return
    paths = {site.path for site in _sites(folder, request)}
    if "auto_map" in read_config(folder) or not paths <= modules_of(headers):
        check_built(folder, request, {})


def check_built(folder: Path, request: SiteRequest, headers: Mapping[str, Stored]) -> MetaModel:
    """Check a model as it is built, without reading or holding weights; return what is known of it then.

    Parameters
    ----------
    headers : mapping of str to Stored
        The tensors in its weight files; none where they are not known.

    Raises
    ------
    InputError
        transformers cannot build the model, or the tensors are not its own.
    ConfigError
        It lacks a module that is asked for.
    """
    model = inspect(folder, headers or None)
    check_paths(_sites(folder, request), model.modules)
    return model


def _sites(folder: Path, request: SiteRequest) -> list[Site]:
    """Return the sites that a request means in a model."""
    architecture = read_architecture(folder)
    return resolve_sites(request, architecture.model_type, architecture.n_layers)
