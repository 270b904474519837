"""Strict loading of frozen keyword-only dataclasses from TOML, JSON and ``key=value`` overrides.

A configuration is a frozen dataclass.  Files and command lines become plain mappings, mappings
become dataclasses, and every step refuses what it does not know, with the place and a suggestion.
Standard library only: the command line imports this module without paying for torch.

Understood field types: ``bool int float str``, ``pathlib.Path``, ``Literal``, unions, ``tuple``,
``list``, ``dict[str, X]``, ``Mapping[str, X]``, ``Any``, and nested dataclasses.
"""

import dataclasses
import json
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kdistill.errors import ConfigError, did_you_mean

T = TypeVar("T")

_FLOAT_WORDS = ("inf", "-inf", "nan")  # JSON has no such numbers: they are written as these strings
# of every simple type the name in messages, and the Python types of what it takes
_SCALARS: dict[Any, tuple[str, tuple[type, ...]]] = {
    None: ("none", (type(None),)),
    type(None): ("none", (type(None),)),
    bool: ("true or false", (bool,)),
    int: ("an integer", (int,)),
    float: ("a number", (int, float)),
    str: ("a string", (str,)),
    Path: ("a path", (str, Path)),
}
# ".5" and "5." are no TOML, but people write them
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TABLES = (dict, Mapping)  # typing.Mapping[...] has this origin too
MAX_DEPTH = 100  # of tables in tables: what is read is walked by functions that call themselves
# tomllib takes n^2 time and memory for a key of n parts
_DEEP_KEY = re.compile(rf"""(?<![\w"'-])(?:[\w"'-]+\s*\.\s*){{{MAX_DEPTH + 1}}}""")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def from_mapping(cls: type[T], mapping: Mapping[str, Any], *, where: str = "config") -> T:
    """Build the dataclass ``cls`` from a plain mapping, checking every key and type.

    Args:
        cls: A dataclass; nested dataclass fields are built from nested mappings.
        mapping: Keys are field names.  An int is accepted for a float, a list for a tuple, the word
            ``"none"`` for ``None`` where no string is allowed, and ``"inf"``, ``"-inf"``, ``"nan"``
            for a float; nothing else is converted.
        where: Names the source in messages, e.g. ``"run.toml"``.

    Returns:
        An instance of ``cls``; fields that are not in ``mapping`` keep their defaults.

    Raises:
        ConfigError: Unknown key (with a suggestion), missing key, or wrong type; the message
            carries the dotted path.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(
            f"{where}: expected a dataclass to build, got {cls!r}; pass the configuration class "
            "itself"
        )
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"{where}: expected a table of keys and values, got {_shown(mapping)}; write one 'key "
            "= value' per line"
        )
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in mapping:
        if key not in fields:
            hint = did_you_mean(str(key), list(fields)) if fields else "it has no options"
            raise ConfigError(f"{where}: expected a known option, got '{key}'; {hint}")
    missing = [
        name
        for name, field in fields.items()
        if name not in mapping and {field.default, field.default_factory} == {dataclasses.MISSING}
    ]
    if missing:
        raise ConfigError(
            f"{where}: expected a value for {', '.join(map(repr, missing))}, got none; add it"
        )
    hints = _type_hints(cls)
    return cls(
        **{name: _convert(hints[name], value, f"{where}.{name}") for name, value in mapping.items()}
    )


def to_mapping(config: object) -> dict[str, Any]:
    """Return the plain mapping of a dataclass instance.

    :func:`from_mapping` turns it back into an equal instance.  Nested dataclasses become dicts,
    tuples become lists, paths become strings: what JSON can hold, and infinities.

    Raises:
        ConfigError: ``config`` is no dataclass instance, or holds a value of a type that has no
            plain form.
    """
    if isinstance(config, type) or not dataclasses.is_dataclass(config):
        raise ConfigError(
            f"to_mapping: expected a dataclass instance, got {_shown(config)}; pass a "
            "configuration object"
        )
    return {
        field.name: _plain(getattr(config, field.name), field.name)
        for field in dataclasses.fields(config)
        if field.init
    }


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a ``.toml`` or ``.json`` file into a plain mapping.

    Raises:
        ConfigError: Missing or unreadable file, another ending, a syntax error (with its line), or
            a top level that is no table.
    """
    path = Path(path)
    if path.suffix not in (".toml", ".json"):
        raise ConfigError(
            f"{path}: expected a .toml or .json file, got '{path.suffix or path.name}'; rename or "
            "convert it"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "bytes that are not UTF-8"
        raise ConfigError(
            f"{path}: expected a readable configuration file, got: {reason}; check the path"
        ) from error
    too_deep = ConfigError(
        f"{path}: expected at most {MAX_DEPTH} tables or lists in one another, got more; flatten "
        "them"
    )
    if path.suffix == ".toml" and _DEEP_KEY.search(text):
        raise too_deep
    try:
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: expected valid {path.suffix[1:].upper()}, got: {error}; correct that line"
        ) from error
    if is_too_deep(value):
        raise too_deep
    if not isinstance(value, dict):
        raise ConfigError(
            f'{path}: expected a table at the top level, got {_shown(value)}; write {{"key": '
            f"value}}"
        )
    return value


def is_too_deep(value: Any) -> bool:
    """Return whether lists and tables lie in one another more than ``MAX_DEPTH`` times."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            entry
            for each in level
            if isinstance(each, (dict, list))
            for entry in (each.values() if isinstance(each, dict) else each)
            if isinstance(entry, (dict, list))
        ]
        if not level:
            return False
    return True


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn ``["lr=0.1", "data.size=32", "strategy=flip"]`` into a nested mapping.

    Values are TOML literals; a bare word is a string, as are dates.  Dots in keys nest; a later
    override wins.

    Raises:
        ConfigError: No ``=``, a malformed key, an unfinished literal, or a key that is used both as
            a value and as a table.
    """
    merged: dict[str, Any] = {}
    for text in overrides:
        key, equals, literal = text.partition("=")
        key = key.strip()
        if not equals or not _BARE_KEY.fullmatch(key) or key.count(".") > MAX_DEPTH:
            raise ConfigError(
                f"--set: expected key=value, got '{text}'; write for example --set lr_images=1.0"
            )
        *parents, last = key.split(".")
        table = merged
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(
                    f"--set: expected one use of '{parent}', got a value and a table in '{text}'; "
                    "remove one"
                )
        if isinstance(table.get(last), dict):
            raise ConfigError(
                f"--set: expected one use of '{last}', got a table and a value in '{text}'; remove "
                "one"
            )
        table[last] = _literal(literal.strip(), text)
    return merged


def merge(*mappings: Mapping[str, Any]) -> dict[str, Any]:
    """Return one mapping in which later ones win; tables merge key by key.

    Everything else is replaced.  Inputs do not change.
    """
    merged: dict[str, Any] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            if isinstance(value, Mapping):
                earlier = merged.get(key)
                value = merge(earlier if isinstance(earlier, Mapping) else {}, value)
            merged[key] = value
    return merged


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _wrong(where: str, annotation: Any, value: object) -> ConfigError:
    return ConfigError(
        f"{where}: expected {_describe(annotation)}, got {_shown(value)}; change the value"
    )


def _describe(annotation: Any) -> str:
    """Name a type as a user would: ``int or None``, ``one of 'a', 'b'``, ``list of float``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)} values ({', '.join(_describe(arg) for arg in args)})"
    if origin in (tuple, list):
        return f"a list of {_describe(args[0])}" if args else "a list"
    if origin in _TABLES or annotation in _TABLES or dataclasses.is_dataclass(annotation):
        return "a table"
    if annotation in _SCALARS:
        return _SCALARS[annotation][0]
    return getattr(annotation, "__name__", str(annotation))


def _convert(annotation: Any, value: Any, where: str) -> Any:
    """Return ``value`` as ``annotation`` or raise; containers and dataclasses recurse."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _convert_union(annotation, value, where)
    if origin is Literal:
        return _convert_literal(annotation, value, where)
    if annotation in (tuple, list) or origin in (tuple, list):
        return _convert_sequence(annotation, value, where)
    if annotation in _TABLES or origin in _TABLES:
        if not isinstance(value, Mapping):
            raise _wrong(where, annotation, value)
        item = args[1] if args else Any
        return {str(key): _convert(item, entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        if isinstance(value, annotation):
            return value
        if not isinstance(value, Mapping):
            raise _wrong(where, annotation, value)
        return from_mapping(annotation, value, where=where)
    return _convert_scalar(annotation, value, where)


def _convert_scalar(annotation: Any, value: Any, where: str) -> Any:
    if annotation in (Any, object):
        return value
    if annotation not in _SCALARS:
        raise ConfigError(
            f"{where}: expected a field type that can be read from a file, got {annotation}; use "
            "plain types"
        )
    is_word = annotation is float and value in _FLOAT_WORDS
    is_bool_for_number = isinstance(value, bool) and annotation is not bool
    if is_bool_for_number or not (is_word or isinstance(value, _SCALARS[annotation][1])):
        raise _wrong(where, annotation, value)
    try:
        return annotation(value) if annotation in (float, Path) else value
    except OverflowError:
        raise ConfigError(
            f"{where}: expected a number, got an integer beyond the range of a float; write it "
            "smaller"
        ) from None


def _convert_union(annotation: Any, value: Any, where: str) -> Any:
    """Take the first member that fits.

    Exact types come before conversions, so that ``int | float`` keeps an int.
    """
    members = get_args(annotation)
    if type(value) in members:
        return value
    nested: list[ConfigError] = []
    for member in members:
        try:
            return _convert(member, value, where)
        except ConfigError as error:
            if isinstance(value, (Mapping, list, tuple)) and _takes_container(member):
                nested.append(error)
    if type(None) in members and isinstance(value, str) and value.lower() in ("none", "null"):
        return None
    if len(nested) == 1:  # the only member of that shape: its own message says more
        raise nested[0]
    raise _wrong(where, annotation, value)


def _takes_container(annotation: Any) -> bool:
    kinds = (tuple, list, *_TABLES)
    return (
        annotation in kinds
        or get_origin(annotation) in kinds
        or dataclasses.is_dataclass(annotation)
    )


def _convert_literal(annotation: Any, value: Any, where: str) -> Any:
    choices = get_args(annotation)
    if any(type(choice) is type(value) and choice == value for choice in choices):
        return value
    words = [choice for choice in choices if isinstance(choice, str)]
    if isinstance(value, str) and words:
        raise ConfigError(
            f"{where}: expected {_describe(annotation)}, got '{value}'; "
            f"{did_you_mean(value, words)}"
        )
    raise _wrong(where, annotation, value)


def _convert_sequence(annotation: Any, value: Any, where: str) -> Any:
    kind, items = get_origin(annotation) or annotation, get_args(annotation)
    is_of_one_type = kind is list or not items or items[-1] is Ellipsis
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, annotation, value)
    if is_of_one_type:
        items = (items[0] if items else Any,) * len(value)
    elif items == ((),):  # tuple[()]
        items = ()
    if len(value) != len(items):
        raise _wrong(where, annotation, value)
    return kind(
        _convert(item, entry, f"{where}[{i}]")
        for i, (item, entry) in enumerate(zip(items, value, strict=True))
    )


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    raise ConfigError(
        f"{where}: expected a value that a file can hold, got {_shown(value)}; use numbers, "
        "strings, lists or tables"
    )


def _literal(text: str, override: str) -> Any:
    """Parse one TOML literal; words that are no literal are strings."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except RecursionError as error:
        raise ConfigError(
            "--set: expected a value, got lists nested too deeply; flatten them"
        ) from error
    except tomllib.TOMLDecodeError as error:
        if _DECIMAL.fullmatch(text):
            return float(text)
        if text[:1] in ("[", "{", '"', "'") or "\n" in text:
            raise ConfigError(
                f"--set: expected a complete value, got '{override}' ({error}); quote it for the "
                "shell"
            ) from error
        return text
    value = parsed.pop("value")
    if is_too_deep(value):
        raise ConfigError("--set: expected a value, got lists nested too deeply; flatten them")
    is_plain = isinstance(value, (bool, int, float, str, list, dict))  # not a date
    return value if is_plain and not parsed else text
