"""Kernels alone: every op by graph replay over rotated inputs, beside a copy of its bytes."""

import sys

import torch

from kdistill.testing.backends import has_kernel, running_on
from kdistill.testing.cases import as_tuple, every_case
from tests.gpu_suite.report import Report, Skipped
from tests.gpu_suite.smoke import backends, why_not
from tests.gpu_suite.stage import main
from tests.gpu_suite.timing import copies, nbytes, replayed_ms


def copy_ms(size: int, device: torch.device, is_tiny: bool) -> float:
    source = torch.empty(max(1, size // 8), device=device)
    pairs = [(a, torch.empty_like(source)) for (a,) in copies((source,), is_tiny)]
    return replayed_ms(lambda a, b: b.copy_(a), pairs, device)


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    ours = [name for name in backends(device) if name != "reference"]
    for case in every_case():
        shape = case.tiny if is_tiny else case.bench_shapes[0]
        for backend in (name for name in ours if has_kernel(case.name, name)):
            with (
                report.trying(f"{case.name} {backend} {shape}") as values,
                torch.no_grad(),
                running_on(backend),
            ):
                if reason := why_not(backend, device):
                    raise Skipped(reason)
                inputs = case.inputs(shape, seed=0, device=str(device))
                moved = nbytes(inputs) + nbytes(as_tuple(case.op(*inputs)))
                values["ms"] = replayed_ms(case.op, copies(inputs, is_tiny), device)
                values["percent_of_copy"] = 100 * copy_ms(moved, device, is_tiny) / values["ms"]


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
