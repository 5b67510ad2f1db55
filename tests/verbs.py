"""A small study run verb by verb in this process, as the workflow does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from id_scaling.cli.main import main
from id_scaling.storage.layout import contexts_path, figures_manifest_path, identity_path, ids_path, run_folder
from id_scaling.study.study import Study
from id_scaling.text.shuffling import NONE


class Session:
    """A small study, run verb by verb as the workflow does up to the extraction."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.study = folder, Study(config)
        self.run = self.study.runs[0]
        model, dataset = self.run.model, self.run.dataset
        names = ("model", "tokenizer", "shard", "contexts", "manifest")
        self.paths = {name: str(folder / name / f"{name}.json") for name in names}
        for verb, settings, output in (
            ("fetch-model", self.study.fetch_model_settings(model, self.run.checkpoint), "model"),
            ("fetch-tokenizer", self.study.fetch_tokenizer_settings(self.study.tokenizer_of(model)), "tokenizer"),
            ("fetch-dataset", self.study.fetch_dataset_settings(dataset, "0"), "shard"),
            ("chunk", self.study.contexts_settings(self.run), "contexts"),
            ("extract", self.study.extract_settings(self.run), "manifest"),
        ):
            self.do(verb, settings, output)

    def do(self, verb: str, settings: str, output: str) -> None:
        """Run one verb in this process."""
        inputs = {
            "chunk": ["shard", "tokenizer"],
            "extract": ["contexts", "model"],
        }.get(verb, [])
        options = [part for name in inputs for part in (f"--{name}", self.paths[name])]
        if verb == "fetch-model":
            options += ["--execution", self.study.fetch_model_execution(self.run.model)]
        if verb == "fetch-tokenizer":
            options += ["--execution", self.study.fetch_tokenizer_execution()]
        if verb == "chunk":
            options += ["--execution", self.study.chunk_execution(self.run.dataset)]
        if verb == "extract":
            options += ["--execution", self.study.extract_execution(self.run.model), "--threads", "1"]
        assert main([verb, "--settings", settings, *options, "--output", self.paths[output]]) == 0

    def estimate(self, module: str, estimator: str, output: Path) -> list[str]:
        """Return the arguments of one estimate."""
        settings = self.study.estimate_settings(self.run, module, estimator)
        return ["estimate", "--settings", settings, "--manifest", self.paths["manifest"], "--output", str(output)]


def run_study(config: dict[str, Any], has_figures: bool = True) -> Path:
    """Run a study of local models and texts in this process, to its report or summary; return its session."""
    study = Study(config)
    session = Path(study.session)
    for run in study.runs:
        model = identity_path(session, "models", run.model, run.checkpoint)
        tokenizer = identity_path(session, "tokenizers", study.tokenizer_of(run.model))
        shard = identity_path(session, "datasets", run.dataset, str(run.subset))
        plain = contexts_path(session, replace(run, control=NONE), study.tokenizer_of(run.model))
        contexts = contexts_path(session, run, study.tokenizer_of(run.model))
        manifest = run_folder(session, run) / "manifest.json"
        execution = study.fetch_model_execution(run.model)
        do("fetch-model", model, study.fetch_model_settings(run.model, run.checkpoint), execution=execution)
        execution = study.fetch_tokenizer_execution()
        settings = study.fetch_tokenizer_settings(study.tokenizer_of(run.model))
        do("fetch-tokenizer", tokenizer, settings, execution=execution)
        do("fetch-dataset", shard, study.fetch_dataset_settings(run.dataset, str(run.subset)))
        of_plain = study.contexts_settings(replace(run, control=NONE))
        execution = study.chunk_execution(run.dataset)
        do("chunk", plain, of_plain, shard=shard, tokenizer=tokenizer, execution=execution)
        if run.control != NONE:
            do("shuffle", contexts, study.contexts_settings(run), contexts=plain)
        execution = study.extract_execution(run.model)
        do("extract", manifest, study.extract_settings(run), contexts=contexts, model=model, execution=execution)
        for module in study.modules:
            for estimator in study.estimators:
                output = ids_path(session, run, module, estimator)
                do("estimate", output, study.estimate_settings(run, module, estimator), manifest=manifest)
    summary = [f"--{kind}={session}/summary.{suffix}" for kind, suffix in SUMMARIES.items()]
    assert main(["summarize", "--settings", study.summarize_settings(), f"--session={session}", *summary]) == 0
    if not has_figures:
        return session
    figures = [*study.figures(), study.report()]
    drawn = [f"--session={session}", f"--record={figures_manifest_path(session)}", "--output", *figures]
    assert main(["plot", "--settings", study.plot_settings(), *drawn]) == 0
    return session


SUMMARIES = {"parquet": "parquet", "csv": "csv", "text": "txt"}


def do(verb: str, output: Path, settings: str, **inputs: object) -> None:
    """Run one verb in this process, unless what it writes is there."""
    if not output.is_file():
        options = [f"--{name}={value}" for name, value in inputs.items()]
        assert main([verb, "--settings", settings, *options, f"--output={output}"]) == 0
