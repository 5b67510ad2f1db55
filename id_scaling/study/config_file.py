"""A configuration file as plain Python values, or one short error that names the line: never a traceback.

YAML allows what no study means: a key twice, of which the last wins; aliases that multiply; values inside each other
a thousand deep. All of it is refused here, before a value is built.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from id_scaling.errors import ConfigError, shortened

# A study of ten thousand checkpoints, a line each, is a quarter of this.
MOST_CHARACTERS = 1_000_000
# Values inside each other: a study has 5 levels, and Python's own limit is a thousand frames.
MOST_LEVELS = 20
# Values that a file may stand for once its aliases are replaced by what they name.
MOST_VALUES = 200_000
# Of a whole number of 64 bits.
LARGEST = 2**63 - 1
TOO_DEEP = f"found values more than {MOST_LEVELS} levels deep; close a bracket, or correct the indentation"

_MERGE = "tag:yaml.org,2002:merge"
_SafeLoader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """Builds plain values; what Python cannot read as the kind of value that YAML takes it for is an error."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except ValueError as error:  # a date in a 13th month, a number of more digits than Python reads
            raise _at(
                node, f"found {node.value[:40]!r}, which cannot be read ({error}); put quotes around text"
            ) from None
        if isinstance(value, int) and abs(value) > LARGEST:
            raise _at(node, f"found a whole number of more than {len(str(LARGEST))} digits, which no key takes")
        return value


def read_config(path: Path) -> dict[str, Any]:
    """Return what a YAML file holds.

    Raises
    ------
    ConfigError
        The file cannot be read, is not YAML, or is not a mapping; a key is in it twice; values are too deep inside
        each other, too long or too many.
    """
    try:
        config = _values(_text(path))
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a zero byte in the path
        raise ConfigError(shortened(f"{path}: cannot be read as YAML: {error}")) from error
    except yaml.YAMLError as error:
        raise ConfigError(shortened(f"{path}: cannot be read as YAML: {error}")) from error
    except ConfigError as error:
        raise ConfigError(shortened(f"{path}{error}")) from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: found no mapping of keys, expected a configuration")
    return config


def _at(node: yaml.Node | yaml.Event, words: str) -> ConfigError:
    """Return an error at the line of a node, which the name of the file is to precede."""
    return ConfigError(f", line {node.start_mark.line + 1}: {words}")


def _text(path: Path) -> str:
    """Return the text of a configuration file."""
    with open(path, encoding="utf-8") as file:
        text = file.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f": found more than {MOST_CHARACTERS} characters, expected a configuration")
    return text


def _values(text: str) -> Any:
    """Return the values of a text, once its nodes are known to be few, flat and named once."""
    _check_depth(text)
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_nodes(root)
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check_depth(text: str) -> None:
    """Raise a ConfigError where values are too deep inside each other, which a parser of events can count."""
    level = 0
    for event in yaml.parse(text, Loader=_Loader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > MOST_LEVELS:
            raise _at(event, TOO_DEEP)


def _check_nodes(root: yaml.Node) -> None:
    """Raise a ConfigError where a key is there twice, or aliases stand for too much."""
    sizes: dict[yaml.Node, tuple[int, int]] = {}  # node -> values in it, levels in it
    begun: set[yaml.Node] = set()

    def visit(node: yaml.Node) -> tuple[int, int]:
        if node in sizes:
            return sizes[node]
        if node in begun:
            raise _at(node, "found an alias (*) inside the value that it names; write the value out")
        begun.add(node)
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        inner = [visit(one) for one in _inner(node)]
        sizes[node] = 1 + sum(n_values for n_values, _ in inner), 1 + max((levels for _, levels in inner), default=0)
        if sizes[node][0] > MOST_VALUES:
            raise _at(node, f"found aliases (*) that stand for more than {MOST_VALUES} values; write them out")
        if sizes[node][1] > MOST_LEVELS + 1:
            raise _at(node, TOO_DEEP)
        return sizes[node]

    visit(root)


def _inner(node: yaml.Node) -> Iterable[yaml.Node]:
    """Return the nodes right inside a node."""
    if isinstance(node, yaml.MappingNode):
        return chain.from_iterable(node.value)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _check_keys(node: yaml.MappingNode) -> None:
    """Raise a ConfigError where a mapping has a key twice, of which only the last would count."""
    first: dict[tuple[str, str], yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _at(key, "found a list or a mapping as a key, expected a name")
        other = first.setdefault((key.tag, key.value), key)
        if other is not key and key.tag != _MERGE:
            line = other.start_mark.line + 1
            raise _at(key, f"the key {shortened(key.value, 60)!r} is there already, in line {line}; remove one of them")
