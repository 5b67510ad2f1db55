"""A small study run verb by verb in this process, as the workflow does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from id_scaling.cli import main
from id_scaling.study import Study


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
            ("chunk", self.study.chunk_settings(dataset, "0", self.study.tokenizer_of(model), "none"), "contexts"),
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
        if verb == "extract":
            options += ["--execution", self.study.extract_execution(self.run.model), "--threads", "1"]
        assert main([verb, "--settings", settings, *options, "--output", self.paths[output]]) == 0

    def estimate(self, module: str, estimator: str, output: Path) -> list[str]:
        """Return the arguments of one estimate."""
        settings = self.study.estimate_settings(self.run, module, estimator)
        return ["estimate", "--settings", settings, "--manifest", self.paths["manifest"], "--output", str(output)]
