"""A whole session verified: what of it is missing, stale, damaged or suspicious.

Every record, table and layer file that the study asks for is read to its last byte and held against its checksum, the
settings it would be made with now, and what it was made from: local models and shards too, those of the hub not again.
"""

from __future__ import annotations

import math
import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import polars as pl

from id_scaling.errors import StoreError, UnsealedError
from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.results.text_table import mixture
from id_scaling.runtime.atomic_files import sha256
from id_scaling.sources.models import known_identity
from id_scaling.storage.layout import ASSEMBLED, EVERY_RUN, Run, ids_path, run_folder
from id_scaling.storage.records import check_seal, read_note, read_record, read_table
from id_scaling.study.jobs import job_of
from id_scaling.study.staleness import MISSING, UNREADABLE, Staleness
from id_scaling.study.study import Study

T = TypeVar("T")
# In the order of their weight: the first three make a session not whole.
KINDS = ("damaged", "stale", "missing", "suspicious")
MOST_SHOWN = 20
# Reasons of what was made otherwise; that it follows from what is stale or damaged is said of that only.
OTHER = ("made with other", "made from other", "made from another", "drawn from other")
# Files that one command is to make anew.
MOST_MENDED = 100
# Above this share of clouds that are not `ok`, an estimator is not one for this data.
MANY_FAILED = 0.1
# A loss this much above that of guessing, in nats a token, is that of a broken model or of the wrong tokens.
WORSE_THAN_GUESSING = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be: its kind, the file, what is the matter, and what is to be made anew."""

    kind: str
    path: Path
    words: str
    target: Path | None = None

    def __str__(self) -> str:
        return f"{self.kind:<11}{self.path}: {self.words}"


def check_session(study: Study) -> list[Finding]:
    """Return all that is not as it should be in the session of a study."""
    return _Check(study).findings


def report(findings: list[Finding], options: Sequence[str] = ()) -> str:
    """Return findings as text, the first of each kind, how many there are, and the command that mends them.

    Parameters
    ----------
    findings : list of Finding
    options : sequence of str
        Options of Snakemake in that command; the last may not take a list, which targets would become part of.
    """
    lines = []
    for kind in KINDS:
        found = [finding for finding in findings if finding.kind == kind]
        lines += [str(finding) for finding in found[:MOST_SHOWN]]
        if len(found) > MOST_SHOWN:
            lines.append(f"{kind:<11}… and {len(found) - MOST_SHOWN} more")
    targets = sorted({str(finding.target) for finding in findings if finding.target})
    if targets:
        listed, n_more = targets[:MOST_MENDED], len(targets) - MOST_MENDED
        there = [target for target in listed if os.path.lexists(target)]
        remove = f"rm -f {shlex.join(there)} && " if there else ""
        then = f"; then check again, for {n_more} more" if n_more > 0 else ""
        lines.append(f"to mend    {remove}{shlex.join(['snakemake', *options, 'all', *listed])}{then}")
    counts = ", ".join(f"{sum(one.kind == kind for one in findings)} {kind}" for kind in KINDS)
    return "\n".join([*lines, counts])


def is_whole(findings: list[Finding]) -> bool:
    """Return whether nothing is missing, stale or damaged."""
    return all(finding.kind == "suspicious" for finding in findings)


class _Check:
    """The findings of one session; what several jobs have in common is read once."""

    def __init__(self, study: Study) -> None:
        self.study, self.session = study, Path(study.session)
        self.findings: list[Finding] = []
        self.made_of: dict[Any, list[Path]] = defaultdict(list)  # weights and contexts -> manifests
        self.staleness = Staleness(study)
        for output, reason in self.staleness.reasons.items():
            path = Path(output)
            if reason.startswith(OTHER) and not self._follows(reason):
                self._add("stale", path, reason)
            elif reason == MISSING and "resources" not in path.parts[:1]:  # what sessions share is made when needed
                self._add("missing", path, reason)
        for path in map(Path, study.identities()):
            self._read(path, read_record)
        for path in map(Path, study.contexts()):
            self._read(path, read_table)
        for run in study.runs:
            try:
                self._check_run(run)
            except (KeyError, pl.exceptions.ColumnNotFoundError) as error:  # a sealed file of another version, or kind
                self._add("stale", run_folder(self.session, run) / "manifest.json", f"a file of the run lacks {error}")
        self._check_alike()
        if study.estimators:
            self._check_summary()
            self._check_figures()
        self._check_leftovers()
        found = {finding.path for finding in self.findings}
        for path in (Path(output) for output, reason in self.staleness.reasons.items() if reason == UNREADABLE):
            if path not in found:  # whole, but without a record of what it was made from
                self._add("stale", path, UNREADABLE)

    def _follows(self, reason: str) -> bool:
        """Return whether figures are stale because their summary is damaged, which is said of the summary."""
        if not reason.startswith("drawn from other"):
            return False
        try:
            check_seal(Path(self.study.summaries()[0]))
        except StoreError:
            return True
        return False

    def _add(self, kind: str, path: Path, words: str, target: Path | None = None) -> None:
        self.findings.append(Finding(kind, path, words, None if kind == "suspicious" else target or path))

    def _read(self, path: Path, reader: Callable[[Path], T], target: Path | None = None) -> T | None:
        """Return what a reader gives; where the file is not there or damaged, that is found."""
        if not path.is_file():
            if str(path) not in self.staleness.reasons:
                self._add("missing", path, "not there", target)
            return None
        try:
            return reader(path)
        except UnsealedError:
            self._add("stale", path, "holds no checksum: cut short, or written by an older version")
        except (StoreError, OSError) as error:
            self._add("damaged", path, str(error).removeprefix(f"{path}: ").partition("; ")[0], target)
        return None

    def _check_run(self, run: Run) -> None:
        """Check the files of a run."""
        model = known_identity(self.study.identity_path(run.model, run.checkpoint))
        made, tokens_path = job_of(self.study, "extract_activations", vars(run)).outputs
        manifest, assembled = self._read(made, read_record), made.with_name(ASSEMBLED)
        if manifest:
            self.made_of[manifest["weights"], manifest["contexts"]].append(made)
            self._check_layers(made, manifest["files"])
            if assembled.is_file():  # of use to an extraction that goes on
                self._read(assembled, read_record, made)
        tokens = self._read(tokens_path, read_table)
        if tokens:
            if manifest and tokens[1]["digest"] != manifest["digest"]:
                self._add("stale", tokens_path, "made by another extraction than its manifest")
            n_tokens = model["architecture"]["vocab_size"] if model else math.inf
            self._check_losses(tokens_path, tokens[0], n_tokens)
        for module in self.study.modules:
            for estimator in self.study.estimators:
                self._check_ids(run, module, estimator)

    def _check_layers(self, manifest: Path, files: Mapping[str, Any]) -> None:
        """Check the layer files that a manifest names."""
        for name, facts in files.items():
            path = manifest.with_name(name)
            if self._read(path, sha256, manifest) not in (None, facts["sha256"]):
                self._add("damaged", path, "its content is not what the manifest says", manifest)

    def _check_losses(self, path: Path, tokens: pl.DataFrame, n_tokens: float) -> None:
        """Find losses that no working model has."""
        losses = tokens.filter(pl.col("position") > 0)["loss"].cast(pl.Float64)
        n_wrong = losses.len() - losses.is_finite().sum()
        if n_wrong:
            self._add("suspicious", path, f"the loss of {n_wrong} of {losses.len()} tokens is not a finite number")
        elif (mean := cast("float", losses.mean())) > math.log(n_tokens) + WORSE_THAN_GUESSING:
            guessing = f"guessing among {n_tokens} tokens has {math.log(n_tokens):.2f}"
            self._add("suspicious", path, f"mean loss {mean:.2f} nats/token, {guessing}")

    def _check_ids(self, run: Run, module: str, estimator: str) -> None:
        """Check one table of IDs."""
        path = ids_path(self.session, run, module, estimator)
        found = self._read(path, read_table)
        for words in _strange_ids(found[0].filter(~self._is_of_equal_tokens(module))) if found else ():
            self._add("suspicious", path, words)

    def _is_of_equal_tokens(self, module: str) -> pl.Expr:
        """Return which estimates are degenerate by definition: at `emb` equal tokens are equal points, if all count."""
        views = self.study.config.cacheing_config.drawn_views
        keeping = [name for name, view in views.items() if view.duplicates == "keep"]
        return pl.col("view").is_in(keeping) & (pl.lit(module) == "emb") & (pl.col("status") == "degenerate")

    def _check_alike(self) -> None:
        """Find runs of one text whose weights are equal to the last bit."""
        for paths in self.made_of.values():
            for path in paths[1:]:
                self._add("suspicious", path, f"the same weights, and the same contexts, as {paths[0]}")

    def _check_summary(self) -> None:
        """Check the table of the session, and what is written of it as text."""
        path, *as_text = map(Path, self.study.summaries())
        summary = self._read(path, lambda path: read_table(path)[0])
        if summary is None:
            return
        if "versions" in summary.columns and summary["versions"].n_unique() > 1:
            self._add("suspicious", path, "runs of different library versions, see its column `versions`")
        if words := mixture({kind: set(summary[kind]) for kind in ("dtype", "device") if kind in summary.columns}):
            self._add("suspicious", path, words)
        self._check_files(path, as_text, read_note(path, "files"))

    def _check_figures(self) -> None:
        """Check the figures and the report against the record of them."""
        path, *figures = job_of(self.study, "plot", {}).outputs
        record = self._read(path, read_record)
        self._check_files(path, figures, record and record["files"])

    def _check_files(self, record: Path, paths: Iterable[Path], files: Mapping[str, str] | None) -> None:
        """Check files without a seal against the checksums that a record has of them."""
        for path in paths:
            digits = self._read(path, sha256)
            if files is not None and digits is not None:
                name = str(path.relative_to(self.session))
                if name not in files:
                    self._add("stale", path, f"{record.name} has no checksum of it")
                elif digits != files[name]:
                    self._add("damaged", path, f"its content is not what {record.name} says")

    def _check_leftovers(self) -> None:
        """Find what killed jobs left, and runs that the study does not ask for."""
        asked = {run_folder(self.session, run) for run in self.study.runs}
        for path in sorted(self.session.glob(f"{EVERY_RUN}/")):
            if path not in asked:
                self._add("suspicious", path, "a run that this study does not ask for")
            elif (path / "parts").is_dir():
                self._add("suspicious", path / "parts", "an extraction that is going on, or was cut short")


def _strange_ids(table: pl.DataFrame) -> Iterator[str]:
    """Yield what is strange in a table of IDs."""
    is_ok = table["status"] == "ok"
    for (cloud,), part in table.group_by("cloud", maintain_order=True):
        failed = part.filter(pl.col("status") != "ok")["status"]
        if len(failed) > MANY_FAILED * len(part):
            counts = ", ".join(f"{n} {word}" for word, n in failed.value_counts(sort=True).rows())
            kind = "" if cloud == CONTEXT else f" {cloud}"
            yield f"{len(failed)} of {len(part)}{kind} clouds are not ok: {counts}"
    values = table.filter(is_ok)["value"]
    n_impossible = len(values) - (values.is_finite() & (values > 0)).sum()
    if n_impossible:
        yield f"{n_impossible} IDs are ok and not a positive number"
