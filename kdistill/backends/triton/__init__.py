"""Triton kernels: on CUDA tensors, or on CPU tensors under ``TRITON_INTERPRET=1`` (tests)."""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OLDEST_CAPABILITY = (8, 0)


def supports(*args: Any) -> str | None:
    """Return why Triton, which is installed, cannot run these arguments; None if it can."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            return f"dtype {tensor.dtype} is not supported; use float32 or float64"
    device = tensors[0].device.type if tensors else "cpu"
    if device == "cuda":
        return why_no_launch(tensors[0].device)
    if os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f"the tensors are on {device}; Triton needs cuda, or TRITON_INTERPRET=1 to run slowly "
            "on the CPU"
        )
    return None


@functools.cache
def why_no_launch(device: torch.device) -> str | None:
    """Return why Triton cannot launch on a GPU (its age, driver or C compiler), or None."""
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < OLDEST_CAPABILITY:
        oldest = ".".join(map(str, OLDEST_CAPABILITY))
        return f"the GPU has compute capability {major}.{minor}; Triton needs {oldest} or newer"
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # a missing compiler, driver or header comes as any kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"Triton cannot use its driver: {reason}"
    return None


def prepared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` launching on the GPU of its first tensor, not on the current one."""

    @functools.wraps(function)
    def on_its_device(*args: Any) -> Any:
        device = next((a.device for a in args if isinstance(a, Tensor)), None)
        if device is None or device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(*args)
        with torch.cuda.device(device):
            return function(*args)

    return on_its_device
