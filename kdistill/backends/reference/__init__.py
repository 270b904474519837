"""PyTorch, any dtype and device: the definition of truth."""

from typing import Any


def supports(*args: Any) -> str | None:
    """Return why these arguments cannot run here: never."""
    return None
