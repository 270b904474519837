"""One case per op: inputs, shapes, flops and bytes, peers.  Tests and benchmarks read the same description."""

import importlib
import pkgutil

from kdistill.testing.cases._case import Bench, OpCase, Shape, values_of

__all__ = ["Bench", "OpCase", "Shape", "all_cases", "case", "values_of"]


def case(name: str) -> OpCase:
    """Return the case of one op."""
    found: OpCase = importlib.import_module(f"{__name__}.{name}").CASE
    return found


def all_cases() -> list[OpCase]:
    """Return the case of every op, by name."""
    return [case(name) for name in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))]
