"""The backends that a test can run here: emulated CUDA and interpreted Triton among them."""

import importlib.util
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from kdistill import _native, ops
from kdistill.ops import BACKENDS, implementation, op_of

ISAS = ("generic", "avx2", "avx512")


def runnable_backends() -> list[str]:
    """Return the backends that can run CPU tensors in this process."""
    runs = {
        "reference": True,
        "cpu": _native.why_missing("_cpu") is None,
        "cuda": _native.why_missing("_cuda_emulated") is None,
        "triton": os.environ.get("TRITON_INTERPRET") == "1",
    }
    return [backend for backend, can_run in runs.items() if can_run]


def has_kernel(name: str, backend: str) -> bool:
    """Say whether an op is written for a backend; where it is not, its note says why."""
    return importlib.util.find_spec(f"kdistill.backends.{backend}.{op_of(name)}") is not None


@contextmanager
def running_on(backend: str) -> Iterator[None]:
    """Run ops on ``backend``; ``cuda`` means the emulation where there is no GPU."""
    with ExitStack() as stack:
        if backend == "cuda" and not torch.cuda.is_available():
            stack.enter_context(_native.emulate_cuda())
        stack.enter_context(ops.use_backend(backend))
        yield


def isa_refusals() -> dict[str, str | None]:
    """Return, by instruction set, lowest first, None or why it cannot run here."""
    missing = _native.why_missing("_cpu")
    if missing is not None:
        return dict.fromkeys(ISAS, missing)
    best = ISAS.index(_native.function("_cpu", "supported_isa")())
    compiled = len(ISAS) if platform.machine().lower() in ("x86_64", "amd64") else 1
    reasons = [
        "this processor does not offer it" if i < compiled else f"not for {platform.machine()}"
        for i in range(len(ISAS))
    ]
    return {name: None if i <= best else reasons[i] for i, name in enumerate(ISAS)}


def isas() -> list[str]:
    """Return the instruction sets that this processor can run, lowest first."""
    return [name for name, refusal in isa_refusals().items() if refusal is None]


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Run the CPU kernels with a lower instruction set inside the ``with`` block."""
    before = _native.function("_cpu", "isa")()
    _native.function("_cpu", "use_isa")(name)
    try:
        yield
    finally:
        _native.function("_cpu", "use_isa")(before)


def implementations(name: str) -> dict[str, str]:
    """Return, by backend, "ok" or why it cannot run ``name`` on CPU tensors."""
    answers = {backend: implementation(name, backend, ()) for backend in BACKENDS}
    return {backend: "ok" if callable(answer) else answer for backend, answer in answers.items()}
