"""A configuration file that cannot be used is one short error that names the line, whatever is in it."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import yaml
from conftest import study

from id_scaling.cli.main import main
from id_scaling.errors import ConfigError, IdScalingError
from id_scaling.study.config_file import MOST_CHARACTERS, MOST_LEVELS, read_config
from id_scaling.study.study import Study

# A screen of text, and a wait that nobody takes for a hang, on a busy machine too.
MOST_BYTES_OF_A_MESSAGE, MOST_SECONDS = 5000, 2.0
N_MUTATIONS = 600


def written(folder: Path, text: str) -> Path:
    """Write a configuration file."""
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return path


BAD = {
    "a key twice": ("ctx_len: 1\nverbose: true\nctx_len: 2\n", ["line 3", "'ctx_len'", "in line 1"]),
    "a key twice inside": ("a:\n  b: 1\n  c: 2\n  b: 1\n", ["line 4", "'b'", "in line 2"]),
    "a key twice in one line": ("a: {b: 1, b: 2}\n", ["line 1", "'b'", "in line 1"]),
    "a key twice in a list": ("a:\n- {x: 1}\n- x: 1\n  x: 2\n", ["line 4", "'x'", "in line 3"]),
    "a key twice, once in quotes": ('a: 1\n"a": 2\n', ["line 2", "'a'"]),
    "a key twice as JSON": ('{"a": 1,\n "a": 2}', ["line 2", "'a'"]),
    "a list as a key": ("? [1, 2]\n: 3\n", ["line 1", "as a key"]),
    "brackets": ("a: " + "[" * 3000 + "]" * 3000, ["line 1", f"more than {MOST_LEVELS} levels"]),
    "indentation": ("".join(f"{' ' * n}a:\n" for n in range(600)), [f"line {MOST_LEVELS + 1}", "levels"]),
    "aliases of aliases": (
        "".join(f"a{n}: &a{n} [{f'*a{n - 1}' if n else 1}]\n" for n in range(3000)),
        ["levels"],
    ),
    "aliases that multiply": (
        "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 1}]\n" for n in range(12)),
        ["aliases"],
    ),
    "an alias of itself": ("a: &a\n  b: *a\n", ["line 1", "alias"]),
    "6,000 digits": ("a: 1\nb: " + "9" * 6000, ["line 2", "'999"]),
    "6,000 hexadecimal digits": ("b: 0x" + "f" * 6000, ["line 1", "whole number"]),
    "a date that is none": ("a: 2026-13-45\n", ["line 1", "2026-13-45", "quotes"]),
    "a cut file": ("a: [1, 2\n", ["line"]),
    "nothing": ("", ["no mapping of keys"]),
    "a list": ("- 1\n", ["no mapping of keys"]),
    "a long file": ("#" * (MOST_CHARACTERS + 1), ["characters"]),
    "an unknown tag": ("a: !!python/object:os.system x\n", ["python/object"]),
    "a long tag": (f"a: !{'x' * 70_000} 1\n", ["tag"]),
    "an unknown alias of 70 kB": (f"a: *{'x' * 70_000}\n", ["alias"]),
    "control characters": ("a: \x1b[2J\n", ["YAML"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_short_error_that_names_the_line(tmp_path: Path, case: str, capsys: pytest.CaptureFixture):
    text, words = BAD[case]
    path, start = written(tmp_path, text), time.process_time()
    assert main(["validate", str(path)]) == 1
    assert time.process_time() - start < MOST_SECONDS
    said = capsys.readouterr().err
    assert str(path) in said
    assert "Traceback" not in said
    assert len(said.encode()) < MOST_BYTES_OF_A_MESSAGE
    for word in words:
        assert word in said


def test_file_that_is_no_text_or_not_there_is_one_error(tmp_path: Path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "bytes", tmp_path / "nowhere", tmp_path, Path("a\0b")):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_config(path)


def test_anchors_merges_and_deep_enough_values_are_read(tmp_path: Path):
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\nc: *a\nd: " + "[" * (MOST_LEVELS - 1) + "]" * (MOST_LEVELS - 1)
    found = read_config(written(tmp_path, text))
    assert found == yaml.safe_load(text)
    assert found["b"] == {"x": 1, "y": 3}


def test_many_wrong_keys_are_counted_and_a_few_named(tmp_path: Path, tiny_llama: Path, text_folder: Path):
    """20,000 unknown keys, 20,000 wrong values, and one key of 70 kB, took minutes and filled the terminal."""
    valid = yaml.safe_dump(study(tiny_llama, text_folder))
    for text in (
        "".join(f"key{number}: 1\n" for number in range(20_000)),
        f"controls: [{', '.join('x' for _ in range(20_000))}]\n",
        f"{'k' * 900}.{'.'.join('ab' for _ in range(20_000))}: 1\n",
        f"add_bos: {'v' * 70_000}\n",
        f"keep_weights: [{'1, ' * 20_000}]\n",
    ):
        start = time.process_time()
        with pytest.raises(ConfigError) as caught:
            Study(read_config(written(tmp_path, valid + text)))
        assert time.process_time() - start < MOST_SECONDS
        assert len(str(caught.value).encode()) < MOST_BYTES_OF_A_MESSAGE
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"… and 19991 more"):
        Study(read_config(written(tmp_path, valid + "".join(f"key{number}: 1\n" for number in range(20_000)))))
    assert time.process_time() - start < MOST_SECONDS


# ---- mutations -------------------------------------------------------------------------------------------------

# What stands in for a value, or is put among the lines.
VALUES = [
    "null",
    "true",
    "no",
    "-1",
    "0",
    "1",
    "3",
    "1e-3",
    "1.5",
    ".nan",
    ".inf",
    "-.inf",
    "1e400",
    "9223372036854775807",
    "99999999999999999999999",
    "''",
    "' '",
    "'\\0'",
    '"\\ud800"',
    '"\\x1b[2J"',
    "'{x}'",
    "'<x>'",
    "'../..'",
    "/",
    "~",
    "'*'",
    "[]",
    "{}",
    "[[]]",
    "[{}]",
    "{a: 1}",
    "[null]",
    "[1, 1]",
    "[a, a]",
    "{first: 1}",
    "{last: 99}",
    "[-1]",
    "[-1, 1]",
    "[-99]",
    "all",
    "auto",
    "mle",
    "[gride_n64]",
    "[mle_k99999999999]",
    "phd",
    "drop_top_99999999999999999999",
    "2026-11-30",
    "2026-99-99",
    "!!binary x",
    "!!set {a, b}",
    "!x y",
    "*a",
    "&a [*a]",
    "0x" + "f" * 99,
    "1:2:3",
    "|\n  x",
    "模型",
    "😀" * 300,
    "x" * 3000,
    "owner/name",
    "random-init",
    "https://me:secret@host/x",
    "{default: {layers: [9]}}",
    "{default: {decimate: 3}}",
    "{x: {}, y: {layers: {every: 0}}}",
    "{mean: {}}",
    "[none, shuffle-9]",
    "[context, mean]",
]
KEYS = ["ctx_len", "views", "models", "model_config", "x", "'1'", "1", "null", "session_path", "layers", "<<", "a.b"]


def mutated(text: str, draw: random.Random) -> str:
    """Return a configuration with one to three things changed: a value, a key, a line, a letter, a piece of text."""
    lines = text.splitlines()
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(lines))
        key, colon, _ = lines[place].partition(":")
        indent = key[: len(key) - len(key.lstrip())]
        kind = draw.randrange(8)
        if kind <= 2 and colon:
            lines[place] = f"{key}: {draw.choice(VALUES)}"
        elif kind == 3:
            lines.insert(place, f"{indent}{draw.choice(KEYS)}: {draw.choice(VALUES)}")
        elif kind == 4:
            lines.insert(place, lines[draw.randrange(len(lines))])
        elif kind == 5 and len(lines) > 1:
            del lines[place]
        elif kind == 6:
            at = draw.randrange(len(lines[place]) + 1)
            lines[place] = lines[place][:at] + draw.choice("[]{}:,-#&*!|>'\"%@` \t\\x0") + lines[place][at:]
        else:
            lines[place] = lines[place][: draw.randrange(len(lines[place]) + 1)]
    return "\n".join(lines) + "\n"


def test_mutated_configuration_is_valid_or_one_short_error(tmp_path: Path, tiny_llama: Path, text_folder: Path):
    """Whatever is changed, nothing but an error of the family comes out, in short words and a short time."""
    whole = study(tiny_llama, text_folder, dataset_config__group_by=[])
    whole["dataset_config"] |= {"max_contexts": 50, "text_column": "text"}
    whole["cacheing_config"] |= {
        "layer_idx_list": [0, -1],
        "module_inblock_keys": ["block"],
        "save_positions": [-1],
        "clouds": ["context"],
        "views": {"default": {"skip_first_tokens": 1}, "half": {"decimate": 40, "layers": [0]}},
        "neighbor_ranks": "default",
    }
    text = yaml.safe_dump(whole, sort_keys=False)
    Study(read_config(written(tmp_path, text))).check()
    draw, n_errors = random.Random(0), 0
    for number in range(N_MUTATIONS):
        path = written(tmp_path, mutated(text, draw))
        start = time.process_time()
        try:
            Study(read_config(path)).check()
        except IdScalingError as error:
            n_errors += 1
            message = str(error)
        else:
            message = ""
        seconds = time.process_time() - start
        assert seconds < MOST_SECONDS, (number, seconds, path.read_text(errors="replace"))
        assert len(message.encode("utf-8", "surrogatepass")) < MOST_BYTES_OF_A_MESSAGE, (number, message)
    # Most mutations are errors, and some are other valid studies: the test sees both.
    assert N_MUTATIONS / 2 < n_errors < N_MUTATIONS
