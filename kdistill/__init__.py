"""kdistill: dataset distillation as a fused-kernel engine."""

from kdistill._version import __version__

__all__ = ["__version__"]
