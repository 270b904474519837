"""Which real images stand for a class."""

from kdistill.selection.baselines import SELECTIONS, select

__all__ = ["SELECTIONS", "select"]
