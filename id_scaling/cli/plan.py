"""What a study takes, before anything starts: jobs, contexts, bytes on disk, FLOPs, hours.

Nothing is written and no weights are read. What cannot be known is said to be unknown; totals are lower bounds then.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from id_scaling.cli.costs import Cost, Row, count_jobs, models_to_train, n_submissions, rows_of, shortages
from id_scaling.estimators.registry import get_estimator
from id_scaling.sources import bundled
from id_scaling.study.study import EXTRACT_MINUTES, Study

# Measured: a submission on a real Slurm, at least; a token of one cloud, on one core. The start of an estimate takes
# half a second of a quiet core, and is taken for more.
SECONDS_A_SUBMISSION, SECONDS_A_START, SECONDS_A_TOKEN = 4.0, 1.5, 8e-7
SECONDS_A_MULTIPLICATION = 2e-11  # of float32 products on one core
SIGNS = {
    "≤": "≤ at most: max_contexts, or documents read × chunks of a document; so is what follows from it",
    "≈": "≈ about: from the size of the whole shard, 4 bytes a token, compressed text 3 times as long; fewer where "
    "max_chunks_from_a_document cuts documents short",
}


def report(study: Study, tflops: float, n_gpus: int) -> str:
    """Return what a study takes as text: a table by model, the whole of it, and what to see to.

    Parameters
    ----------
    study : Study
        A study whose local models and shards are there.
    tflops : float
        10¹² FLOPs a second that a device is taken to achieve.
    n_gpus : int
        Devices that extract beside each other.
    """
    rows, jobs = rows_of(study), count_jobs(study)
    head = f"{study.config.session_name}: {_many(len(study.runs), 'run')}, {_many(sum(jobs.values()), 'job')}"
    whole = [*_work(study, jobs), _weights(rows), *_runs(study, rows, tflops, n_gpus)]
    notes = _notes(study, rows) + _warnings(study, rows, tflops, n_gpus)
    whole, notes = ([_wrapped(line, indent) for line in lines] for lines, indent in ((whole, 11), (notes, 2)))
    return "\n".join([head, "", *_table(rows, tflops), "", *whole, *([""] if notes else []), *notes])


def _table(rows: list[Row], tflops: float) -> list[str]:
    """Return the lines of the table by model, and by length where there are several."""
    above = ["", "", "", "", "", "contexts", "disk", "disk", "forward", "forward", "GPU time"]
    below = ["model", "parameters", "layers", "sites", "runs", "a run", "a run", "in all", "a run", "in all", "in all"]
    parts = [part for row in rows for part in row.by_length()]
    cells = [above, below, *(_cells(part, tflops) for part in parts)]
    if len({part.lengths[0] for part in parts}) > 1:
        tokens = ["", "ctx_len", *(f"{part.lengths[0]:,}" for part in parts)]
        cells = [[line[0], said, *line[1:]] for line, said in zip(cells, tokens, strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells)
    return ["  ".join(line) for line in aligned]


def _cells(row: Row, tflops: float) -> list[str]:
    """Return one model's line of the table."""
    shape, costs = row.shape, row.costs
    known = ["?"] * 3
    if shape is not None:
        known = [scaled(shape.n_parameters).replace("G", "B"), str(shape.n_layers), str(len(shape.widths))]
    contexts = list(dict.fromkeys("?" if one is None else f"{one.sign} {one.number:,}".strip() for one in row.contexts))
    several = f"{contexts[0]} … {contexts[-1]}" if len(contexts) > 1 else contexts[0]
    begun = [row.name, *known, f"{len(row.contexts):,}", several]
    if costs is None:
        return [*begun, *["?"] * 5]
    disk, forward = [cost.disk for cost in costs], [cost.forward for cost in costs]
    sizes = [scaled(max(disk), "B"), scaled(sum(disk), "B"), scaled(max(forward), "FLOP"), scaled(sum(forward), "FLOP")]
    return [*begun, *sizes, duration(sum(_seconds(cost, tflops) for cost in costs))]


def _work(study: Study, jobs: dict[str, int]) -> list[str]:
    """Return the lines on jobs and submissions."""
    n_submitted = n_submissions(study)
    return [
        f"jobs       {', '.join(f'{rule} {number:,}' for rule, number in jobs.items())}",
        f"Slurm      {_many(n_submitted, 'submission')} under profiles/slurm: at least "
        f"{duration(n_submitted * SECONDS_A_SUBMISSION)} at {SECONDS_A_SUBMISSION:g} s each, beside the wait for nodes",
    ]


def _weights(rows: list[Row]) -> str:
    """Return the line on weights."""
    known = [row.weights for row in rows if row.weights]
    if not known:
        return "weights    unknown, see below"
    least = "" if len(known) == len(rows) else "at least "
    coming = [one for one in known if one.n_bytes]
    to_fetch = scaled(sum(one.n_bytes for one in coming), "B")
    folders = ", ".join(sorted({str(one.folder) for one in coming}))
    do_stay = all(one.do_stay for one in coming)
    where = (
        f" in {folders}, where {'they stay' if do_stay else 'those of a run go when it is extracted'}" if coming else ""
    )
    how = "fetch or train" if any(row.name in bundled.TRAINED for row in rows) else "fetch or make"
    return f"weights    {least}{to_fetch} to {how}{where}"


def _runs(study: Study, rows: list[Row], tflops: float, n_gpus: int) -> list[str]:
    """Return the lines on what runs write and compute."""
    costs = _costs(rows)
    if not costs:
        return ["the rest   unknown, see below"]
    least = "" if all(row.costs is not None for row in rows) else "at least "
    disk, largest = sum(cost.disk for cost in costs), max(cost.largest for cost in costs)
    forward, search = sum(cost.forward for cost in costs), sum(cost.search for cost in costs)
    on_gpus = sum(_seconds(cost, tflops) for cost in costs)
    n_tokens = sum(cost.n_tokens for cost in costs) * len(study.estimators)
    of_runs = sum(cost.of_run for cost in costs) * len(study.estimators)
    on_cores = len(study.tables()) * SECONDS_A_START + n_tokens * SECONDS_A_TOKEN + of_runs * SECONDS_A_MULTIPLICATION
    beside = f" ({duration(on_gpus / n_gpus)} on {n_gpus} GPUs)" if n_gpus > 1 else ""
    return [
        f"disk       {least}{scaled(disk, 'B')} in {study.session}; up to {scaled(largest, 'B')} more while a run puts "
        "its parts together",
        f"FLOPs      {least}{scaled(forward, 'FLOP')} forward, {least}{scaled(search, 'FLOP')} for neighbors",
        f"GPU time   {least}{duration(on_gpus)}{beside} at {tflops:g} TFLOP/s achieved, which is assumed and not "
        "measured (--tflops); loading weights comes on top",
        f"CPU time   {least}{duration(on_cores)} of one core for estimates",
    ]


def _notes(study: Study, rows: list[Row]) -> list[str]:
    """Return what the figures rest on."""
    used = {one.sign for row in rows for one in row.contexts if one}
    uncounted = [row.name for row in rows if row.shape and not row.shape.is_counted]
    slow = [name for name in study.estimators if get_estimator(name).needs == "points"]
    notes = [words for sign, words in SIGNS.items() if sign in used]
    if uncounted:
        notes.append(
            f"FLOPs of {', '.join(uncounted)}: 2 × parameters × tokens, all experts, as they cannot be counted"
        )
    if trained := models_to_train(study):
        notes.append(f"{', '.join(trained)}: trained first, some two minutes of a core each, not counted above")
    if slow:
        notes.append(f"CPU time is that of reading for {', '.join(slow)}: seconds to minutes a cloud come on top")
    if n_done := sum(cost.is_done for cost in _costs(rows)):
        notes.append(f"{_many(n_done, 'run')} extracted already, counted above; a dry run shows the jobs that are left")
    return notes + _unknown(rows)


def _unknown(rows: list[Row]) -> list[str]:
    """Return what is unknown, and what to do: one line for all that lack the same."""
    lacking: dict[str, list[str]] = {}
    for row in rows:
        where, _, what = row.unknown.partition(": ")
        if where:
            lacking.setdefault(what, []).append(where)
    return [f"unknown: {', '.join(names)}: {what}" for what, names in lacking.items()]


def _warnings(study: Study, rows: list[Row], tflops: float, n_gpus: int) -> list[str]:
    """Return what would stop the study: jobs longer than they may be, file systems without room."""
    to_come = [cost for cost in _costs(rows) if not cost.is_done]
    longest = {row.name: max(_seconds(cost, tflops) for cost in row.costs) for row in rows if row.costs}
    n_bytes = sum(cost.disk for cost in to_come) + n_gpus * max((cost.largest for cost in to_come), default=0)
    places = [
        (Path(study.session), n_bytes),
        *((row.weights.folder, row.weights.at_once) for row in rows if row.weights),
    ]
    return [
        f"WARNING: a run of {name} takes {duration(seconds)}, its job may take {duration(60 * EXTRACT_MINUTES)}; set "
        "a longer `runtime` of extract_activations under `set-resources` of your profile"
        for name, seconds in longest.items()
        if seconds > 60 * EXTRACT_MINUTES
    ] + [
        f"WARNING: the disk is too small: {scaled(needed, 'B')} needed, {scaled(free, 'B')} free on the file system of "
        f"{folder}; make room, or set session_path (for weights HF_HOME) to a larger one"
        for folder, needed, free in shortages(places)
    ]


def _costs(rows: list[Row]) -> list[Cost]:
    """Return what all runs take of which it is known."""
    return [cost for row in rows for cost in row.costs or []]


def _wrapped(line: str, indent: int) -> str:
    """Return a line broken at the width of a page."""
    return fill(line, 120, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _seconds(cost: Cost, tflops: float) -> float:
    """Return how long a run computes."""
    return (cost.forward + cost.search) / tflops / 1e12


def _many(number: int, what: str) -> str:
    """Return a number of things."""
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def scaled(value: float, unit: str = "") -> str:
    """Return a number of three digits with the prefix of its unit: `2.41 GB`."""
    power = 0
    while value >= 999.5 and power < 6:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {' kMGTPE'[power].strip()}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours: `2.4 h`."""
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (0, "s")) if seconds >= size)
    number = seconds / (size or 1)
    return f"{number:,.{0 if number >= 9.95 else 1}f} {unit}"
