"""Which outputs of a study have to be made, and why: each output's record compared with what the study would make.

An output is what its settings and what it was made from say; `storage.records.key_of` is the hash of both. The study
gives what an output would be now, the record inside the output says what it is. So the answer depends on outputs and
sources only: not on `.snakemake`, on times, or on where the session is.

Sources are compared by content (`sources.file_hashes`); a source of the hub is what its identity says. Records are
read, not verified: `check` reads every byte.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from id_scaling.errors import StoreError
from id_scaling.results.inputs import documents_digest, seals_digest
from id_scaling.sources import bundled
from id_scaling.sources.base import WEIGHTS_FOLDER, ModelSource
from id_scaling.sources.file_hashes import FOLDER, FileHashes
from id_scaling.storage.context_hashes import content_of, recipe_of_control
from id_scaling.storage.layout import Run, identity_path, ids_path
from id_scaling.storage.records import key_of, read_facts, read_footer, read_record, summary_settings
from id_scaling.study.jobs import contexts_job, job_of, jobs_of, plain_contexts_job
from id_scaling.study.study import Study
from id_scaling.text.shuffling import NONE

MISSING, FORCED = "not there", "forced"
UNREADABLE = "its record is of an older version, or damaged"

# Says whether a job is forced, from the name of its rule and its outputs.
IsForced = Callable[[str, Sequence[str]], bool]
# What an output is made from: hashes by name, None where one is known only once it is fetched.
Content = dict[str, str | None]
# Stands for a content that nothing has: of what is yet to be made from other sources, or with other settings.
UNLIKE = "unknown"


@dataclass(frozen=True)
class Contexts:
    """What is known of contexts as they would be now.

    Parameters
    ----------
    key, recipe : str or None
        What decides on them, with what they are made from as it is (`storage.records.key_of`), and as it was told to be
        made (`storage.context_hashes.recipe_of`); None where that is not known yet.
    facts : mapping
        Of their table, where they are as they would be; of others nothing, until they are cut.
    """

    key: str | None
    recipe: str | None
    facts: Mapping[str, Any]

    def content(self, field: Callable[[Mapping[str, Any]], str], key: str | None, recipe: str | None) -> str | None:
        """Return some of what they hold, as what was made of them would be now.

        Parameters
        ----------
        field : callable
            Returns it from their facts.
        key, recipe : str or None
            Of the contexts that it was made of. Contexts that are to be cut again with the same are expected to hold
            the same, which is None here; others are not.
        """
        if self.facts:
            return field(self.facts)
        is_expected = self.recipe in (None, recipe) if self.key is None else self.key == key
        return None if is_expected else UNLIKE


class Staleness:
    """The outputs of a study that have to be made.

    Parameters
    ----------
    study : Study
        What would be made.
    is_forced : callable, optional
        Says which jobs are forced; what follows a forced job is stale.

    Attributes
    ----------
    reasons : dict of str
        Why each job has to run that has to, by its first output, upstream before downstream.
    fresh : set of str
        The first outputs of all other jobs.
    """

    def __init__(self, study: Study, is_forced: IsForced = lambda rule, outputs: False) -> None:
        self.study, self.session, self._is_forced = study, Path(study.session), is_forced
        self.reasons: dict[str, str] = {}
        self.fresh: set[str] = set()
        self._forced: set[str] = set()
        self._hashes = FileHashes(self.session / FOLDER)
        self._sources: dict[Path, Content] = {}
        self._contexts: dict[Path, Contexts] = {}
        self._seals: list[str] = []
        self._compare_bundled()
        for run in study.runs:
            self._compare_run(run)
        if study.estimators:
            self._compare_figures(self._compare_summary())

    @property
    def stale(self) -> dict[str, str]:
        """The reasons of outputs that are there, at least in part, and are not what they would be now."""
        return {output: reason for output, reason in self.reasons.items() if reason != MISSING}

    # ---- one job ----------------------------------------------------------------------------------------------

    def _compare(
        self,
        rule: str,
        outputs: Sequence[Path],
        read: Callable[[], Mapping[str, Any]],
        settings: str,
        made_from: Content,
        upstream: Mapping[Path, bool],
    ) -> str | None:
        """Compare one job; return the key of its output as it would be made now, None where that is not known.

        Parameters
        ----------
        rule, outputs : str, sequence of Path
            The job; the first output names it.
        read : callable
            Returns the record of the output, with its `settings` and what it was `made_from`.
        settings, made_from : str, mapping
            What these would be now.
        upstream : mapping of Path to bool
            The outputs that the job reads, and whether this output is stale whenever one of them is; else `made_from`
            says so, and only a forced job makes what follows it run.
        """
        name, expected = str(outputs[0]), {"settings": json.loads(settings), "made_from": made_from}
        reason: str | None
        follows = [path for path in map(str, upstream) if path in self._forced]
        if follows or self._is_forced(rule, [str(output) for output in outputs]):
            self._forced.add(name)
            reason = f"made from {follows[0]}, which is {FORCED}" if follows else FORCED
        else:
            stale = (path for path, is_followed in upstream.items() if is_followed and str(path) in self.reasons)
            reason = _unlike(outputs, read, expected) or next(
                (f"made from {path}, which is stale" for path in stale), None
            )
        if reason is None:
            self.fresh.add(name)
        else:
            self.reasons[name] = reason
        return None if None in expected["made_from"].values() else key_of(expected)

    # ---- every job, upstream first ----------------------------------------------------------------------------

    def _compare_bundled(self) -> None:
        """Compare what is prepared and trained here, once for all sessions of a clone."""
        (weights, _), texts = (job_of(self.study, rule, {}).outputs for rule in ("prepare_model", "prepare_dataset"))
        for rule, outputs in (("prepare_model", [weights]), ("prepare_dataset", texts)):
            if self._is_forced(rule, list(map(str, outputs))):
                self._forced |= set(map(str, outputs))
        upstream = {texts[0]: False}
        for job in jobs_of(self.study, "train_tokenizer"):
            (tokenizer,), settings = job.outputs, self.study.train_tokenizer_settings()
            self._compare(job.rule, job.outputs, _training(tokenizer.parent), settings, {}, upstream)
            upstream = {tokenizer: True}
        for job in jobs_of(self.study, "train_model"):
            settings = self.study.train_model_settings(job.wildcards["model"])
            self._compare(job.rule, job.outputs, _training(job.outputs[0].parents[1]), settings, {}, upstream)

    def _compare_source(
        self,
        rule: str,
        path: Path,
        settings: str,
        content: Content,
        files: Sequence[str],
        is_on_hub: bool,
        check: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> Content:
        """Compare the identity of a source with the source as it is now; return what is known of its content.

        Parameters
        ----------
        content : mapping
            Fields of the identity as they would be now, as far as files on this machine say it.
        files : sequence of str
            These files.
        is_on_hub : bool
            Whether it is fetched from the hub: then what follows is not made again because an identity is missing.
        check : callable, optional
            Raises `_NotWholeError` where what an identity names is not as it says, or may not be: it is made again;
            what was made of it before is not.

        Returns
        -------
        mapping
            Fields of the identity by name; None where one is not known, and is taken as it was.
        """
        identity = _read_or_empty(path)

        def read() -> Mapping[str, Any]:
            if check:
                check(identity)
            return {"settings": identity["settings"], "made_from": {name: identity[name] for name in content}}

        self._compare(rule, [path], read, settings, dict(content), dict.fromkeys(map(Path, files), False))
        is_same = identity.get("settings") == json.loads(settings) and not _differing(
            {name: identity.get(name) for name in content}, content
        )
        if str(path) in self.fresh or is_same:
            return identity
        unknown = None if is_on_hub and not identity else UNLIKE
        return defaultdict(lambda: unknown, {name: value for name, value in content.items() if value is not None})

    def _model(self, run: Run) -> Content:
        """Compare the identity of a checkpoint, once; return its weights and its config."""
        path = self.study.identity_path(run.model, run.checkpoint)
        if path not in self._sources:
            source, allow_pickle = self._model_source(run), self.study.models[run.model].allow_pickle
            self._sources[path] = self._compare_source(
                "fetch_model",
                path,
                self.study.fetch_model_settings(run.model, run.checkpoint),
                source.content(allow_pickle, self._hashes.sha256),
                self.study.model_files(run.model, run.checkpoint),
                source.is_remote,
                partial(self._check_weights, path, run),
            )
        return self._sources[path]

    def _model_source(self, run: Run) -> ModelSource:
        """Return the source of the checkpoint of a run."""
        return self.study.model_source(run.model, self.study.checkpoints[run.checkpoint])

    def _check_weights(self, path: Path, run: Run, identity: Mapping[str, Any]) -> None:
        """Raise an error where weights that were made here are missing or changed, or are pickled and may not be."""
        if identity["is_pickled"] and not self.study.models[run.model].allow_pickle:
            raise _NotWholeError("its weights are pickled, which allow_pickle does not allow")
        folder = path.parent / WEIGHTS_FOLDER
        for name, digits in identity["weights"].items() if self._model_source(run).is_made else ():
            if not (folder / name).is_file() or self._hashes.sha256(folder / name) != digits:
                raise _NotWholeError(f"{folder / name} is not what was made")

    def _weights(self, run: Run, noted: str | None) -> Content:
        """Return the weights and the config of a checkpoint as an extraction would read them now.

        Those that are made here are expected to come out as before where they are made of the same, which the
        extraction has `noted`.
        """
        model = self._model(run)
        if (
            self._model_source(run).is_made
            and model["weights_sha256"] == UNLIKE
            and model["source_sha256"] in (UNLIKE, noted)
        ):
            return {"weights": None, "config": None}
        return {"weights": model["weights_sha256"], "config": model["config_sha256"]}

    def _tokenizer(self, tokenizer: str) -> Content:
        """Compare the identity of a tokenizer, once; return its content."""
        (path,) = job_of(self.study, "fetch_tokenizer", {"tokenizer": tokenizer}).outputs
        if path not in self._sources:
            content = self.study.tokenizer_source(tokenizer).content(self._hashes.sha256)
            settings, files = self.study.fetch_tokenizer_settings(tokenizer), self.study.tokenizer_files(tokenizer)
            self._sources[path] = self._compare_source("fetch_tokenizer", path, settings, content, files, not content)
        return self._sources[path]

    def _shard(self, run: Run) -> Content:
        """Compare the identity of a shard, once; return its content."""
        (path,) = job_of(self.study, "fetch_dataset", vars(run)).outputs
        if path not in self._sources:
            files, source = self.study.shard_files(run.dataset, run.subset), self.study.dataset_source(run.dataset)
            content = source.content(run.subset, self._hashes)
            settings = self.study.fetch_dataset_settings(run.dataset, str(run.subset))
            self._sources[path] = self._compare_source(
                "fetch_dataset", path, settings, content, files, source.is_remote
            )
        return self._sources[path]

    def _contexts_of(self, run: Run) -> Contexts:
        """Compare the contexts of a run, once for all runs that share them; return what is known of them."""
        job, tokenizer = contexts_job(self.study, run), self.study.tokenizer_of(run.model)
        (path,) = job.outputs
        if path in self._contexts:
            return self._contexts[path]
        facts, settings = _facts_or_empty(path), self.study.contexts_settings(run)
        read = partial(_unbroken_facts, path, self.study.datasets[run.dataset].max_broken_share)
        if run.control == NONE:
            sources = [("datasets", run.dataset, str(run.subset)), ("tokenizers", tokenizer)]
            upstream = {identity_path(self.session, *names): False for names in sources}
            made_from = self._text_of(run, tokenizer, facts.get("tokenizer_source_sha256"))
            recipe = key = self._compare(job.rule, [path], read, settings, made_from, upstream)
        else:
            plain, noted = self._contexts_of(replace(run, control=NONE)), facts.get("plain")
            content = plain.content(content_of, noted, noted) if facts or plain.facts else None
            upstream = {plain_contexts_job(self.study, run).outputs[0]: False}
            key = self._compare(job.rule, [path], read, settings, {"contexts": content}, upstream)
            recipe = plain.recipe and recipe_of_control(json.loads(settings), plain.recipe)
        self._contexts[path] = Contexts(key, recipe, _facts_or_empty(path) if str(path) in self.fresh else {})
        return self._contexts[path]

    def _text_of(self, run: Run, tokenizer: str, noted: str | None) -> Content:
        """Return what plain contexts are made from.

        The tokenizer of a GGUF file is made here: it is expected to be as before where the file is the `noted` one.
        """
        source = self._tokenizer(tokenizer)
        is_expected = source["sha256"] == UNLIKE and source["source_sha256"] == noted
        return {"shard": self._shard(run)["sha256"], "tokenizer": None if is_expected else source["sha256"]}

    def _compare_run(self, run: Run) -> None:
        """Compare the extraction and the tables of a run."""
        job, (contexts,) = job_of(self.study, "extract_activations", vars(run)), contexts_job(self.study, run).outputs
        manifest, identity = job.outputs[0], self.study.identity_path(run.model, run.checkpoint)
        record = _read_or_empty(manifest)
        key, recipe, source = (record.get(noted) for noted in ("contexts_key", "contexts_recipe", "source_sha256"))
        tokens = self._contexts_of(run).content(itemgetter("tokens_sha256"), key, recipe)
        made_from = {"contexts": tokens, **self._weights(run, source)}
        settings, upstream = self.study.extract_settings(run), {contexts: False, identity: False}
        read = partial(_whole_extraction, manifest)
        extraction = self._compare(job.rule, job.outputs, read, settings, made_from, upstream)
        made = record.get("digest")
        for module in self.study.modules:
            for estimator in self.study.estimators:
                table = ids_path(self.session, run, module, estimator)
                read = partial(self._table_record, table, made)
                settings, made_from = self.study.estimate_settings(run, module, estimator), {"extraction": extraction}
                self._compare("estimate_dimension", [table], read, settings, made_from, {manifest: True})

    def _table_record(self, table: Path, made: str | None) -> dict[str, Any]:
        """Return the record of a table of the extraction `made`, and keep its seal."""
        facts, seal = read_footer(table)
        if made is not None and facts["manifest"] != made:
            raise _NotWholeError("made from another extraction of these settings")
        self._seals.append(seal)
        return facts

    def _compare_summary(self) -> str | None:
        """Compare the summary; return its key."""
        job, tables = job_of(self.study, "summarize", {}), list(map(Path, self.study.tables()))
        made_from = {
            "tables": seals_digest(self._seals) if len(self._seals) == len(tables) else None,
            "documents": self._documents(),
        }
        read = partial(_summary_record, job.outputs[0])
        settings = self.study.summarize_settings()
        return self._compare(job.rule, job.outputs, read, settings, made_from, dict.fromkeys(tables, True))

    def _documents(self) -> str | None:
        """Return the documents of all contexts as one hash; None where some are yet to be cut."""
        paths = {contexts_job(self.study, run).outputs[0] for run in self.study.runs}
        if not all(self._contexts[path].facts for path in paths):
            return None
        return documents_digest(self.session, {path: self._contexts[path].facts for path in paths})

    def _compare_figures(self, summary: str | None) -> None:
        """Compare the figures and the report."""
        job, (table, *_) = job_of(self.study, "plot", {}), map(Path, self.study.summaries())
        record = job.outputs[0]

        def read() -> dict[str, Any]:
            figures = read_record(record)
            if not table.is_file() or figures["summary"] != self._hashes.sha256(table):
                raise _NotWholeError(f"drawn from other content of {table}")
            return figures

        settings = self.study.plot_settings()
        self._compare(job.rule, job.outputs, read, settings, {"summary": summary}, {table: True})


def _unlike(outputs: Sequence[Path], read: Callable[[], Mapping[str, Any]], expected: dict[str, Any]) -> str | None:
    """Return why outputs are not what is expected; None where they are.

    What is not known of `expected` is taken from the record.
    """
    missing = [output for output in outputs if not output.is_file()]
    if missing:
        return MISSING if len(missing) == len(outputs) else f"{missing[0]} is {MISSING}"
    if empty := [output for output in outputs if not output.stat().st_size]:
        return f"{empty[0]} is empty"
    try:
        record = read()
        settings, made_from = record["settings"], record["made_from"]
    except (StoreError, KeyError, TypeError):
        return UNREADABLE
    except _NotWholeError as error:
        return str(error)
    for name, content in expected["made_from"].items():
        if content is None:
            expected["made_from"][name] = made_from.get(name)
    if keys := _differing(settings, expected["settings"]):
        return f"made with other {keys}"
    if keys := _differing(made_from, expected["made_from"]):
        return f"made from other {keys}"
    return None


def _differing(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Return the keys at which two records differ, as text."""
    keys = [key for key in sorted({*recorded, *expected}) if recorded.get(key) != expected.get(key)]
    return ", ".join("content" if key == "sha256" else key.removesuffix("_sha256") for key in keys)


class _NotWholeError(Exception):
    """A file that a record names is not there, or is not as long as it says."""


def _whole_extraction(manifest: Path) -> dict[str, Any]:
    """Return the manifest of a run whose layer files are all there."""
    record = read_record(manifest)
    for name, facts in record["files"].items():
        path = manifest.parent / name
        if not path.is_file():
            raise _NotWholeError(f"{path} is {MISSING}")
        if path.stat().st_size != facts["bytes"]:
            raise _NotWholeError(f"{path} has {path.stat().st_size} bytes, its manifest says {facts['bytes']}")
    tokens = manifest.parent / "tokens.parquet"
    try:
        made = read_facts(tokens)["digest"]
    except StoreError:
        raise _NotWholeError(f"{tokens} is damaged") from None
    if made != record["digest"]:
        raise _NotWholeError(f"{tokens} is of another extraction")
    return record


def _facts_or_empty(path: Path) -> dict[str, Any]:
    """Return the facts of a table, none where it is not there or damaged."""
    try:
        return read_facts(path) if path.is_file() else {}
    except StoreError:
        return {}


def _unbroken_facts(path: Path, max_broken_share: float) -> dict[str, Any]:
    """Return the facts of contexts for which no more records were broken than may be."""
    facts = read_facts(path)
    if facts["n_broken"] > max_broken_share * max(facts["n_records"], 1):
        raise _NotWholeError(f"{facts['n_broken']} of {facts['n_records']} records were broken, more than may be")
    return facts


def _summary_record(path: Path) -> dict[str, Any]:
    """Return the record of a summary."""
    facts = read_facts(path)
    return {"settings": summary_settings(facts), "made_from": facts["made_from"]}


def _read_or_empty(path: Path) -> dict[str, Any]:
    """Return a record, an empty one where it is not there or damaged."""
    try:
        return read_record(path)
    except StoreError:
        return {}


def _training(folder: Path) -> Callable[[], dict[str, Any]]:
    """Return what reads the record of a training."""
    return partial(read_record, folder / bundled.TRAINING_RECORD)
