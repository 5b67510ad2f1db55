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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from id_scaling.errors import StoreError
from id_scaling.runtime.atomic_files import digest
from id_scaling.sources import bundled
from id_scaling.sources.datasets import dataset_content
from id_scaling.sources.derived import is_derived
from id_scaling.sources.file_hashes import FOLDER, FileHashes
from id_scaling.sources.models import RESOURCES, WEIGHTS_FOLDER, model_content, tokenizer_content
from id_scaling.storage.layout import Run, contexts_path, figures_manifest_path, identity_path, ids_path, run_folder
from id_scaling.storage.records import key_of, read_facts, read_footer, read_record, summary_settings
from id_scaling.study.study import Study
from id_scaling.text.shuffling import NONE

MISSING, FORCED = "not there", "forced"
UNREADABLE = "its record is of an older version, or damaged"

# Says whether a job is forced, from the name of its rule and its outputs.
IsForced = Callable[[str, Sequence[str]], bool]
# What an output is made from: hashes by name, None where one is known only once it is fetched.
Content = dict[str, str | None]


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
        self._keys: dict[Path, str | None] = {}
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
        named = {*self.study.tokenizers.values(), *(model.model_name for model in self.study.config.models)}
        smollm2 = RESOURCES / bundled.SMOLLM2 / "model.safetensors"
        texts = [RESOURCES / "sotu" / f"{shard:04d}.parquet" for shard in range(len(bundled.SOTU_SHARDS))]
        for rule, outputs in (("prepare_model", [smollm2]), ("prepare_dataset", texts)):
            if self._is_forced(rule, list(map(str, outputs))):
                self._forced |= set(map(str, outputs))
        if not named & {*bundled.TRAINED, bundled.TRAINED_TOKENIZER}:
            return
        tokenizer = RESOURCES / bundled.TRAINED_TOKENIZER / "tokenizer.json"
        upstream = {texts[0]: False}
        settings = self.study.train_tokenizer_settings()
        self._compare("train_tokenizer", [tokenizer], _training(tokenizer.parent), settings, {}, upstream)
        for name in sorted(named & set(bundled.TRAINED)):
            outputs = [RESOURCES / name / f"step{step}/model.safetensors" for step in bundled.TRAINED_STEPS]
            settings = self.study.train_model_settings(name)
            self._compare("train_model", outputs, _training(RESOURCES / name), settings, {}, {tokenizer: True})

    def _compare_source(
        self,
        rule: str,
        path: Path,
        settings: str,
        content: Content,
        files: Sequence[str],
        is_on_hub: bool,
        made: Path | None = None,
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
        made : Path, optional
            The folder of weights that are made here and not fetched. Where one is missing or was changed, they are made
            again; what was made of them before is not.

        Returns
        -------
        mapping
            Fields of the identity by name; None where one is not known, and is taken as it was.
        """
        identity = _read_or_empty(path)

        def read() -> Mapping[str, Any]:
            for name, digits in identity["weights"].items() if made else ():
                if not (made / name).is_file() or self._hashes.sha256(made / name) != digits:
                    raise _NotWholeError(f"{made / name} is not what was made")
            return {"settings": identity["settings"], "made_from": {name: identity[name] for name in content}}

        self._compare(rule, [path], read, settings, dict(content), dict.fromkeys(map(Path, files), False))
        is_same = identity.get("settings") == json.loads(settings) and not _differing(
            {name: identity.get(name) for name in content}, content
        )
        if str(path) in self.fresh or is_same:
            return identity
        unknown = None if is_on_hub and not identity else "unknown"
        return defaultdict(lambda: unknown, {name: value for name, value in content.items() if value is not None})

    def _model(self, run: Run) -> Content:
        """Compare the identity of a checkpoint, once; return its weights and its config."""
        path = self.study.identity_path(run.model, run.checkpoint)
        if path not in self._sources:
            config, checkpoint = self.study.models[run.model], self.study.checkpoints[run.checkpoint]
            self._sources[path] = self._compare_source(
                "fetch_model",
                path,
                self.study.fetch_model_settings(run.model, run.checkpoint),
                model_content(config.model_name, checkpoint, config.allow_pickle, self._hashes.sha256),
                self.study.model_files(run.model, run.checkpoint),
                self.study.is_on_hub(run.model, run.checkpoint),
                path.parent / WEIGHTS_FOLDER if is_derived(config.model_name, checkpoint) else None,
            )
        return self._sources[path]

    def _tokenizer(self, tokenizer: str) -> Content:
        """Compare the identity of a tokenizer, once; return its content."""
        path = identity_path(self.session, "tokenizers", tokenizer)
        if path not in self._sources:
            content = tokenizer_content(self.study.tokenizers[tokenizer], self._hashes.sha256)
            settings, files = self.study.fetch_tokenizer_settings(tokenizer), self.study.tokenizer_files(tokenizer)
            self._sources[path] = self._compare_source("fetch_tokenizer", path, settings, content, files, not content)
        return self._sources[path]

    def _shard(self, run: Run) -> Content:
        """Compare the identity of a shard, once; return its content."""
        path = identity_path(self.session, "datasets", run.dataset, str(run.subset))
        if path not in self._sources:
            files = self.study.shard_files(run.dataset, run.subset)
            content = dataset_content(list(map(Path, files)), self._hashes)
            settings = self.study.fetch_dataset_settings(run.dataset, str(run.subset))
            self._sources[path] = self._compare_source("fetch_dataset", path, settings, content, files, not files)
        return self._sources[path]

    def _contexts_key(self, run: Run) -> str | None:
        """Compare the contexts of a run, once for all runs that share them; return their key."""
        tokenizer = self.study.tokenizer_of(run.model)
        path = contexts_path(self.session, run, tokenizer)
        if path in self._keys:
            return self._keys[path]
        if run.control == NONE:
            rule, made_from = (
                "chunk_dataset",
                {
                    "shard": self._shard(run)["sha256"],
                    "tokenizer": self._tokenizer(tokenizer)["sha256"],
                },
            )
            upstream = {
                identity_path(self.session, "datasets", run.dataset, str(run.subset)): False,
                identity_path(self.session, "tokenizers", tokenizer): False,
            }
        else:
            plain = replace(run, control=NONE)
            rule, made_from = "shuffle_contexts", {"contexts": self._contexts_key(plain)}
            upstream = {contexts_path(self.session, plain, tokenizer): False}
        settings = self.study.contexts_settings(run)
        self._keys[path] = self._compare(rule, [path], lambda: read_facts(path), settings, made_from, upstream)
        return self._keys[path]

    def _compare_run(self, run: Run) -> None:
        """Compare the extraction and the tables of a run."""
        folder = run_folder(self.session, run)
        contexts = contexts_path(self.session, run, self.study.tokenizer_of(run.model))
        manifest, identity = folder / "manifest.json", self.study.identity_path(run.model, run.checkpoint)
        model = self._model(run)
        made_from = {
            "contexts": self._contexts_key(run),
            "weights": model["weights_sha256"],
            "config": model["config_sha256"],
        }
        outputs, settings = [manifest, folder / "tokens.parquet"], self.study.extract_settings(run)
        upstream = {contexts: False, identity: False}
        extraction = self._compare(
            "extract_activations", outputs, lambda: _whole_extraction(manifest), settings, made_from, upstream
        )
        made = _read_or_empty(manifest).get("digest")
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
        outputs, tables = list(map(Path, self.study.summaries())), list(map(Path, self.study.tables()))
        made_from = {"tables": digest(self._seals) if len(self._seals) == len(tables) else None}
        read = partial(_summary_record, outputs[0])
        settings = self.study.summarize_settings()
        return self._compare("summarize", outputs, read, settings, made_from, dict.fromkeys(tables, True))

    def _compare_figures(self, summary: str | None) -> None:
        """Compare the figures and the report."""
        record, table = figures_manifest_path(self.session), self.session / "summary.parquet"
        outputs = [record, *map(Path, [*self.study.figures(), self.study.report()])]

        def read() -> dict[str, Any]:
            figures = read_record(record)
            if not table.is_file() or figures["summary"] != self._hashes.sha256(table):
                raise _NotWholeError(f"drawn from other content of {table}")
            return figures

        settings = self.study.plot_settings()
        self._compare("plot", outputs, read, settings, {"summary": summary}, {table: True})


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
