"""CUDA kernels of csrc/cuda: on CUDA tensors, or on CPU tensors through the emulation (tests)."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cuda")


def launch(op: str, tensors: Sequence[Tensor | None], *numbers: float) -> None:
    """Run the kernel for the first tensor's dtype on addresses (0 for None), numbers, stream."""
    first: Tensor = tensors[0]  # type: ignore[assignment]
    run = _native.kernel("_cuda", op, first.dtype, first.device)
    with _native.stream_of(first) as stream:
        run(*[0 if t is None else t.data_ptr() for t in tensors], *numbers, stream)
