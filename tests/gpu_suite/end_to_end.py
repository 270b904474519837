"""Whole calls by batch, precision and recording, beside the published unroll; a deep network."""

import sys
from functools import partial
from itertools import product

import torch

from benchmarks.measurement import clock_of, interleaved
from benchmarks.trajectory import Problem
from kdistill.engine import build_student, trajectory_match, use_precision
from kdistill.engine.precision import PRECISIONS
from kdistill.keys import generator
from tests.gpu_suite.report import Report
from tests.gpu_suite.stage import main


class Deep:
    """A trajectory of ConvNet-5 on 128 x 128 pixels, ten images."""

    def __init__(self, device: torch.device, is_tiny: bool):
        width, size, self.steps = (4, 32, 1) if is_tiny else (128, 128, 5)
        self.student = build_student(
            "convnet", channels=3, size=size, classes=10, width=width, depth=5
        )
        self.start, self.target = (self.student.init(generator(seed)).to(device) for seed in (0, 1))
        self.images = torch.randn(10, 3, size, size, generator=generator(2)).to(device)
        self.labels = torch.arange(10, device=device)

    def ours(self, cuda_graph: bool = False) -> object:
        batches = [torch.arange(10, device=self.images.device)] * self.steps
        return trajectory_match(
            self.student,
            self.start,
            self.target,
            self.images,
            self.labels,
            0.01,
            batches=batches,
            cuda_graph=cuda_graph,
        )


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    clock, seconds = clock_of(device), 0.01 if is_tiny else 1.0
    width, steps, batches = (4, 2, (2,)) if is_tiny else (128, 10, (10, 100))
    precisions = [name for name in PRECISIONS if name != "tf32" or device.type == "cuda"]
    problems = {
        f"trajectory, batch {b}, {steps} steps": Problem(device, torch.float32, steps, width, b)
        for b in batches
    }
    for (name, problem), precision, graph in product(problems.items(), precisions, (False, True)):
        with (
            report.trying(f"{name}, {precision}, {'recorded' if graph else 'plain'}") as values,
            use_precision(precision, device),
        ):
            readings = interleaved({"": partial(problem.ours, cuda_graph=graph)}, seconds, clock)[
                ""
            ]
            values.update(
                {f"{part or 'kernels'}_ms": timing.median for part, timing in readings.items()}
            )
    first, problem = next(iter(problems.items()))
    with report.trying(f"{first}, fp32, published unroll") as values, use_precision("fp32", device):
        readings = interleaved({"": problem.call("published unroll")}, seconds, clock)[""]
        values.update(
            {f"{part or 'kernels'}_ms": timing.median for part, timing in readings.items()}
        )
    for precision, graph in product(precisions, (False, True)):
        deep = Deep(device, is_tiny)
        how = "recorded" if graph else "plain"
        size = deep.images.shape[-1]
        what = f"ConvNet-5 on {size} pixels, {deep.steps} steps, {precision}, {how}"
        with report.trying(what) as values, use_precision(precision, device):
            readings = interleaved({"": partial(deep.ours, cuda_graph=graph)}, seconds, clock)[""]
            values.update(
                {f"{part or 'kernels'}_ms": timing.median for part, timing in readings.items()}
            )


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
