"""The layers that a configuration selects: numbers, negative numbers from the end, or a range, for any depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from id_scaling.errors import ConfigError

# Layer numbers, or a range: `first`, `last` or `every`, with a number.
LayerChoice = Sequence[int] | Mapping[str, int]


def layers_of(choice: LayerChoice | None, n_layers: int, key: str) -> list[int]:
    """Return the layers of a model that a choice selects, from 0 and increasing; None selects all.

    Raises
    ------
    ConfigError
        A layer is not in the model, or is named twice.
    """
    if choice is None:
        return list(range(n_layers))
    if isinstance(choice, Mapping):
        return _range_of(choice, n_layers, key)
    if out_of_range := [layer for layer in choice if not -n_layers <= layer < n_layers]:
        raise ConfigError(
            f"cacheing_config.{key}: found layer {out_of_range[0]}, but the model has {n_layers} layers: 0 to "
            f"{n_layers - 1} are allowed, and {-n_layers} to -1 from the end; use 'all' for every layer"
        )
    if repeated := [layer for layer in choice if layer < 0 and layer + n_layers in choice]:
        raise ConfigError(
            f"cacheing_config.{key}: {repeated[0]} and {repeated[0] + n_layers} are one layer of a model with "
            f"{n_layers} layers; name it once"
        )
    return sorted(layer % n_layers for layer in choice)


def _range_of(choice: Mapping[str, int], n_layers: int, key: str) -> list[int]:
    """Return the layers of a range: the first or last `number` layers, or every `number`-th from 0."""
    ((kind, number),) = choice.items()
    if kind == "every":
        return list(range(0, n_layers, number))
    if number > n_layers:
        raise ConfigError(
            f"cacheing_config.{key}.{kind}: found {number}, but the model has {n_layers} layers; take fewer"
        )
    return list(range(number)) if kind == "first" else list(range(n_layers - number, n_layers))


def check_layers_read(view: str, layers: Sequence[int], read: Sequence[int]) -> None:
    """Raise a ConfigError if a view names a layer that is not read."""
    if missing := sorted(set(layers) - set(read)):
        raise ConfigError(
            f"cacheing_config.views.{view}.layers: found layer {missing[0]}, but layer_idx_list has "
            f"{in_ranges(sorted(read))}; add it there, which extracts again, or leave it out"
        )


def in_ranges(numbers: Sequence[int]) -> str:
    """Return increasing numbers as text, with runs of three or more as a range: `1-32, 64, 128`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
