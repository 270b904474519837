import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdistill.config import from_mapping, load_file, merge, parse_overrides, to_mapping
from kdistill.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 32
    mean: tuple[float, ...] = (0.5,)


@dataclass(frozen=True, kw_only=True)
class Run:
    method: Literal["dm", "dc", "mtt"] = "dm"
    lr: float = 1.0
    ipc: int = 10
    augment: bool = True
    width: int | None = None
    source: str | Path = "mnist5k"
    folder: Path | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    names: list[str] = field(default_factory=list)
    inner: Inner = Inner()
    optional_inner: Inner | None = None
    extra: dict[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    anything: Any = None


@dataclass(frozen=True, kw_only=True)
class Needy:
    path: str


def test_defaults_and_conversions():
    run = from_mapping(
        Run,
        {"lr": 2, "betas": [1, 0.5], "inner": {"mean": [1, 2]}, "folder": "x", "extra": {"a": 1}},
    )
    assert run == Run(
        lr=2.0, betas=(1.0, 0.5), inner=Inner(mean=(1.0, 2.0)), folder=Path("x"), extra={"a": 1.0}
    )
    assert type(run.lr) is float and type(run.inner.mean[0]) is float
    assert (
        from_mapping(Run, {"source": "none"}).source == "none"
    )  # a string is allowed there, so the word stays
    assert from_mapping(Run, {"width": "none"}).width is None
    assert from_mapping(Run, {"inner": Inner(size=3)}).inner.size == 3


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"methd": "dm"},
            r"run\.toml: expected a known option, got 'methd'; did you mean 'method'\?",
        ),
        (
            {"inner": {"sise": 3}},
            r"run\.toml\.inner: expected a known option, got 'sise'; did you mean 'size'\?",
        ),
        ({"optional_inner": {"sise": 3}}, r"optional_inner: .* did you mean 'size'\?"),
        (
            {"method": "dmm"},
            r"run\.toml\.method: expected one of 'dm', 'dc', 'mtt', got 'dmm'; did you mean 'dm'\?",
        ),
        ({"method": 3}, r"method: expected one of 'dm', 'dc', 'mtt', got 3 \(int\)"),
        ({"lr": "fast"}, r"lr: expected a number, got 'fast' \(str\)"),
        ({"lr": True}, r"lr: expected a number, got True"),
        ({"lr": 10**400}, r"lr: expected a number, got an integer beyond"),
        ({"ipc": 1.0}, r"ipc: expected an integer, got 1\.0 \(float\)"),
        ({"ipc": True}, r"ipc: expected an integer, got True"),
        ({"augment": 1}, r"augment: expected true or false, got 1"),
        ({"width": "wide"}, r"width: expected an integer or none, got 'wide'"),
        ({"betas": [1]}, r"betas: expected a list of 2 values \(a number, a number\), got \[1\]"),
        ({"betas": [1, "x"]}, r"betas\[1\]: expected a number, got 'x'"),
        ({"names": "abc"}, r"names: expected a list of a string, got 'abc'"),
        ({"inner": 3}, r"inner: expected a table, got 3"),
        ({"extra": {"a": "b"}}, r"extra\.a: expected a number, got 'b'"),
        ({"options": [1]}, r"options: expected a table, got \[1\]"),
        ({"folder": 3}, r"folder: expected a path or none, got 3"),
    ],
)
def test_wrong_values_say_where_what_and_why(mapping, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Run, mapping, where="run.toml")


def test_missing_value_wrong_class_and_wrong_top_level():
    with pytest.raises(ConfigError, match="expected a value for 'path', got none"):
        from_mapping(Needy, {})
    with pytest.raises(ConfigError, match="expected a dataclass to build"):
        from_mapping(dict, {})
    with pytest.raises(ConfigError, match="expected a table of keys"):
        from_mapping(Run, [1])
    with pytest.raises(ConfigError, match="expected a dataclass instance"):
        to_mapping({"a": 1})
    with pytest.raises(ConfigError, match=r"anything\[0\]: expected a value that a file can hold"):
        to_mapping(Run(anything=[object()]))


finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(max_size=8)
inners = st.builds(Inner, size=st.integers(), mean=st.lists(finite, max_size=3).map(tuple))
runs = st.builds(
    Run,
    method=st.sampled_from(["dm", "dc", "mtt"]),
    lr=finite,
    ipc=st.integers(),
    augment=st.booleans(),
    width=st.none() | st.integers(),
    source=words,
    folder=st.none() | words.map(Path),
    betas=st.tuples(finite, finite),
    names=st.lists(words, max_size=3),
    inner=inners,
    optional_inner=st.none() | inners,
    extra=st.dictionaries(words, finite, max_size=2),
    options=st.dictionaries(words, st.none() | st.integers() | words, max_size=2),
    anything=st.none() | st.integers() | words,
)


@given(run=runs)
def test_round_trip_through_json(run):
    assert from_mapping(Run, json.loads(json.dumps(to_mapping(run)))) == run


@pytest.mark.parametrize("word", ["inf", "-inf", "nan"])
def test_numbers_that_json_lacks_come_back_from_strings(word):
    value = from_mapping(Run, {"lr": word}).lr
    assert math.isnan(value) if word == "nan" else value == float(word)


def test_overrides():
    texts = [
        "lr=1e-3",
        "ipc=10",
        "a.b=true",
        "a.c=[1, 2]",
        "method=dm",
        "name='x y'",
        "half=.5",
        "five=5.",
        "empty=",
        "day=2026-11-02",
    ]
    assert parse_overrides([*texts, "ipc=20", "eq=a=b", "hash=a#b"]) == {
        "lr": 1e-3,
        "ipc": 20,
        "a": {"b": True, "c": [1, 2]},
        "method": "dm",
        "name": "x y",
        "half": 0.5,
        "five": 5.0,
        "empty": "",
        "day": "2026-11-02",
        "eq": "a=b",
        "hash": "a#b",
    }


@pytest.mark.parametrize(
    "text", ["lr", "=3", "a..b=1", "a b=1", "x=[1, 2", "x={a=1", 'x="open', "x='open"]
)
def test_malformed_overrides_are_refused(text):
    with pytest.raises(ConfigError, match="--set: expected"):
        parse_overrides([text])


def test_one_key_cannot_be_a_value_and_a_table():
    for texts in (["a=1", "a.b=2"], ["a.b=2", "a=1"]):
        with pytest.raises(ConfigError, match="expected one use of 'a'"):
            parse_overrides(texts)


@given(value=st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite)
def test_override_values_keep_their_type(value):
    parsed = parse_overrides([f"key={json.dumps(value)}"])["key"]
    assert parsed == value and type(parsed) is type(value)


def test_merge_is_deep_and_leaves_its_inputs_alone():
    low, high = {"a": {"x": 1, "y": 2}, "b": [1]}, {"a": {"y": 3}, "b": [2], "c": {"z": 4}}
    merged = merge(low, high)
    assert merged == {"a": {"x": 1, "y": 3}, "b": [2], "c": {"z": 4}}
    merged["a"]["x"] = merged["c"]["z"] = 9
    assert low["a"]["x"] == 1 and high["c"]["z"] == 4


def test_files(tmp_path):
    (tmp_path / "run.toml").write_text('method = "dc"\n[inner]\nsize = 8\n')
    (tmp_path / "run.json").write_text('\ufeff{"ipc": 3}', encoding="utf-8")
    assert from_mapping(Run, load_file(tmp_path / "run.toml")) == Run(
        method="dc", inner=Inner(size=8)
    )
    assert load_file(tmp_path / "run.json") == {"ipc": 3}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", b"x: 1", r"a\.yaml: expected a \.toml or \.json file, got '\.yaml'"),
        ("a.toml", b"x = \ny = 1", r"a\.toml: expected valid TOML, got: .*line 1"),
        ("a.json", b"{", r"a\.json: expected valid JSON, got: .*line 1"),
        ("a.json", b"[1]", r"a\.json: expected a table at the top level"),
        ("a.json", b"[" * 100_000, r"a\.json: expected valid JSON"),
        (
            "a.toml",
            b"\xff",
            r"a\.toml: expected a readable configuration file, got: bytes that are not UTF-8",
        ),
        ("a.toml", None, r"a\.toml: expected a readable configuration file, got: No such file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_file(tmp_path / name)


def test_configuration_needs_no_torch():
    code = "import sys, kdistill.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
