"""Load the results of a session as polars tables: its summary, its contexts, and its tokens."""

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
CONTEXT_COLUMNS = ["context", "document", "document_id", "chunk", "token_start", "token_stop", "metadata"]


def load_summary(session_path: str | Path, verify: bool = True) -> pl.DataFrame:
    """Return the summary of a session.

    Parameters
    ----------
    session_path : path
        The folder a session was saved in, `results/<session_name>` by default.
    verify : bool
        Compare every file with the checksum in it. If False, changed numbers go unnoticed, and tables without a
        checksum (from older versions) are read too.

    Returns
    -------
    polars.DataFrame
        One row per model, checkpoint, dataset, subset, ctx_len, control, group, group_value, view, cloud, position,
        layer, module, and estimator. Rows without a group are of all contexts. `level` says whether a row summarizes
        contexts or is one cloud of a run. A missing number is null.

    Raises
    ------
    StoreError
        The session has no summary yet, or the summary is damaged, truncated, without a checksum, or stale: its tables
        were recomputed after it was written.

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
    """Return the estimates of single contexts, next to their documents, losses, and entropies.

    Parameters
    ----------
    session_path : path
        The folder a session was saved in, `results/<session_name>` by default.
    verify : bool
        As in `load_summary`.
    **axes
        Read only these values, one or a list for each axis: `model`, `checkpoint`, `dataset`, `subset`, `ctx_len`,
        `control`, `module`, `estimator`, `view`, and `layer`, as in the summary. The layer of a site outside the
        blocks is None.

    Returns
    -------
    polars.DataFrame
        One row per model, checkpoint, dataset, subset, ctx_len, control, module, estimator, layer, view, and context:
        `value`, `stderr`, `status`, and the properties of the cloud; `loss` and `entropy`, means over the tokens of the
        context without the first (nats/token); `document`, `document_id`, `chunk`, `token_start`, `token_stop`, and the
        `metadata` of the document as JSON. A missing number is null. Clouds of all contexts of a run are only in the
        summary; estimates at single tokens, `local`, are only in the tables in `ids`.

    Raises
    ------
    StoreError
        The session has no summary yet, or a table is missing or damaged.
    ConfigError
        An axis is unknown, the session does not have a value, or no row has all values.

    Examples
    --------
    >>> from id_scaling import load_contexts
    >>> contexts = load_contexts("results/quickstart", estimator="mle", module="block", layer=0, view="default")
    >>> contexts.select("context", "document", "status").rows()[:3]
    [(0, 0, 'ok'), (1, 1, 'ok'), (2, 1, 'ok')]
    """
    if CONTEXT not in _settings_of(Path(session_path), verify)["clouds"]:
        raise ConfigError(
            "the session has no cloud of one context (cacheing_config.clouds); load_summary has its clouds of all "
            "contexts of a run, as rows of level 'run'"
        )
    return _rows_of_runs(Path(session_path), axes, _contexts_of_run, verify)


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
        Read only these values, one or a list for each axis: `model`, `checkpoint`, `dataset`, `subset`, `ctx_len`, and
        `control`, as in the summary.

    Returns
    -------
    polars.DataFrame
        One row per model, checkpoint, dataset, subset, ctx_len, control, context, and position: `token`, and `loss` and
        `entropy` (nats) of the prediction of that token. They are null for the first token of a context. They are NaN
        where the model returned NaN, and so is a mean over them.

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
    if unknown_axes := axes.keys() & {"module", "estimator", *ROW_AXES}:
        raise ConfigError(f"{unknown_axes.pop()} is not an axis of tokens; expected some of {', '.join(AXES)}")
    return _rows_of_runs(Path(session_path), axes, _tokens_of_run, verify)


def _rows_of_runs(
    session: Path, axes: Mapping[str, Any], rows_of: Callable[..., pl.DataFrame], verify: bool
) -> pl.DataFrame:
    """Return the rows of the requested runs, each with the names of its run."""
    settings = _settings_of(session, verify)
    summary = read_table(_summary_path(session), [*ROW_AXES, "level"], verify)[0].filter(level=CONTEXT)
    chosen, tables = _requested_values(axes, settings, summary), []
    for run in runs_of(settings):
        names = names_of(run, settings)
        if all(names[key] in chosen.get(key, {names[key]}) for key in names):
            rows = rows_of(session, run, settings, chosen, verify)
            tables.append(rows.select(*(pl.lit(value).alias(key) for key, value in names.items()), pl.all()))
    if not any(map(len, tables)):
        raise ConfigError(
            f"the session has no row with {', '.join(f'{axis} {axes[axis]!r}' for axis in axes)}; request fewer axes"
        )
    return pl.concat(tables)


def run_named(session: Path, names: Mapping[str, str | int]) -> Run:
    """Return the run of a session that has these names in the summary."""
    settings = _settings_of(session)
    for run in runs_of(settings):
        if names_of(run, settings) == dict(names):
            return run
    raise ConfigError(f"the session has no run {', '.join(map(str, names.values()))}")


def _summary_path(session_path: str | Path) -> Path:
    """Return the path of the summary of a session, which must exist."""
    path = Path(session_path) / "summary.parquet"
    if not path.is_file():
        raise StoreError(f"{path}: not there; run snakemake on the session, or name the folder that holds it")
    return path


def _settings_of(session: Path, verify: bool = True) -> dict[str, Any]:
    """Return the settings of a session, which its summary stores."""
    path = _summary_path(session)
    settings = table_facts(path, verify)
    if "lengths" not in settings:
        raise StoreError(f"{path}: written by an older version; {made_anew(path)}")
    return settings


def _requested_values(axes: Mapping[str, Any], settings: Mapping[str, Any], summary: pl.DataFrame) -> dict[str, set]:
    """Return the requested values of each axis; raise a ConfigError if the session lacks one."""
    run_names = [names_of(run, settings) for run in runs_of(settings)]
    available = {key: {names[key] for names in run_names} for key in AXES}
    available |= {"module": set(settings["modules"]), "estimator": {name for name, _ in settings["estimators"]}}
    available |= {axis: set(summary[axis]) for axis in ROW_AXES}
    chosen = {}
    for axis, wanted in axes.items():
        if axis not in available:
            raise ConfigError(f"{axis} is not an axis of a session; expected one of {', '.join(available)}")
        is_single = isinstance(wanted, str) or not isinstance(wanted, Collection)
        chosen[axis] = {wanted} if is_single else set(wanted)
        if axis == "estimator":
            chosen[axis] = {_canonical(name) for name in chosen[axis]}
        if not chosen[axis]:
            raise ConfigError(f"{axis}: found an empty list, expected values to read")
        if missing_values := chosen[axis] - available[axis]:
            listed = ", ".join(map(str, sorted(available[axis], key=lambda value: (value is None, value))))
            raise ConfigError(f"the session has no {axis} {missing_values.pop()!r}; it has {listed}")
    return chosen


def _canonical(name: Any) -> Any:
    """Return the name under which an estimator is stored; an unknown name stays as it is."""
    # An import statement would make figures depend on the registry, and a new estimator would make all figures stale.
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
    contexts, _ = read_table(path, CONTEXT_COLUMNS, verify)
    _check_extraction(folder / "tokens.parquet", "digest", manifest, verify)
    scores = token_scores(folder / "tokens.parquet").select("context", *SCORES)
    contexts = contexts.join(scores.fill_nan(None), on="context", how="left", maintain_order="left")
    filters = [pl.col(axis).is_in(list(chosen[axis]), nulls_equal=True) for axis in ROW_AXES if axis in chosen]
    tables = [
        _read_checked(ids_path(session, run, module, estimator), "manifest", manifest, verify, *filters)
        for module in settings["modules"]
        for estimator, _ in settings["estimators"]
        if module in chosen.get("module", {module}) and estimator in chosen.get("estimator", {estimator})
    ]
    estimates = pl.concat(tables).filter(cloud=CONTEXT).drop("position").fill_nan(None)
    return estimates.join(contexts, on="context", how="left", maintain_order="left")


def _tokens_of_run(session: Path, run: Run, _: Mapping[str, Any], __: Mapping[str, set], verify: bool) -> pl.DataFrame:
    """Return the rows of the tokens of one run."""
    folder = run_folder(session, run)
    manifest = read_record(folder / "manifest.json", verify)
    return _read_checked(folder / "tokens.parquet", "digest", manifest, verify)


def _check_extraction(path: Path, key: str, manifest: Mapping[str, Any], verify: bool) -> None:
    """Raise a StoreError if a table is not from the extraction of its run."""
    if table_facts(path, verify).get(key) != manifest["digest"]:
        raise StoreError(f"{path}: of another extraction than its run's; {made_anew(path)}")


def _read_checked(path: Path, key: str, manifest: Mapping[str, Any], verify: bool, *filters: pl.Expr) -> pl.DataFrame:
    """Return the matching rows of a table, without its list columns, after checking its extraction."""
    _check_extraction(path, key, manifest, verify)
    table = pl.scan_parquet(path, glob=False)  # `read_parquet_schema` would read the path as a pattern
    columns = [name for name, kind in table.collect_schema().items() if kind != pl.List]
    return table.filter(*filters).select(columns).collect()
