"""C++ kernels of csrc/cpu."""

from torch import Tensor

from kdistill import _native

# glibc serves allocations from 32 MiB on with fresh pages every time; below, it reuses memory that is already mapped
_FRESH_NBYTES = 32 << 20


def new_output(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return ``like.new_empty(shape)`` for a kernel to fill, on huge pages where the system gives fresh memory anyway."""
    out = like.new_empty(shape)
    if out.nbytes >= _FRESH_NBYTES:
        _native.function("_cpu", "advise_huge_pages")(out.data_ptr(), out.nbytes)
    return out
