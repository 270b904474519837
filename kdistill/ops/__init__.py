"""The public ops: fused kernels with a reference, and the choice of backend."""

from kdistill.ops._registry import use_backend
from kdistill.ops.class_mean_sqdist import class_mean_sqdist

__all__ = ["class_mean_sqdist", "use_backend"]
