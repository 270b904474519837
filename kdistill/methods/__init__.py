"""One published method per file; ``get`` finds it by name."""

import importlib
import pkgutil

from kdistill.errors import ConfigError, did_you_mean
from kdistill.methods._recipe import FAMILIES, Findings, Method, Problem, Rehearsal, Search, Step

__all__ = ["FAMILIES", "Findings", "Method", "Problem", "Rehearsal", "Search", "Step", "get", "names"]


def names() -> list[str]:
    """Return the names of all methods."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Method:
    """Return a method by name.

    Raises:
        ConfigError: The name is unknown; suggests the nearest one.
    """
    if name not in names():
        raise ConfigError(f"method: expected a known name, got {name!r}; {did_you_mean(str(name), names())}")
    method: Method = importlib.import_module(f"{__name__}.{name}").METHOD
    return method
