"""The files that a study makes, as the workflow asks for them: a part of `Study`, read off the table of jobs."""

from __future__ import annotations

from pathlib import Path

from id_scaling.plots.catalog import figures_of, n_sizes
from id_scaling.results.training_steps import training_step
from id_scaling.storage.layout import FIGURE, REPORT, SUMMARIES, identity_path
from id_scaling.study.axes import Axes
from id_scaling.study.jobs import jobs_of


class Targets(Axes):
    """The files of a study; `Study` has its axes."""

    def targets(self) -> list[str]:
        """Return the files that the whole study ends in."""
        made = [*self.identities(), *self.contexts(), *self.manifests()]
        if not self.estimators:
            return made
        return [*made, *self.tables(), *self.summaries(), *self.figures(), self.report()]

    def identities(self) -> list[str]:
        """Return the identities of all models, tokenizers and shards."""
        return self._first_outputs("fetch_model", "fetch_tokenizer", "fetch_dataset")

    def contexts(self) -> list[str]:
        """Return the contexts of all runs, and the plain ones that those of controls are made of."""
        return self._first_outputs("chunk_dataset", "shuffle_contexts")

    def manifests(self) -> list[str]:
        """Return the manifests of all runs."""
        return self._first_outputs("extract_activations")

    def tables(self) -> list[str]:
        """Return the ids tables of all runs."""
        return self._first_outputs("estimate_dimension")

    def summaries(self) -> list[str]:
        """Return the summary in each format."""
        return [f"{self.session}/{name}" for name in SUMMARIES]

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
            f"{self.session}/{FIGURE.format(figure=figure.name, kind=kind)}"
            for figure in figures_of(n_values)
            for kind in kinds or ("html", "svg", "png")
        ]

    def report(self) -> str:
        """Return the page of all figures."""
        return f"{self.session}/{REPORT}"

    def identity_path(self, model: str, checkpoint: str) -> Path:
        """Return where a fetched checkpoint, named as in paths, is described."""
        return identity_path(Path(self.session), "models", model, checkpoint)

    def _first_outputs(self, *rules: str) -> list[str]:
        """Return the outputs that the jobs of some rules are called by."""
        return [str(job.outputs[0]) for job in jobs_of(self, *rules)]
