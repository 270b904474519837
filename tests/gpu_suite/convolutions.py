"""cuDNN's convolutions by memory layout, precision and batch, with the kernels that it chooses."""

import sys
from functools import partial
from itertools import product

import torch
from torch import Tensor

from kdistill.engine import use_precision
from tests.gpu_suite.report import Report
from tests.gpu_suite.stage import main
from tests.gpu_suite.timing import by_name, copies, kernels_of, replayed_ms

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
PRECISIONS = {
    "fp32": ("fp32", torch.float32),
    "tf32": ("tf32", torch.float32),
    "bf16": ("fp32", torch.bfloat16),
}


def forward(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    return torch.nn.functional.conv2d(x, weight, padding=1)


def backward(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    )


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    sides, width, batches = ((4,), 8, (2,)) if is_tiny else ((16, 8), 128, (10, 100, 640))
    precisions = [name for name in PRECISIONS if name != "tf32" or device.type == "cuda"]
    for side, batch, name, layout in product(sides, batches, precisions, LAYOUTS):
        precision, dtype = PRECISIONS[name]
        x = torch.randn(batch, width, side, side, device=device)
        weight = torch.randn(width, width, 3, 3, device=device)
        inputs = tuple(
            t.to(dtype, memory_format=LAYOUTS[layout]) for t in (x, weight, torch.randn_like(x))
        )
        with (
            report.trying(f"{layout} {name} batch {batch} side {side}") as values,
            torch.no_grad(),
            use_precision(precision, device),
        ):
            for what, function in (("forward", forward), ("backward", backward)):
                values[f"{what}_ms"] = replayed_ms(function, copies(inputs, is_tiny), device)
                values[f"{what}_kernels"] = [
                    k for k, *_ in by_name(kernels_of(partial(function, *inputs), device), 4)
                ]


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
