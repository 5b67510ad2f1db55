"""Checks across keys: what each key takes by itself, but no study can have together."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from id_scaling.estimators.registry import get_estimator
from id_scaling.models.layers import check_layers_read, in_ranges
from id_scaling.neighbors.cloud_kinds import CONTEXT, MEAN, POSITION, view_of_run
from id_scaling.neighbors.statistics import group_of
from id_scaling.neighbors.views import default_ranks
from id_scaling.study.config_types import as_value_error, layers_as_json, shown

if TYPE_CHECKING:
    from id_scaling.study.config import CacheingConfig, Config, DatasetConfig, ViewConfig

# Of a view: fewer have no neighbors at any rank.
LEAST_POINTS = 2


def check_consistency(config: Config) -> None:
    """Raise a ValueError, which names its key, where keys contradict each other."""
    _check_modules(config.cacheing_config)
    _check_layers(config.cacheing_config)
    _check_clouds(config.cacheing_config)
    for ctx_len in config.ctx_len:
        _check_positions(config.cacheing_config, ctx_len)
        if CONTEXT in config.cacheing_config.clouds:
            _check_points(config.cacheing_config, ctx_len)
            _check_needs(config.cacheing_config, ctx_len)
        _check_views(config.cacheing_config, ctx_len)
        for dataset in config.datasets:
            _check_contexts(config.cacheing_config, ctx_len, dataset)


def _check_modules(cacheing: CacheingConfig) -> None:
    """Raise a ValueError when a module key is read both in each layer and once."""
    if not cacheing.module_inblock_keys and not cacheing.module_outblock_keys:
        raise ValueError("cacheing_config: module_inblock_keys and module_outblock_keys are both empty; name a module")
    if cacheing.layer_idx_list == [] and cacheing.module_inblock_keys:
        raise ValueError("cacheing_config.layer_idx_list: found no layer, expected 'all' or layers to read")
    both = sorted(set(cacheing.module_inblock_keys) & set(cacheing.module_outblock_keys))
    if both:
        raise ValueError(
            f"cacheing_config.module_outblock_keys: {', '.join(both)} stands in module_inblock_keys too; name each once"
        )


def _check_layers(cacheing: CacheingConfig) -> None:
    """Raise a ValueError when a view is to be made at a layer that is not read, whatever the model."""
    read = cacheing.layer_idx_list
    for name, view in cacheing.views.items():
        if view.layers != "all" and not cacheing.module_inblock_keys:
            raise ValueError(
                f"cacheing_config.views.{name}.layers: found {shown(layers_as_json(view.layers))}, "
                "but module_inblock_keys is empty, so no layer is read; name a module there, or leave the layers out"
            )
        # What is counted from the end, or is a range, is compared once the number of layers is known.
        if isinstance(read, list) and isinstance(view.layers, list) and min(*read, *view.layers, 0) == 0:
            as_value_error(check_layers_read, name, view.layers, read)


def _check_positions(cacheing: CacheingConfig, ctx_len: int) -> None:
    """Raise a ValueError when a position is beyond a context, or stands there by two names."""
    for position in cacheing.save_positions:
        if not -ctx_len <= position < ctx_len:
            raise ValueError(
                f"cacheing_config.save_positions: found {position}, but a context has {ctx_len} tokens (ctx_len); "
                f"expected {-ctx_len} to {ctx_len - 1}"
            )
        if position < 0 and position + ctx_len in cacheing.save_positions:
            raise ValueError(
                f"cacheing_config.save_positions: {position} and {position + ctx_len} are one position of {ctx_len} "
                "tokens (ctx_len); name it once"
            )


def _check_clouds(cacheing: CacheingConfig) -> None:
    """Raise a ValueError when the points of a cloud are not stored, or no view makes sense of them."""
    stored = {
        MEAN: (cacheing.save_mean_tensors, "the centres of contexts; set save_mean_tensors: true"),
        POSITION: (cacheing.save_positions, "the tokens at some positions; list them in save_positions, as in [-1]"),
    }
    for cloud in [cloud for cloud in cacheing.clouds if cloud != CONTEXT]:
        is_stored, what = stored[cloud]
        if not is_stored:
            raise ValueError(
                f"cacheing_config.clouds: {cloud} needs {what}, which extracts again, or leave the cloud out"
            )
        if not any(view.layers == "all" and view_of_run(view.draw(0)) for view in cacheing.views.values()):
            raise ValueError(
                f"cacheing_config.clouds: {cloud} needs a view for points that are contexts: one of all layers, with "
                "duplicates: distinct or keep, and without decimate and exclude_window; add one, which extracts again, "
                "or leave the cloud out"
            )


def _n_counted(view: ViewConfig, ctx_len: int) -> int:
    """Return how many points of a context at least are candidates for neighbors under a view, equal ones aside."""
    n_points = ctx_len - view.skip_first_tokens
    return min(view.decimate or n_points, n_points) - 2 * view.exclude_window


def _is_too_short(cacheing: CacheingConfig, estimator: str, ctx_len: int) -> bool:
    """Return whether contexts of a length have too few points for an estimator, whatever is stored of them."""
    needed = get_estimator(estimator).min_points
    return all(_n_counted(view, ctx_len) < needed for view in cacheing.views.values())


def _of_contexts(cacheing: CacheingConfig, ctx_len: int) -> list[str]:
    """Return the estimators that are meant for the clouds of contexts of a length.

    An estimator of many points may be meant for the clouds of all contexts of a run, where there are such: contexts
    that are too short for it are `too_few_points`.
    """
    has_others = len(cacheing.clouds) > 1
    return [name for name in cacheing.save_IDs_list if not (has_others and _is_too_short(cacheing, name, ctx_len))]


def _check_contexts(cacheing: CacheingConfig, ctx_len: int, dataset: DatasetConfig) -> None:
    """Raise a ValueError when an estimator has too few points in every cloud, those of all contexts of a run too."""
    meant = _of_contexts(cacheing, ctx_len) if CONTEXT in cacheing.clouds else []
    for name in cacheing.save_IDs_list:
        needed, most = get_estimator(name).min_points, dataset.max_contexts
        if name not in meant and most is not None and most < needed:
            raise ValueError(
                f"cacheing_config.save_IDs_list: {name} needs at least {needed} points, but clouds of all contexts of "
                f"a run have {most} (dataset_config.max_contexts); raise max_contexts, or leave it out"
            )


def _check_points(cacheing: CacheingConfig, ctx_len: int) -> None:
    """Raise a ValueError when a view leaves an estimator too few points of contexts of a length."""
    for (name, view), estimator in product(cacheing.views.items(), _of_contexts(cacheing, ctx_len)):
        made, n_counted = get_estimator(estimator), _n_counted(view, ctx_len)
        if n_counted < made.min_points:
            raise ValueError(
                f"cacheing_config.save_IDs_list: {estimator} needs at least {made.min_points} points, but ctx_len "
                f"{ctx_len} leaves {max(n_counted, 0)} under the view {name!r}; raise ctx_len, or have the view "
                "leave more"
            )
        if made.needs == "points" and (view.exclude_window or view.null_cloud != "none"):
            key = "exclude_window" if view.exclude_window else "null_cloud"
            raise ValueError(
                f"cacheing_config.views.{name}.{key}: {estimator} reads saved clouds, which know nothing of it; leave "
                "one of them out, or study them in a session of their own"
            )


def _check_views(cacheing: CacheingConfig, ctx_len: int) -> None:
    """Raise a ValueError when a view cannot be made of contexts of a length."""
    for name, view in cacheing.views.items():
        n_points = ctx_len - view.skip_first_tokens
        if n_points < LEAST_POINTS:
            raise ValueError(
                f"cacheing_config.views.{name}.skip_first_tokens: found {view.skip_first_tokens}, but ctx_len "
                f"{ctx_len} leaves {max(n_points, 0)} points; skip fewer"
            )
        n_drawn = min(view.decimate or n_points, n_points)
        if view.n_dropped and view.n_dropped >= n_drawn - 1:
            raise ValueError(
                f"cacheing_config.views.{name}.preprocess: found {view.preprocess}, but of {n_drawn} points no more "
                f"components are left (ctx_len {ctx_len}); drop fewer"
            )
        if view.decimate > n_points:
            raise ValueError(
                f"cacheing_config.views.{name}.decimate: found {view.decimate}, but ctx_len {ctx_len} leaves "
                f"{n_points} points to draw from; draw fewer"
            )


def _check_needs(cacheing: CacheingConfig, ctx_len: int) -> None:
    """Raise a ValueError when an estimator needs what the extraction of contexts of a length does not store."""
    n_points = ctx_len - min(view.skip_first_tokens for view in cacheing.views.values())
    ranks = default_ranks(n_points) if cacheing.neighbor_ranks == "default" else cacheing.neighbor_ranks
    for name in _of_contexts(cacheing, ctx_len):
        estimator = get_estimator(name)
        if estimator.needs == "points" and not cacheing.save_cache_tensors:
            raise ValueError(
                f"cacheing_config.save_IDs_list: {name} needs saved clouds; "
                "set save_cache_tensors: true, which extracts again, or leave it out"
            )
        groups = {group_of(statistic) for statistic in estimator.statistics} - set(cacheing.cloud_statistics)
        if groups:
            raise ValueError(
                f"cacheing_config.cloud_statistics: {name} needs {', '.join(sorted(groups))}; add it, which extracts "
                "again, or leave the estimator out"
            )
        absent = sorted(set(estimator.ranks) - set(ranks))
        if absent:
            raise ValueError(
                f"cacheing_config.neighbor_ranks: {name} needs the ranks {in_ranges(estimator.ranks)}, found "
                f"{in_ranges(ranks)}; list all of both, each as a number ([1, 2, 3], not 1-3), which extracts again, "
                f"or leave the estimator out ('default' is 1 to 32 and powers of two to half the {n_points} points of "
                f"ctx_len {ctx_len})"
            )
