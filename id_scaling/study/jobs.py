"""The jobs of a study, told once: of each its rule, its wildcards, its outputs and its log.

The rules of the workflow take their paths from the same templates. What lists, counts or compares jobs reads this
table: `status`, `check`, `plan`, `staleness`, and the targets of the workflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from id_scaling.sources import bundled
from id_scaling.sources.cache import RESOURCES
from id_scaling.storage.layout import (
    BATCH,
    CONTEXTS,
    FIGURE,
    FIGURES_MANIFEST,
    IDENTITIES,
    MANIFEST,
    REPORT,
    RUN,
    STAGING,
    SUMMARIES,
    TABLE,
    TEXT_AXES,
    TOKENS,
    WEIGHTS,
    Run,
    log_of,
)
from id_scaling.text.shuffling import NONE

if TYPE_CHECKING:
    from id_scaling.study.targets import Targets

Wildcards = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """One rule of the workflow.

    Parameters
    ----------
    stage : str
        What its jobs are a part of; empty where no output of theirs stays.
    jobs : callable
        Returns the wildcards of every job that a study has of it.
    outputs : tuple of str
        Templates of its outputs; a job is called by the first.
    leased : str, optional
        Template of the folder whose lease the process of a job holds.
    is_of_session : bool
        Whether paths are relative to the session, and not to the folder of bundled models and texts.
    is_local : bool
        Whether its jobs run where Snakemake does, and are never submitted.
    """

    stage: str
    jobs: Callable[[Targets], Iterable[Wildcards]]
    outputs: tuple[str, ...]
    leased: str | None = None
    is_of_session: bool = True
    is_local: bool = False


@dataclass(frozen=True)
class Job:
    """One job of a study.

    Parameters
    ----------
    rule : str
        The name of its rule.
    wildcards : mapping
        The values of the wildcards of its rule.
    folder : Path
        What its paths are relative to.
    outputs : tuple of Path
        What is there once it is done; the first output names it.
    """

    rule: str
    wildcards: Wildcards
    folder: Path
    outputs: tuple[Path, ...]

    @property
    def stage(self) -> str:
        """What it is a part of."""
        return RULES[self.rule].stage

    @cached_property
    def log(self) -> Path:
        """Its log."""
        return self.folder / log_of(self.rule).format(**self.wildcards)

    @cached_property
    def leased(self) -> Path | None:
        """The folder whose lease its process holds, if it does: that of a batch for all estimates of a run."""
        leased = RULES[self.rule].leased
        return self.folder / leased.format(**self.wildcards) if leased else None


def jobs_of(study: Targets, *rules: str) -> Iterator[Job]:
    """Yield every job of a study, or of some rules only, upstream first."""
    for rule in rules or RULES:
        for wildcards in RULES[rule].jobs(study):
            yield job_of(study, rule, wildcards)


def job_of(study: Targets, rule: str, wildcards: Wildcards) -> Job:
    """Return one job of a study."""
    folder = Path(study.session) if RULES[rule].is_of_session else RESOURCES
    outputs: list[Path] = []
    for template in RULES[rule].outputs:
        outputs += map(Path, study.figures()) if template == FIGURE else [folder / template.format(**wildcards)]
    return Job(rule, wildcards, folder, tuple(outputs))


def contexts_job(study: Targets, run: Run) -> Job:
    """Return the job that makes the contexts of a run."""
    return job_of(study, "chunk_dataset" if run.control == NONE else "shuffle_contexts", _text(study, run))


def plain_contexts_job(study: Targets, run: Run) -> Job:
    """Return the job that makes the contexts which those of a run are, or are shuffled from."""
    return contexts_job(study, replace(run, control=NONE))


# ---- which jobs there are of each rule ---------------------------------------------------------------------------


def _names(study: Targets) -> set[str]:
    """Return the models and tokenizers of a study, as the configuration names them."""
    return {*study.tokenizers.values(), *(model.model_name for model in study.config.models)}


def _once(is_needed: bool) -> list[Wildcards]:
    """Return the one job of a rule without wildcards, if it is needed."""
    return [{}] if is_needed else []


def _bundled_model(study: Targets) -> list[Wildcards]:
    """Return one job if the bundled model is studied or its tokenizer is used."""
    return _once(bundled.SMOLLM2 in _names(study))


def _bundled_texts(study: Targets) -> list[Wildcards]:
    """Return one job if bundled texts are studied or a model is trained on them."""
    is_studied = any(dataset.dataset_name in bundled.DATASETS for dataset in study.config.datasets)
    return _once(is_studied or bool(_trained_models(study)))


def _trained_tokenizer(study: Targets) -> list[Wildcards]:
    """Return one job if the tokenizer that is trained here is used."""
    return _once(bundled.TRAINED_TOKENIZER in _names(study) or bool(_trained_models(study)))


def _trained_models(study: Targets) -> list[Wildcards]:
    """Return the models that are trained here."""
    return [{"model": name} for name in sorted(_names(study) & set(bundled.TRAINED))]


def _shards(study: Targets) -> list[Wildcards]:
    """Return the shards of a study."""
    return _distinct({"dataset": run.dataset, "subset": run.subset} for run in study.runs)


def _checkpoints(study: Targets) -> list[Wildcards]:
    """Return the checkpoints of a study."""
    return _distinct({"model": run.model, "checkpoint": run.checkpoint} for run in study.runs)


def _tokenizers(study: Targets) -> list[Wildcards]:
    """Return the tokenizers of a study."""
    return [{"tokenizer": name} for name in study.tokenizers]


def _runs_of_hub(study: Targets) -> list[Wildcards]:
    """Return the runs whose weights are fetched."""
    return [vars(run) for run in study.runs if study.is_on_hub(run.model, run.checkpoint)]


def _plain_texts(study: Targets) -> list[Wildcards]:
    """Return the contexts that are cut from shards, also where only those of controls are studied."""
    return _distinct(_text(study, replace(run, control=NONE)) for run in study.runs)


def _shuffled_texts(study: Targets) -> list[Wildcards]:
    """Return the contexts of controls."""
    return _distinct(_text(study, run) for run in study.runs if run.control != NONE)


def _text(study: Targets, run: Run) -> Wildcards:
    """Return the wildcards of the contexts of a run."""
    names = {**vars(run), "tokenizer": study.tokenizer_of(run.model)}
    return {axis: names[axis] for axis in TEXT_AXES}


def _runs(study: Targets) -> list[Wildcards]:
    """Return all runs."""
    return list(map(vars, study.runs))


def _runs_with_tables(study: Targets) -> list[Wildcards]:
    """Return the runs that are estimated."""
    return _runs(study) if study.modules and study.estimators else []


def _tables(study: Targets) -> Iterator[Wildcards]:
    """Yield the tables of all runs."""
    for run in study.runs:
        for module in study.modules:
            for estimator in study.estimators:
                yield {**vars(run), "module": module, "estimator": estimator}


def _summary(study: Targets) -> list[Wildcards]:
    """Return one job if there are estimates to summarize."""
    return _once(bool(study.estimators))


def _distinct(wildcards: Iterable[Wildcards]) -> list[Wildcards]:
    """Return wildcards without repetition."""
    return list({tuple(values.values()): values for values in wildcards}.values())


_SMOLLM2 = tuple(f"{bundled.SMOLLM2}/{name}" for name in ("model.safetensors", "tokenizer.json"))
_SOTU = tuple(f"{name}/{shard:04d}.parquet" for name in bundled.DATASETS for shard in range(len(bundled.SOTU_SHARDS)))
_TOKENIZER = (f"{bundled.TRAINED_TOKENIZER}/tokenizer.json",)
_STEPS = tuple(f"{{model}}/step{step}/model.safetensors" for step in bundled.TRAINED_STEPS)
# Upstream first.
RULES = {
    "prepare_model": Rule("prepare", _bundled_model, _SMOLLM2, is_of_session=False, is_local=True),
    "prepare_dataset": Rule("prepare", _bundled_texts, _SOTU, is_of_session=False, is_local=True),
    "train_tokenizer": Rule("prepare", _trained_tokenizer, _TOKENIZER, is_of_session=False),
    "train_model": Rule("prepare", _trained_models, _STEPS, leased="{model}", is_of_session=False),
    "fetch_dataset": Rule("fetch", _shards, (IDENTITIES["datasets"],), is_local=True),
    "fetch_model": Rule("fetch", _checkpoints, (IDENTITIES["models"],), is_local=True),
    "fetch_weights": Rule("fetch", _runs_of_hub, (WEIGHTS,), is_local=True),
    "fetch_tokenizer": Rule("fetch", _tokenizers, (IDENTITIES["tokenizers"],), is_local=True),
    "chunk_dataset": Rule("chunk", _plain_texts, (CONTEXTS,)),
    "shuffle_contexts": Rule("chunk", _shuffled_texts, (CONTEXTS,)),
    "extract_activations": Rule("extract", _runs, (MANIFEST, TOKENS), leased=RUN),
    "estimate_batch": Rule("", _runs_with_tables, (BATCH,)),
    "estimate_dimension": Rule("estimate", _tables, (TABLE,), leased=STAGING, is_local=True),
    "summarize": Rule("summarize", _summary, SUMMARIES),
    "plot": Rule("plot", _summary, (FIGURES_MANIFEST, FIGURE, REPORT)),
}
