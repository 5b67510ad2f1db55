"""Computes what an extraction stores of one batch of contexts: neighbors at every site, loss of every token.

The activations of a site are reduced to neighbor distances on the device as soon as the forward pass leaves the site,
so only one site of one batch is in memory. Everything is computed from the activations as the model outputs them; only
a saved copy is rounded to `save_fp`. An extraction becomes stale if this module, or a computing module that it imports,
changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from id_scaling.errors import InputError
from id_scaling.models.loading import (
    LossHead,
    last_hidden,
    load_model,
    n_embedding_parameters,
    pick_device,
    pick_dtype,
    watching,
)
from id_scaling.models.modules import Site, SiteRequest, check_paths, resolve_mapping, resolve_sites, with_layers
from id_scaling.models.verification import check_meaning
from id_scaling.neighbors.find import Neighbors
from id_scaling.neighbors.kernels.dispatch import kernels_of
from id_scaling.neighbors.parallel import Searchers, on_host
from id_scaling.neighbors.precision import rounded
from id_scaling.neighbors.statistics import names_of
from id_scaling.neighbors.views import View, default_ranks, views_at
from id_scaling.runtime.logging import LOG

# The neighbors of one cloud, by view.
NeighborsByView = dict[str, Neighbors]
# Stores the arrays of a site.
SiteWriter = Callable[[Site, dict[str, np.ndarray]], None]


@dataclass(frozen=True)
class Extraction:
    """What an extraction computes and stores.

    Parameters
    ----------
    request : SiteRequest
        Where activations are read, and which views are computed only at some layers.
    views : mapping of str to View
        The views under which neighbors are searched, by name.
    ranks : tuple of int, or None
        Neighbor ranks that are stored; None for the default ranks.
    groups : tuple of str
        Groups of cloud statistics that are stored.
    save_clouds, save_means : bool
        Whether the clouds, and their means, are stored.
    save_fp : str
        Precision of saved clouds.
    dtype : str
        Precision of the weights; `auto` is float32, but bfloat16 for a large model on a GPU.
    positions : tuple of int
        Positions whose activations are stored, in float32.
    """

    request: SiteRequest
    views: Mapping[str, View]
    ranks: tuple[int, ...] | None
    groups: tuple[str, ...]
    save_clouds: bool
    save_means: bool
    save_fp: str
    dtype: str
    positions: tuple[int, ...] = ()


class ModelRun:
    """A loaded model, and the sites and views at which it is read.

    Parameters
    ----------
    extraction : Extraction
        What is computed.
    identity : dict
        The model's identity, with the folder that holds its weights.
    n_threads : int
        Number of cores that search clouds; it does not change any number.
    use_accelerator : bool
        Whether the model may be spread over several devices.
    input_ids : (contexts, tokens) tensor
        All contexts of the run; the first one is used to verify the module paths.
    """

    def __init__(
        self,
        extraction: Extraction,
        identity: dict[str, Any],
        n_threads: int,
        use_accelerator: bool,
        input_ids: torch.Tensor,
    ) -> None:
        torch.set_num_threads(n_threads)
        self.device = pick_device()
        dtype = pick_dtype(extraction.dtype, self.device, identity["n_parameters"])
        self.model = load_model(Path(identity["path"]), dtype, self.device, use_accelerator, identity["is_pickled"])
        architecture = identity["architecture"]
        self.n_layers = architecture["n_layers"]
        self.sites = resolve_sites(extraction.request, architecture["model_type"], architecture["n_layers"])
        # With layers, a choice of them is a list of numbers.
        views = with_layers(extraction.request, architecture["n_layers"]).views
        self.view_layers = cast("Mapping[str, list[int]]", views)
        check_paths(self.sites, {name for name, _ in self.model.named_modules()})
        self.extraction, self.searchers = extraction, Searchers(n_threads)
        self.wide_sites: set[Site] = set()  # sites that have exceeded the range of `save_fp`
        kernels_of(np.empty((0, 0)))  # loads their BLAS before its threads are limited
        n_counted = input_ids.shape[1] - min(view.skip_first_tokens for view in extraction.views.values())
        self.ranks = extraction.ranks or default_ranks(n_counted)
        first = input_ids[:1].to(self.device)
        mapping = resolve_mapping(extraction.request.mapping, architecture["model_type"])
        self.meaning = check_meaning(self.model, self.sites, mapping, architecture["model_type"], first)
        with torch.inference_mode():
            self.loss_head = LossHead(self.model, first)

    def facts(self) -> dict[str, Any]:
        """Return the facts of the model that are known only after it is loaded."""
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
    def extract_batch(self, input_ids: torch.Tensor, write_site: SiteWriter) -> dict[str, np.ndarray]:
        """Run one batch, write the arrays of each site when the forward pass leaves it, and return those of the tokens.

        Parameters
        ----------
        input_ids : (contexts, tokens) tensor
            The contexts of the batch.
        write_site : callable
            Stores the arrays of a site by name, each with one row per context.

        Returns
        -------
        dict of (contexts, tokens) float arrays
            `loss` and `entropy` of each token, in nats.
        """
        seen_sites: list[Site] = []
        # Module -> its last layer, and the neighbors there.
        last_by_module: dict[str, tuple[int | None, list[NeighborsByView]]] = {}

        def visit(site: Site, activations: torch.Tensor) -> None:
            seen_sites.append(site)
            clouds = _clouds_of(activations, site, input_ids.shape)
            layer, below = last_by_module.get(site.module, (None, None))
            is_next_layer = site.layer is not None and layer == site.layer - 1
            views = views_at(site.layer, self.extraction.views, self.view_layers)
            neighbors = self._neighbors(clouds, input_ids.numpy(), views, below if is_next_layer else None)
            last_by_module[site.module] = site.layer, neighbors
            write_site(site, self._arrays(site, clouds, neighbors))

        on_device = input_ids.to(self.device)
        with watching(self.model, self.sites, visit):
            hidden = last_hidden(self.model, on_device)
        if sorted(map(repr, seen_sites)) != sorted(map(repr, self.sites)):
            wrong_paths = [site.path for site in self.sites if seen_sites.count(site) != 1]
            raise InputError(
                f"model_config.module_name_mapping: a forward pass does not leave {', '.join(wrong_paths)} exactly "
                "once; name modules inside the base model, which excludes the output embedding (`unemb` is the final "
                "norm's output)"
            )
        loss, entropy = self.loss_head(on_device, hidden)
        return {"loss": loss.numpy(), "entropy": entropy.numpy()}

    def _arrays(self, site: Site, clouds: torch.Tensor, neighbors: list[NeighborsByView]) -> dict[str, np.ndarray]:
        """Return the datasets of one site for one batch; `neighbors` has one entry per context."""
        arrays = {}
        for view in neighbors[0]:
            under_view = [by_view[view] for by_view in neighbors]
            arrays[f"{view}/r1"] = np.stack([cloud.r1 for cloud in under_view])
            arrays[f"{view}/log_ratio"] = np.stack([cloud.log_ratio for cloud in under_view]).astype(np.float32)
            arrays[f"{view}/statistics"] = np.array([list(cloud.statistics.values()) for cloud in under_view])
        if self.extraction.save_means:
            arrays["mean"] = clouds.double().mean(dim=1).float().cpu().numpy()
        for position in self.extraction.positions:
            arrays[f"positions/{position}"] = clouds[:, position].float().cpu().numpy()
        if self.extraction.save_clouds:
            arrays["activations"] = rounded(on_host(clouds), self.extraction.save_fp)
            self._warn_of_wider_precision(site, arrays["activations"])
        return arrays

    def _warn_of_wider_precision(self, site: Site, saved: np.ndarray) -> None:
        """Log once for each site that some of its clouds are saved in a wider precision than requested."""
        if saved.dtype != self.extraction.save_fp and site not in self.wide_sites:
            self.wide_sites.add(site)
            LOG.warning(
                "%s holds values up to %.3g, beyond save_fp: %s: contexts that have them are saved in %s, see the "
                "column save_fp of the tables of estimates",
                site.path,
                np.abs(saved, where=np.isfinite(saved), out=np.zeros_like(saved)).max(),
                self.extraction.save_fp,
                saved.dtype,
            )

    def _neighbors(
        self, clouds: torch.Tensor, token_ids: np.ndarray, names: Sequence[str], below: list[NeighborsByView] | None
    ) -> list[NeighborsByView]:
        """Return the neighbors of each cloud under given views; `below` are those in the layer below, if known."""
        views, groups = [self.extraction.views[name] for name in names], self.extraction.groups
        shared = {"views": views, "ranks": self.ranks, "groups": groups}
        below_by_cloud = below or [{}] * len(clouds)
        lists_below = [
            [by_view[name].nearest if name in by_view else None for name in names] for by_view in below_by_cloud
        ]
        inputs = [
            {**shared, "token_ids": ids, "below": lists} for ids, lists in zip(token_ids, lists_below, strict=True)
        ]
        results = self.searchers.find(clouds, inputs)
        return [dict(zip(names, neighbors, strict=True)) for neighbors in results]


def _clouds_of(activations: torch.Tensor, site: Site, shape: torch.Size) -> torch.Tensor:
    """Return activations as (contexts, tokens, d); some modules combine contexts and tokens in one axis."""
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
