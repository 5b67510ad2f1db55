"""What a study is about: its models, texts and modules, its runs, and the files that these are read from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from id_scaling.errors import ConfigError, InputError
from id_scaling.models.layers import LayerChoice, layers_of
from id_scaling.sources import bundled
from id_scaling.sources.base import (
    DatasetSource,
    ModelSource,
    TokenizerSource,
    resolve_dataset,
    resolve_model,
    resolve_tokenizer,
)
from id_scaling.sources.local import expanded
from id_scaling.storage.layout import Run, slug
from id_scaling.study.config import Config, ModelConfig, layers_as_json, parse


class Axes:
    """A validated configuration: what it names, by how that is called in paths.

    Parameters
    ----------
    config : mapping
        The configuration as read from YAML.

    Raises
    ------
    ConfigError
        The configuration cannot be used.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config: Config = parse(dict(config))
        models, datasets = self.config.models, self.config.datasets
        checkpoints = [name for model in models for name in model.model_checkpoint]
        self.models = _by_slug("model_config.model_name", [model.model_name for model in models], models)
        self.datasets = _by_slug("dataset_config.dataset_name", [data.dataset_name for data in datasets], datasets)
        self.tokenizers = _by_slug("model_config.tokenizer", dict.fromkeys(map(_tokenizer, models)))
        self.checkpoints = _by_slug("model_config.model_checkpoint", dict.fromkeys(checkpoints))
        _check_apart("cacheing_config.module_inblock_keys and module_outblock_keys", self.modules, self.modules)

    @cached_property
    def session(self) -> str:
        """The folder of the session."""
        path = self.config.session_path or f"results/{self.config.session_name}"
        return re.sub("^//+", "/", os.path.normpath(expanded(path)))

    @cached_property
    def runs(self) -> list[Run]:
        """Every run of the study."""
        return [
            Run(model, slug(checkpoint), dataset, subset, ctx_len, control)
            for model, of_model in self.models.items()
            for checkpoint in of_model.model_checkpoint
            for dataset, of_dataset in self.datasets.items()
            for subset in of_dataset.dataset_subset
            for ctx_len in self.config.ctx_len
            for control in self.config.controls
        ]

    @property
    def modules(self) -> list[str]:
        """Every module key of the study."""
        cacheing = self.config.cacheing_config
        return [*cacheing.module_inblock_keys, *cacheing.module_outblock_keys]

    @property
    def estimators(self) -> list[str]:
        """Every estimator of the study; none when IDs are not saved."""
        return self.config.cacheing_config.save_IDs_list if self.config.cacheing_config.save_IDs else []

    def tokenizer_of(self, model: str) -> str:
        """Return the tokenizer's name in paths for a model's."""
        return slug(_tokenizer(self.models[model]))

    @staticmethod
    def is_own_tokenizer(model: ModelConfig) -> bool:
        """Return whether text is cut for a model by its own tokenizer."""
        return model.tokenizer in (None, model.model_name)

    @property
    def allow_special_tokens(self) -> set[bool]:
        """Whether strings spelled as control tokens become these, in each dataset."""
        return {dataset.allow_special_tokens for dataset in self.datasets.values()}

    def sites(self, model: str) -> dict[str, Any]:
        """Return the sites asked of a model, as JSON, whatever the order of their keys."""
        cacheing, mapping = self.config.cacheing_config, self.models[model].module_name_mapping
        views = {
            name: self._counted(model, of_view, f"views.{name}.layers")
            for name, of_view in cacheing.view_layers.items()
        }
        of_views = {"views": views} if views else {}
        read = None if cacheing.layer_idx_list == "all" else layers_as_json(cacheing.layer_idx_list)
        return {
            "layers": self._counted(model, read, "layer_idx_list"),
            "inblock": sorted(cacheing.module_inblock_keys),
            "outblock": sorted(cacheing.module_outblock_keys),
            "mapping": None if mapping == "auto" else mapping,
            **of_views,
        }

    def _counted(self, model: str, layers: LayerChoice | None, key: str) -> LayerChoice | None:
        """Return layers as numbers from 0 where the model's depth is known, so that their spelling changes nothing.

        That of a model on the hub is known only once it is fetched: its jobs are told what the configuration says, or
        fetching it would change their settings.
        """
        if layers is None:
            return None
        n_layers = self.n_layers(model)
        if n_layers is None:
            return layers
        counted = layers_of(layers, n_layers, key)
        return None if counted == list(range(n_layers)) and key == "layer_idx_list" else counted

    @cache  # noqa: B019  a study lives as long as its process
    def n_layers(self, model: str) -> int | None:
        """Return how many layers a model has; None for one of the hub."""
        return self.model_source(model, self.models[model].model_checkpoint[0]).n_layers()

    # ---- where it comes from ----------------------------------------------------------------------------------

    @cache  # noqa: B019  as above; asked for once a job, of which there are thousands
    def model_source(self, model: str, checkpoint: str) -> ModelSource:
        """Return the source of a checkpoint, named as in the configuration."""
        return resolve_model(self.models[model].model_name, checkpoint)

    @cache  # noqa: B019  as above
    def tokenizer_source(self, tokenizer: str) -> TokenizerSource:
        """Return the source of a tokenizer."""
        return resolve_tokenizer(self.tokenizers[tokenizer])

    @cache  # noqa: B019  as above; it lists its files once
    def dataset_source(self, dataset: str) -> DatasetSource:
        """Return the source of a dataset."""
        return resolve_dataset(self.datasets[dataset].dataset_name)

    def model_files(self, model: str, checkpoint: str) -> list[str]:
        """Return the files that a local or embedded checkpoint is made of; none for the hub's."""
        source = self.model_source(model, self.checkpoints[checkpoint])
        return list(map(_literal, source.input_files(self.models[model].allow_pickle)))

    def is_on_hub(self, model: str, checkpoint: str) -> bool:
        """Return whether the weights of a checkpoint come from the hub."""
        return self.model_source(model, self.checkpoints[checkpoint]).is_remote

    def tokenizer_files(self, tokenizer: str) -> list[str]:
        """Return the file of an embedded or a GGUF tokenizer; others are known by their content, see the settings."""
        return list(map(_literal, self.tokenizer_source(tokenizer).input_files()))

    def shard_files(self, dataset: str, subset: str | int) -> list[str]:
        """Return the files of a local or embedded shard; none for the hub's."""
        return list(map(_literal, self.dataset_source(dataset).shard(int(subset))))


def _tokenizer(model: ModelConfig) -> str:
    """Return the model whose tokenizer cuts the text for a model."""
    return bundled.tokenizer_of(model.tokenizer or model.model_name)


def _literal(path: Path) -> str:
    """Return a path as an input of a rule, in which Snakemake reads braces and angle brackets as something else."""
    if re.search("[{}<>]", str(path)):
        raise InputError(f"{path}: found braces or angle brackets in a file's name; rename it")
    return str(path)


def _by_slug(key: str, names: Iterable[str], values: Iterable[Any] | None = None) -> dict[str, Any]:
    """Return values, or else the names themselves, by the folder of each name."""
    names = list(names)
    folders = [slug(name) for name in names]
    _check_apart(key, names, folders)
    return dict(zip(folders, names if values is None else values, strict=True))


def _check_apart(key: str, names: Iterable[str], folders: Iterable[str]) -> None:
    """Raise a ConfigError when two names have one folder, or would have where a file system knows no case."""
    taken: dict[str, str] = {}
    for name, folder in zip(names, folders, strict=True):
        other = taken.get(folder.lower())
        if other == name:
            raise ConfigError(f"{key}: {name!r} stands there twice; merge the two into one entry with a list")
        if other is not None:
            raise ConfigError(f"{key}: {other!r} and {name!r} have one folder where case does not count; rename one")
        taken[folder.lower()] = name
