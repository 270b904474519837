"""In which numbers the products of students are taken: float32, TF32, or bfloat16.

Products are convolutions, and under TF32 the linear layers too.  Under bfloat16 their operands and
results are rounded to 8 bits while sums run in float32; parameters, norms, the classifier, losses
and the state of the adjoint stay in float32.  How far the gradients then are from the exact ones
stands in NUMERICS.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from kdistill.errors import ConfigError, did_you_mean

PRECISIONS = ("fp32", "tf32", "bf16")

_asked: ContextVar[str] = ContextVar("kdistill_precision", default="fp32")


@contextmanager
def use_precision(name: str, device: torch.device | str) -> Iterator[None]:
    """Take the products of students inside the ``with`` block in one precision.

    On a GPU torch's own setting lets float32 convolutions run in TF32; inside the block ``"fp32"``
    means float32.  Outside of any block the engine follows torch's setting.

    Args:
        name: ``"fp32"``; ``"tf32"``: 10 bits of mantissa, on NVIDIA GPUs; ``"bf16"``: 7 bits, of
            ``convnet`` alone.
        device: Where the products will be taken.

    Raises:
        ConfigError: The name is unknown, or TF32 is asked for on a CPU.
    """
    check_precision(name, device)
    kind = torch.device(device).type
    token = _asked.set(name)
    try:
        with _tensor_cores("tf32" if name == "tf32" else "ieee", kind != "cpu"):
            yield
    finally:
        _asked.reset(token)


def check_precision(name: str, device: torch.device | str | None = None) -> None:
    """Raise ConfigError unless ``name`` is a precision that ``device``, if given, has."""
    if name not in PRECISIONS:
        raise ConfigError(
            f"precision: expected a known one, got '{name}'; "
            f"{did_you_mean(str(name), list(PRECISIONS))}"
        )
    if name == "tf32" and device is not None and torch.device(device).type == "cpu":
        raise ConfigError(
            "precision: expected fp32 or bf16 on the CPU, got tf32; TF32 is a format of NVIDIA "
            "GPUs, use fp32"
        )


def asked_precision() -> str:
    """Return what ``use_precision`` asked for; ``"fp32"`` outside of any block."""
    return _asked.get()


@contextmanager
def _tensor_cores(setting: str, applies: bool) -> Iterator[None]:
    """Set how cuDNN and cuBLAS multiply float32 numbers, and set it back."""
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul) if applies else ()
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = setting
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
