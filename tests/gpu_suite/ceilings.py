"""The ceilings of this device: bytes moved by a copy, products in float32, TF32, bfloat16."""

import sys

import torch

from benchmarks.measurement import clock_of, copy_call, interleaved
from kdistill.engine import use_precision
from tests.gpu_suite.report import Report
from tests.gpu_suite.stage import main


def products(device: torch.device, side: int) -> dict[str, tuple[str, torch.dtype]]:
    """Return, by name, the precision that products run under and their dtype."""
    tf32 = {"tf32": ("tf32", torch.float32)} if device.type == "cuda" else {}
    return {"fp32": ("fp32", torch.float32), **tf32, "bf16": ("fp32", torch.bfloat16)}


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    clock, seconds = clock_of(device), 0.01 if is_tiny else 0.3
    for megabytes in (1,) if is_tiny else (4, 32, 1024):
        with report.trying(f"copy of {megabytes} MB") as values:
            timed = interleaved({"copy": copy_call(megabytes << 20, device)}, seconds, clock)[
                "copy"
            ][""]
            values.update(ms=timed.median, gb_per_s=(megabytes << 20) / timed.median / 1e6)
    side = 64 if is_tiny else 4096
    for name, (precision, dtype) in products(device, side).items():
        with (
            report.trying(f"product of {side} x {side}, {name}") as values,
            use_precision(precision, device),
        ):
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            timed = interleaved({"mm": lambda a=a, b=b: torch.mm(a, b)}, seconds, clock)["mm"][""]
            values.update(ms=timed.median, tflops=2 * side**3 / timed.median / 1e9)


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
