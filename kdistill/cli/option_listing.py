"""The text of ``kdistill methods`` and ``kdistill options``, at most 80 characters a line."""

from collections.abc import Iterator, Mapping
from typing import Any

from kdistill import methods
from kdistill.formatting import wrapped
from kdistill.methods import Method
from kdistill.methods.base import MethodConfig
from kdistill.options import Option, Words, check_value, options, value_shown


def overview(*, papers: bool) -> Iterator[str]:
    """Yield one line per method under its family, with its citation if ``papers``."""
    every = [methods.get(name) for name in methods.names()]
    for family, title in methods.FAMILIES.items():
        yield title
        for method in (m for m in every if m.family == family):
            yield f"  {method.name:<6} {method.summary}"
            if papers:
                yield from wrapped(method.paper, 9)
        yield ""
    yield from wrapped(
        "kdistill methods NAME lists the options of a method, with --presets its presets; "
        "kdistill methods --papers cites the papers; kdistill options score, prior or evaluate "
        "lists those of other commands."
    )


def method_options(method: Method) -> Iterator[str]:
    """Yield what a method is and needs, its options, and where it differs from the paper."""
    yield f"{method.name}: {method.summary}"
    names = list(method.presets)
    if len(names) > 6:
        names = [f"paper, fast and {len(names) - 2} of published settings"]
    for what, text in (
        ("paper", method.paper),
        ("cost", method.cost),
        ("needs", method.needs),
        ("labels", "learned" if "lr_labels" in method.config.__dataclass_fields__ else "hard"),
        ("presets", f"{', '.join(names)} (kdistill methods {method.name} --presets)"),
    ):
        yield from wrapped(text, 10, f"  {what:<7}")
    yield ""
    yield from wrapped(
        "Options: --set NAME=VALUE, in Python options={...}. The default is the published value; "
        "another value of preset fast (which is what runs without --preset) stands behind it."
    )
    yield ""
    yield from _listed(method.config, method.presets["fast"], shared=MethodConfig)
    if method.deviations:
        yield ""
        yield "Where it differs from the paper or its code"
        for line in method.deviations:
            yield from wrapped(line, 4, "  -")


def method_presets(method: Method) -> Iterator[str]:
    """Yield every preset with the values that differ from the defaults."""
    title = f"Presets of {method.name}: what differs from the defaults"
    yield from wrapped(f"{title} (kdistill methods {method.name})")
    for name, changes in method.presets.items():
        yield from _changes(name, method.config, changes)


def command_options(name: str) -> Iterator[str]:
    """Yield the options of a command that is not about one method.

    Raises:
        ConfigError: The command is unknown, or has no options of its own.
    """
    from kdistill.evaluation import PROTOCOLS, Protocol
    from kdistill.priors.training import KINDS
    from kdistill.selection import ScoreSpec

    by_set = "--set NAME=VALUE, in Python options={...}"
    known: dict[str, dict[type, str]] = {
        "score": {ScoreSpec: f"Options of kdistill score: {by_set}."},
        "prior": {
            kind.spec: f"Options of kdistill prior train --kind {name}: {by_set}."
            for name, kind in KINDS.items()
        },
        "evaluate": {
            Protocol: "Recipe of kdistill evaluate: --protocol names one, in Python "
            "protocol=Protocol(...) makes another. --nets, --epochs, --batch-size, --strategy, "
            "--lr and --precision change it."
        },
    }
    check_value("options", name, Words(tuple(known)))
    for config, title in known[name].items():
        if config is not next(iter(known[name])):
            yield ""
        yield from wrapped(title)
        yield ""
        yield from _listed(config)
    for protocol in PROTOCOLS.values() if name == "evaluate" else ():
        defaults = vars(Protocol(name=protocol.name))
        changes = {key: x for key, x in vars(protocol).items() if x != defaults[key]}
        yield from _changes(protocol.name, Protocol, changes)


def _listed(
    config: type, fast: Mapping[str, Any] | None = None, shared: type | None = None
) -> Iterator[str]:
    """Yield every option of a config, those of the class ``shared`` below a heading."""
    is_below = False
    for option in options(config):
        if option.owner is shared and not is_below:
            is_below = True
            yield ""
            yield "Options that every method has"
        yield from _option(config, option, fast or {})


def _changes(name: str, config: type, changes: Mapping[str, Any]) -> Iterator[str]:
    shown = (f"{key}={value_shown(config, key, value)}" for key, value in _flat(changes))
    yield ""
    yield f"  {name}"
    yield from wrapped(", ".join(shown) or "the defaults", 6)


def _option(config: type, option: Option, fast: Mapping[str, Any]) -> Iterator[str]:
    line = f"{option.name} = {option.default}  [{option.allowed}]"
    if option.name in fast:
        shown = value_shown(config, option.name, fast[option.name])
        line += f"  (fast: {shown})" if shown != option.default else ""
    yield from wrapped(line, 6, " ")
    yield from wrapped(option.explanation, 6)


def _flat(changes: Mapping[str, Any], parent: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in changes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{parent}{name}.")
        else:
            yield f"{parent}{name}", value
