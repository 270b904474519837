"""One case per op: inputs, shapes, flops and bytes, peers.  Tests and benchmarks read the same description."""

import importlib
import pkgutil

from kdistill.testing.op_case import Bench, OpCase, Shape, as_tuple

__all__ = ["Bench", "OpCase", "Shape", "all_cases", "as_tuple", "case", "every_case"]


def case(name: str) -> OpCase:
    """Return the case of one op."""
    found: OpCase = importlib.import_module(f"{__name__}.{name}").CASE
    return found


def all_cases() -> list[OpCase]:
    """Return the case of every op, by name."""
    return [
        case(name)
        for name in sorted(
            m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")
        )
    ]


def every_case() -> list[OpCase]:
    """Return the case of every op, each followed by that of its tangents."""
    return [c for of in all_cases() for c in (of, of.tangents) if c is not None]
