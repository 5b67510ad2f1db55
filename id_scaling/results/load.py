"""What a session has measured, as polars tables: its summary, and the rows behind it, one for each context."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from id_scaling.errors import ConfigError, StoreError, made_anew
from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.results.inputs import check_current
from id_scaling.results.run_tables import SCORES, token_scores
from id_scaling.storage.layout import AXES, Run, contexts_path, ids_path, names_of, run_folder, runs_of
from id_scaling.storage.records import read_record, read_table, read_unverified, table_facts
from id_scaling.text.documents import check_contexts

ROW_AXES = ("view", "layer")
OF_CONTEXT = ["context", "document", "document_id", "chunk", "token_start", "token_stop", "metadata"]


def load_summary(session_path: str | Path, verify: bool = True) -> pl.DataFrame:
    """Return the summary of a session.

    Parameters
    ----------
    session_path : path
        The folder a session was saved in, `results/<session_name>` by default.
    verify : bool
        Hold every file that is read against the checksum in it. Without, numbers that changed since they were written
        are not seen, and tables without a checksum (of older versions) are read.

    Returns
    -------
    polars.DataFrame
        One row per model, checkpoint, dataset, subset, ctx_len, control, group and its value, view, cloud, position,
        layer, module and estimator; rows without a group are of all contexts. `level` says whether a row is over
        contexts, or of one cloud of a run. What there is no number of is null.

    Raises
    ------
    StoreError
        The session has no summary yet, or it is damaged, cut short or without a checksum, or stale: its tables were
        computed again since.

    Examples
    --------
    >>> from id_scaling import load_summary
    >>> summary = load_summary("results/quickstart")
    >>> summary.filter(level="context", view="default").select("layer", "module", "estimator").rows()[:3]
    [(0, 'block', 'mle'), (1, 'block', 'mle'), (0, 'attn', 'mle')]
    """
    path = _summary_path(session_path)
    if not verify:
        return read_unverified(path)
    summary, facts = read_table(path)
    if "made_from" not in facts:
        raise StoreError(f"{path}: written by an older version; {made_anew(path)}")
    check_current(path, facts)
    return summary


def load_contexts(
    session_path: str | Path, verify: bool = True, **axes: str | int | Collection[str | int | None] | None
) -> pl.DataFrame:
    """Return the estimates of single contexts, beside their documents, losses and entropies.

    Parameters
    ----------
    session_path : path
        The folder a session was saved in, `results/<session_name>` by default.
    verify : bool
        As in `load_summary`.
    **axes
        What to read alone, a value or a list of values each: `model`, `checkpoint`, `dataset`, `subset`, `ctx_len`,
        `control`, `module`, `estimator`, `view` and `layer` as in the summary; the layer of what is outside the blocks
        is None.

    Returns
    -------
    polars.DataFrame
        One row per model, checkpoint, dataset, subset, ctx_len, control, module, estimator, layer, view and context:
        `value`, `stderr`, `status` and the companions of the estimate; `loss` and `entropy`, means of the context's
        tokens without the first (nats/token); `document`, `document_id`, `chunk`, `token_start`, `token_stop`, and the
        document's `metadata` as JSON. What there is no number of is null. Clouds of all contexts of a run are no rows
        here but of the summary; estimates at single tokens, `local`, are in the tables of `ids` alone.

    Raises
    ------
    StoreError
        The session has no summary yet, or a table is missing or damaged.
    ConfigError
        An axis is none of these, or the session has nothing of that name, or nothing of all of them at once.

    Examples
    --------
    >>> from id_scaling import load_contexts
    >>> contexts = load_contexts("results/quickstart", estimator="mle", module="block", layer=0, view="default")
    >>> contexts.select("context", "document", "status").rows()[:3]
    [(0, 0, 'ok'), (1, 1, 'ok'), (2, 1, 'ok')]
    """
    if CONTEXT not in _settings_of(Path(session_path), verify)["clouds"]:
        raise ConfigError(
            "the session has no cloud of one context (cacheing_config.clouds); those of all contexts of a run are rows "
            "of its summary, of the level 'run'"
        )
    return _of_runs(Path(session_path), axes, _contexts_of_run, verify)


def load_tokens(
    session_path: str | Path, verify: bool = True, **axes: str | int | Collection[str | int]
) -> pl.DataFrame:
    """Return the tokens of contexts with their losses and entropies.

    Parameters
    ----------
    session_path : path
        The folder a session was saved in, `results/<session_name>` by default.
    verify : bool
        As in `load_summary`.
    **axes
        What to read alone, a value or a list of values each: `model`, `checkpoint`, `dataset`, `subset`, `ctx_len` and
        `control` as in the summary.

    Returns
    -------
    polars.DataFrame
        One row per model, checkpoint, dataset, subset, ctx_len, control, context and position: `token`, and `loss` and
        `entropy` (nats) of the prediction of that token, so those of the first of a context are null. One that came out
        of the model as no number is NaN, and so is a mean over it.

    Raises
    ------
    StoreError, ConfigError
        As in `load_contexts`.

    Examples
    --------
    >>> from id_scaling import load_tokens
    >>> tokens = load_tokens("results/quickstart")
    >>> tokens.select("context", "position", "loss").rows()[0]
    (0, 0, None)
    """
    if others := axes.keys() & {"module", "estimator", *ROW_AXES}:
        raise ConfigError(f"{others.pop()} is no axis of tokens; expected some of {', '.join(AXES)}")
    return _of_runs(Path(session_path), axes, _tokens_of_run, verify)


def _of_runs(
    session: Path, axes: Mapping[str, Any], rows_of: Callable[..., pl.DataFrame], verify: bool
) -> pl.DataFrame:
    """Return the rows of the runs that are asked for, each with the names of its run."""
    settings = _settings_of(session, verify)
    summary = read_table(_summary_path(session), [*ROW_AXES, "level"], verify)[0].filter(level=CONTEXT)
    chosen, tables = _chosen(axes, settings, summary), []
    for run in runs_of(settings):
        of_run = names_of(run, settings)
        if all(of_run[key] in chosen.get(key, {of_run[key]}) for key in of_run):
            rows = rows_of(session, run, settings, chosen, verify)
            tables.append(rows.select(*(pl.lit(value).alias(key) for key, value in of_run.items()), pl.all()))
    if not any(map(len, tables)):
        raise ConfigError(f"the session has nothing of {', '.join(f'{axis} {axes[axis]!r}' for axis in axes)} at once")
    return pl.concat(tables)


def run_named(session: Path, names: Mapping[str, str | int]) -> Run:
    """Return the run of a session that the summary calls by these names."""
    settings = _settings_of(session)
    for run in runs_of(settings):
        if names_of(run, settings) == dict(names):
            return run
    raise ConfigError(f"the session has no run {', '.join(map(str, names.values()))}")


def _summary_path(session_path: str | Path) -> Path:
    """Return the summary of a session, once it is there."""
    path = Path(session_path) / "summary.parquet"
    if not path.is_file():
        raise StoreError(f"{path}: not there; run snakemake on the session, or name the folder that holds it")
    return path


def _settings_of(session: Path, verify: bool = True) -> dict[str, Any]:
    """Return the axes of a session, and what its rows are made of."""
    path = _summary_path(session)
    settings = table_facts(path, verify)
    if "lengths" not in settings:
        raise StoreError(f"{path}: written by an older version; {made_anew(path)}")
    return settings


def _chosen(axes: Mapping[str, Any], settings: Mapping[str, Any], summary: pl.DataFrame) -> dict[str, set]:
    """Return the values of each axis that are asked for, once the session is known to have them."""
    named = [names_of(run, settings) for run in runs_of(settings)]
    has = {key: {of_run[key] for of_run in named} for key in AXES}
    has |= {"module": set(settings["modules"]), "estimator": {name for name, _ in settings["estimators"]}}
    has |= {axis: set(summary[axis]) for axis in ROW_AXES}
    chosen = {}
    for axis, wanted in axes.items():
        if axis not in has:
            raise ConfigError(f"{axis} is no axis of a session; expected one of {', '.join(has)}")
        is_one = isinstance(wanted, str) or not isinstance(wanted, Collection)
        chosen[axis] = {wanted} if is_one else set(wanted)
        if axis == "estimator":
            chosen[axis] = {_canonical(name) for name in chosen[axis]}
        if not chosen[axis]:
            raise ConfigError(f"{axis}: found an empty list, expected values to read")
        if missing := chosen[axis] - has[axis]:
            listed = ", ".join(map(str, sorted(has[axis], key=lambda value: (value is None, value))))
            raise ConfigError(f"the session has no {axis} {missing.pop()!r}; it has {listed}")
    return chosen


def _canonical(name: Any) -> Any:
    """Return the name under which an estimator is stored; what is no estimator's name as it is."""
    # Not a statement: figures use this module, and a new estimator makes no figure stale.
    registry = importlib.import_module("id_scaling.estimators.registry")
    try:
        return registry.canonical_name(name)
    except ConfigError:
        return name


def _contexts_of_run(
    session: Path, run: Run, settings: Mapping[str, Any], chosen: Mapping[str, set], verify: bool
) -> pl.DataFrame:
    """Return the rows of the contexts of one run."""
    folder = run_folder(session, run)
    manifest = read_record(folder / "manifest.json", verify)
    path = contexts_path(session, run, settings["tokenizers"][run.model])
    if verify:
        check_contexts(path, manifest["contexts"])
    contexts, _ = read_table(path, OF_CONTEXT, verify)
    _check_extraction(folder / "tokens.parquet", "digest", manifest, verify)
    scores = token_scores(folder / "tokens.parquet").select("context", *SCORES)
    contexts = contexts.join(scores.fill_nan(None), on="context", how="left", maintain_order="left")
    rows = [pl.col(axis).is_in(list(chosen[axis]), nulls_equal=True) for axis in ROW_AXES if axis in chosen]
    tables = [
        _of_extraction(ids_path(session, run, module, estimator), "manifest", manifest, verify, *rows)
        for module in settings["modules"]
        for estimator, _ in settings["estimators"]
        if module in chosen.get("module", {module}) and estimator in chosen.get("estimator", {estimator})
    ]
    of_contexts = pl.concat(tables).filter(cloud=CONTEXT).drop("position").fill_nan(None)
    return of_contexts.join(contexts, on="context", how="left", maintain_order="left")


def _tokens_of_run(session: Path, run: Run, _: Mapping[str, Any], __: Mapping[str, set], verify: bool) -> pl.DataFrame:
    """Return the rows of the tokens of one run."""
    folder = run_folder(session, run)
    manifest = read_record(folder / "manifest.json", verify)
    return _of_extraction(folder / "tokens.parquet", "digest", manifest, verify)


def _check_extraction(path: Path, key: str, manifest: Mapping[str, Any], verify: bool) -> None:
    """Raise a StoreError where a table is not of the run's extraction."""
    if table_facts(path, verify).get(key) != manifest["digest"]:
        raise StoreError(f"{path}: of another extraction than its run's; {made_anew(path)}")


def _of_extraction(path: Path, key: str, manifest: Mapping[str, Any], verify: bool, *rows: pl.Expr) -> pl.DataFrame:
    """Return some rows of a table without its lists, once it is known to be of the run's extraction."""
    _check_extraction(path, key, manifest, verify)
    table = pl.scan_parquet(path, glob=False)  # `read_parquet_schema` takes a path for a pattern
    columns = [name for name, kind in table.collect_schema().items() if kind != pl.List]
    return table.filter(*rows).select(columns).collect()
