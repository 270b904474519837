"""What an option may be: declared once beside the option, checked, and shown to users.

An option is a field of a config dataclass.  ``Annotated`` names its range, its words, or what None
stands for, and so does ``Literal``; the ``Attributes`` section of the class explains it.  A class
that only changes a default repeats neither.  ``check_options`` in ``__post_init__`` checks them
all; ``kdistill methods NAME`` shows them.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kdistill.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Range:
    """The numbers that an option, or every entry of a list, may be.

    None passes where its type allows it, and so does a word of a ``Literal`` beside a number.

    Attributes:
        text: What is shown, such as ``"at least 1"``.
        holds: Says whether a number is in the range.
        hint: What an error proposes.
        noun: What stands before ``text`` in an error.
    """

    text: str
    holds: Callable[[Any], bool]
    hint: str
    noun: str = ""


@dataclass(frozen=True)
class Words:
    """The words that an option, or every entry of a list, may be."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Unset:
    """What the value None of an option stands for."""

    meaning: str


AUTOMATIC = Unset("found automatically")
COUNT = Range("at least 1", lambda value: value >= 1, "raise it")
ITERATIONS = Range("0 or more", lambda value: value >= 0, "0 gives the first images")
POSITIVE = Range(
    "above 0", lambda value: value > 0 and math.isfinite(value), "0.01 is usual", "a number "
)
NOT_NEGATIVE = Range(
    "0 or more",
    lambda value: value >= 0 and math.isfinite(value),
    "0 changes nothing",
    "a number of ",
)
MOMENTUM = Range("in [0, 1)", lambda value: 0.0 <= value < 1.0, "0.5 is usual", "a number ")
DECAY = Range("in [0, 1]", lambda value: 0.0 <= value <= 1.0, "0.999 is usual", "a number ")
MASKED_SHARE = Range(
    "in [0, 1)", lambda value: 0.0 <= value < 1.0, "0 compares everything", "a share "
)
SHARE = Range("in [0, 1]", lambda value: 0.0 <= value <= 1.0, "1 is all", "a share ")
HELD_OUT = Range("in [0, 1)", lambda x: 0.0 <= x < 1.0, "0.1 holds out a tenth", "a share ")
MAX_MINUTES = Range("0 or more", lambda minutes: minutes >= 0, "leave it out for no limit")
SCHEDULE = Words(("constant", "cosine"))


@dataclass(frozen=True)
class Option:
    """One option as it is shown.

    Attributes:
        name: Name of the field.
        default: Default as a user would write or read it.
        allowed: Type and range.
        explanation: What it does.
        owner: The config class that explains it.
    """

    name: str
    default: str
    allowed: str
    explanation: str
    owner: type


def check_value(name: str, value: Any, mark: object, words: tuple[Any, ...] = ()) -> None:
    """Raise ConfigError unless ``value`` is what ``mark`` (a ``Range`` or ``Words``) allows.

    ``words`` are named beside a range, as they are allowed too.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(mark, Range) and not (is_number and mark.holds(value)):
        expected = " or ".join([*map(str, words), f"{mark.noun}{mark.text}"])
        raise ConfigError(f"{name}: expected {expected}, got {value!r}; {mark.hint}")
    if isinstance(mark, Words) and value not in mark.words:
        raise ConfigError(
            f"{name}: expected one of {', '.join(mark.words)}, got '{value}'; "
            f"{did_you_mean(str(value), list(mark.words))}"
        )


def check_options(config: object, where: str = "") -> None:
    """Raise ConfigError unless every option of a config is in its range.

    Args:
        config: An instance of a config dataclass.
        where: What stands before the option's name in a message, such as ``"protocol"``.
    """
    for name, annotation in _declared(type(config)).items():
        value, words = getattr(config, name), _literals(annotation)
        if value is not None and value not in words:
            for mark in _marks(annotation):
                for entry in value if isinstance(value, list | tuple) else (value,):
                    check_value(f"{where}.{name}" if where else name, entry, mark, words)


def options(config: type) -> tuple[Option, ...]:
    """Return all options of a config class, its own before those that it inherits.

    Raises:
        ConfigError: An option has no explanation.
    """
    every = [_option(config, field) for field in dataclasses.fields(config)]
    return tuple(sorted(every, key=lambda option: config.__mro__.index(option.owner)))


def values_shown(config: object) -> str:
    """Return the values of all options of a config as a user would write them."""
    return ", ".join(
        f"{field.name}={value_shown(type(config), field.name, getattr(config, field.name))}"
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
    )


def value_shown(config: type, name: str, value: Any) -> str:
    """Return the value of an option as a user would write it, and None as what it stands for."""
    if value is None:
        marks = _marks(_declared(config).get(name))
        return next((mark.meaning for mark in marks if isinstance(mark, Unset)), "none")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(entry)}" for key, entry in value.items()) or "nothing"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value) or "nothing"


def _plain(value: Any) -> str:
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _option(config: type, field: "dataclasses.Field[Any]") -> Option:
    for owner in config.__mro__:
        if text := _explanations(owner).get(field.name):
            default = (
                field.default
                if field.default_factory is dataclasses.MISSING
                else field.default_factory()
            )
            shown = (
                "needs a value"
                if default is dataclasses.MISSING
                else value_shown(config, field.name, default)
            )
            return Option(field.name, shown, _allowed(config, field.name), text, owner)
    raise ConfigError(
        f"{config.__name__}: expected an explanation of '{field.name}' under Attributes, got none; "
        "add it"
    )


def _allowed(config: type, name: str) -> str:
    kinds = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
    hint = get_type_hints(config)[name]
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    names = []
    for member in members:
        origin = get_origin(member) or member
        if origin is Literal:
            names += map(str, get_args(member))
        elif member is not type(None):
            names.append(kinds.get(origin) or ("table" if issubclass(origin, Mapping) else "list"))
    text = " or ".join(names)
    for mark in _marks(_declared(config).get(name)):
        if isinstance(mark, Words):
            text = " or ".join(mark.words) if len(mark.words) == 2 else ", ".join(mark.words)
        elif isinstance(mark, Range | str):
            text += f", {mark if isinstance(mark, str) else mark.text}"
    return f"{text}; or none" if type(None) in members else text


def _declared(config: type) -> dict[str, Any]:
    """Return the annotation of every option that declares something.

    The class nearest to ``config`` whose annotation declares something counts.
    """
    return {
        name: annotation
        for owner in reversed(config.__mro__)
        for name, annotation in inspect.get_annotations(owner).items()
        if _marks(annotation)
    }


def _marks(annotation: Any) -> tuple[object, ...]:
    """Return what an annotation declares: marks of ``Annotated``, or words of ``Literal``."""
    if get_origin(annotation) is Literal:
        return (Words(get_args(annotation)),)
    return getattr(annotation, "__metadata__", ())


def _literals(annotation: Any) -> tuple[Any, ...]:
    """Return the words that ``Literal`` names anywhere in an annotation."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(word for member in get_args(annotation) for word in _literals(member))


def _explanations(owner: type) -> dict[str, str]:
    """Return the entries of a docstring's ``Attributes`` section, each in one line."""
    _, _, section = inspect.cleandoc(owner.__doc__ or "").partition("\nAttributes:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        entry = re.fullmatch(r"    (\w+): (.*)", line)
        if line and not line.startswith(" "):
            break  # the next section
        if entry:
            name = entry[1]
            texts[name] = entry[2]
        elif line.strip() and name:
            texts[name] += f" {line.strip()}"
    return {name: text.replace("``", "").replace('"', "") for name, text in texts.items()}
