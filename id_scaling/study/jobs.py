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


def _named(study: Targets) -> set[str]:
    """Return the models and tokenizers of a study, as the configuration names them."""
    return {*study.tokenizers.values(), *(model.model_name for model in study.config.models)}


def _once(is_asked: bool) -> list[Wildcards]:
    """Return the wildcards of a job without any, if it is asked for."""
    return [{}] if is_asked else []


def _trained(study: Targets) -> list[Wildcards]:
    return [{"model": name} for name in sorted(_named(study) & set(bundled.TRAINED))]


def _texts_asked(study: Targets) -> bool:
    """Return whether bundled texts are studied, or a model is trained on them."""
    return bool(_trained(study)) or any(data.dataset_name in bundled.DATASETS for data in study.config.datasets)


def _tokenizer_asked(study: Targets) -> bool:
    return bool(_trained(study)) or bundled.TRAINED_TOKENIZER in _named(study)


def _different(names: Iterable[Wildcards]) -> list[Wildcards]:
    """Return wildcards without repetition."""
    return list({tuple(each.values()): each for each in names}.values())


def _shards(study: Targets) -> list[Wildcards]:
    return _different({"dataset": run.dataset, "subset": run.subset} for run in study.runs)


def _checkpoints(study: Targets) -> list[Wildcards]:
    return _different({"model": run.model, "checkpoint": run.checkpoint} for run in study.runs)


def _runs(study: Targets) -> list[Wildcards]:
    return list(map(vars, study.runs))


def _runs_of_hub(study: Targets) -> list[Wildcards]:
    return [vars(run) for run in study.runs if study.is_on_hub(run.model, run.checkpoint)]


def _batches(study: Targets) -> list[Wildcards]:
    return _runs(study) if study.modules and study.estimators else []


def _tables(study: Targets) -> Iterator[Wildcards]:
    for run in study.runs:
        for module in study.modules:
            for estimator in study.estimators:
                yield {**vars(run), "module": module, "estimator": estimator}


def _text(study: Targets, run: Run) -> Wildcards:
    names = {**vars(run), "tokenizer": study.tokenizer_of(run.model)}
    return {axis: names[axis] for axis in TEXT_AXES}


def _plain_texts(study: Targets) -> list[Wildcards]:
    return _different(_text(study, replace(run, control=NONE)) for run in study.runs)


def _shuffled_texts(study: Targets) -> list[Wildcards]:
    return _different(_text(study, run) for run in study.runs if run.control != NONE)


_SMOLLM2 = tuple(f"{bundled.SMOLLM2}/{name}" for name in ("model.safetensors", "tokenizer.json"))
_SOTU = tuple(f"{name}/{shard:04d}.parquet" for name in bundled.DATASETS for shard in range(len(bundled.SOTU_SHARDS)))
_STEPS = tuple(f"{{model}}/step{step}/model.safetensors" for step in bundled.TRAINED_STEPS)
RULES = {
    "prepare_model": Rule(
        "prepare",
        lambda study: _once(bundled.SMOLLM2 in _named(study)),
        _SMOLLM2,
        is_of_session=False,
        is_local=True,
    ),
    "prepare_dataset": Rule(
        "prepare", lambda study: _once(_texts_asked(study)), _SOTU, is_of_session=False, is_local=True
    ),
    "train_tokenizer": Rule(
        "prepare",
        lambda study: _once(_tokenizer_asked(study)),
        (f"{bundled.TRAINED_TOKENIZER}/tokenizer.json",),
        is_of_session=False,
    ),
    "train_model": Rule("prepare", _trained, _STEPS, leased="{model}", is_of_session=False),
    "fetch_dataset": Rule("fetch", _shards, (IDENTITIES["datasets"],), is_local=True),
    "fetch_model": Rule("fetch", _checkpoints, (IDENTITIES["models"],), is_local=True),
    "fetch_weights": Rule("fetch", _runs_of_hub, (WEIGHTS,), is_local=True),
    "fetch_tokenizer": Rule(
        "fetch",
        lambda study: [{"tokenizer": name} for name in study.tokenizers],
        (IDENTITIES["tokenizers"],),
        is_local=True,
    ),
    "chunk_dataset": Rule("chunk", _plain_texts, (CONTEXTS,)),
    "shuffle_contexts": Rule("chunk", _shuffled_texts, (CONTEXTS,)),
    "extract_activations": Rule("extract", _runs, (MANIFEST, TOKENS), leased=RUN),
    "estimate_batch": Rule("", _batches, (BATCH,)),
    "estimate_dimension": Rule("estimate", _tables, (TABLE,), leased=STAGING, is_local=True),
    "summarize": Rule("summarize", lambda study: _once(bool(study.estimators)), SUMMARIES),
    "plot": Rule("plot", lambda study: _once(bool(study.estimators)), (FIGURES_MANIFEST, FIGURE, REPORT)),
}
