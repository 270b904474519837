"""C++ kernels of csrc/cpu."""

import threading

import torch
from torch import Tensor

from kdistill import _native

# glibc serves allocations from 32 MiB on with fresh pages every time; below, it reuses memory that
# is already mapped
_FRESH_NBYTES = 32 << 20
_KEPT_NBYTES = 64 << 20

_of_thread = threading.local()


def new_output(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return ``like.new_empty(shape)`` for a kernel to fill, on huge pages where the system gives fresh memory anyway."""
    out = like.new_empty(shape)
    if out.nbytes >= _FRESH_NBYTES:
        _native.function("_cpu", "advise_huge_pages")(out.data_ptr(), out.nbytes)
    return out


def scratch(like: Tensor, elements: int) -> Tensor:
    """Return memory that holds until the next call in this Python thread: up to 64 MiB it is the same every time.

    Blocks of changing sizes between tensors that stay would leave holes in the heap.
    """
    nbytes = elements * like.element_size()
    if nbytes > _KEPT_NBYTES:
        return new_output(like, (elements,))
    kept: Tensor | None = getattr(_of_thread, "memory", None)
    if kept is None or kept.nbytes < nbytes:
        kept = _of_thread.memory = torch.empty(nbytes, dtype=torch.uint8, device=like.device)
    return kept[:nbytes].view(like.dtype)
