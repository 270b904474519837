"""C++ kernels of csrc/cpu."""

import threading
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kdistill import _native

# glibc serves allocations from 32 MiB on with fresh pages every time; below, it reuses memory that
# is already mapped
_FRESH_NBYTES = 32 << 20
_KEPT_NBYTES = 64 << 20

_of_thread = threading.local()

supports = partial(_native.refusal, "_cpu")


def launch(op: str, tensors: Sequence[Tensor | None], *numbers: float) -> None:
    """Run the kernel for the first tensor's dtype on addresses (0 for None), numbers, threads."""
    run = _native.kernel("_cpu", op, tensors[0].dtype)  # type: ignore[union-attr]
    run(*[0 if t is None else t.data_ptr() for t in tensors], *numbers, torch.get_num_threads())


def new_output(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return ``like.new_empty(shape)``, on huge pages where the memory is fresh anyway."""
    out = like.new_empty(shape)
    if out.nbytes >= _FRESH_NBYTES:
        _native.function("_cpu", "advise_huge_pages")(out.data_ptr(), out.nbytes)
    return out


def new_channels_last(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    """Return ``new_output`` of sizes ``[N, C, H, W]`` in channels-last order."""
    return new_output(like, (n, h, w, c)).permute(0, 3, 1, 2)


def scratch(like: Tensor, elements: int) -> Tensor:
    """Return memory that holds until the next call in this Python thread, reused up to 64 MiB.

    Blocks of changing sizes between tensors that stay would leave holes in the heap.
    """
    nbytes = elements * like.element_size()
    if nbytes > _KEPT_NBYTES:
        return new_output(like, (elements,))
    memory: Tensor | None = getattr(_of_thread, "memory", None)
    if memory is None or memory.nbytes < nbytes:
        memory = torch.empty(nbytes, dtype=torch.uint8, device=like.device)
        _of_thread.memory = memory
    return memory[:nbytes].view(like.dtype)
