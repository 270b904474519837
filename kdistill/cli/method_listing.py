"""The text of ``kdistill methods``, in lines of at most 80 characters."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from kdistill import methods
from kdistill.methods import Method
from kdistill.methods.base import MethodConfig
from kdistill.options import Option, options, value_shown

WIDTH = 80


def overview(*, papers: bool) -> Iterator[str]:
    """Yield one line per method under its family, with its citation if ``papers``."""
    found = [methods.get(name) for name in methods.names()]
    for family, title in methods.FAMILIES.items():
        yield title
        for method in (m for m in found if m.family == family):
            yield f"  {method.name:<6} {method.summary}"
            if papers:
                yield from _wrapped(method.paper, 9)
        yield ""
    yield from _wrapped(
        "kdistill methods NAME lists the options of a method, with --presets its presets; kdistill "
        "methods --papers cites the "
        "papers."
    )


def details(method: Method) -> Iterator[str]:
    """Yield what one method is and needs, its options with their explanations, and where it differs from the paper."""
    yield f"{method.name}: {method.summary}"
    needs = method.needs or ("expert trajectories" if method.experts else "nothing but the data")
    labels = "learned" if method.soft_labels else "hard"
    for what, text in (
        ("paper", method.paper),
        ("cost", method.cost),
        ("needs", needs),
        ("labels", labels),
    ):
        yield from _wrapped(text, 9, f"  {what:<7}")
    names = list(method.presets)
    listed = (
        ", ".join(names)
        if len(names) <= 6
        else f"paper, fast and {len(names) - 2} of published settings"
    )
    yield from _wrapped(f"{listed} (kdistill methods {method.name} --presets)", 9, "  presets")
    yield ""
    yield from _wrapped(
        "Options: --set NAME=VALUE, in Python options={...}. The default is the published value; "
        "another value of preset fast "
        "(which is what runs without --preset) stands behind it."
    )
    every = options(method.config)
    for title, own in (("", True), ("Options that every method has", False)):
        yield ""
        if title:
            yield title
        for option in every:
            if (option.owner is not MethodConfig) is own:
                yield from _option(method, option)
    if method.deviations:
        yield ""
        yield "Where it differs from the paper or its code"
        for line in method.deviations:
            yield from _wrapped(line, 4, "  -")


def presets(method: Method) -> Iterator[str]:
    """Yield every preset with the values that differ from the defaults."""
    yield f"Presets of {method.name}: what differs from the defaults (kdistill methods {method.name})"
    for name, changes in method.presets.items():
        shown = (f"{key}={value_shown(method.config, key, value)}" for key, value in _flat(changes))
        yield ""
        yield f"  {name}"
        yield from _wrapped(", ".join(shown) or "the defaults", 6)


def _option(method: Method, option: Option) -> Iterator[str]:
    line = f"{option.name} = {option.default}  [{option.allowed}]"
    fast = method.presets["fast"]
    if (
        option.name in fast
        and (shown := value_shown(method.config, option.name, fast[option.name])) != option.default
    ):
        line += f"  (fast: {shown})"
    yield from _wrapped(line, 6, " ")
    yield from _wrapped(option.explanation, 6)


def _flat(changes: Mapping[str, Any], parent: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in changes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{parent}{name}.")
        else:
            yield f"{parent}{name}", value


def _wrapped(text: str, indent: int = 0, first: str = "") -> list[str]:
    """Return ``text`` in lines that begin with ``indent`` spaces, the first one with ``first``."""
    head = f"{first} " if first else " " * indent
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
