"""``plan``: what a run will need, before it starts.

The run is rehearsed: built as it would be, with an inner trajectory of two steps where the method
has one, and taken through a few outer iterations.  What grows with the number of steps is then
added from its formula: time is linear in outer and inner steps, and a trajectory keeps one
parameter vector per inner step.  Of a published generator that is named and not there, work and
memory are counted from its architecture.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from kdistill import methods
from kdistill._native import peak_bytes
from kdistill.api.inputs import check_class_counts, load, training_images, use
from kdistill.api.run import RunConfig
from kdistill.config import from_mapping
from kdistill.data import ImageDataset
from kdistill.formatting import duration

ROUNDS = 3  # iterations that are timed, after one that is not
PAGE_BYTES = 36_000  # card, configuration and metrics of an artefact
PREVIEW = 0.35  # bytes of preview.png for a byte of float32 images
METRICS_LINE_BYTES = 230  # a line of metrics.jsonl, one every ten iterations


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Attributes:
        memory_bytes: Peak resident memory of the process.
        disk_bytes: Size of the finished run's folder: artefact and checkpoints.
        seconds: Time of the outer loop.
        expert_bytes: Size of the expert trajectories that are missing.
        expert_seconds: Time to train them.
        iteration_seconds: Time of one outer iteration.
        num_params: P of the network, 0 where the method has no trajectories.
        assumptions: What the numbers come from where a part was counted instead of timed.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float
    expert_bytes: int
    expert_seconds: float
    iteration_seconds: float
    num_params: int
    assumptions: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"memory   {self.memory_bytes / 2**30:.2f} GiB peak",
            f"disk     {self.disk_bytes / 1e6:.1f} MB for the run",
            f"time     {duration(self.seconds)} ({_short_time(self.iteration_seconds)} an "
            "iteration)",
        ]
        if self.expert_seconds:
            lines.append(
                f"experts  {duration(self.expert_seconds)} and {self.expert_bytes / 1e6:.1f} MB, "
                "once"
            )
        lines += [f"assumed  {assumption}" for assumption in self.assumptions]
        return "\n".join(lines)


def plan(
    data: ImageDataset | Any,
    *,
    method: str = "dm",
    ipc: int = 10,
    preset: str = "fast",
    options: Mapping[str, Any] | None = None,
    validation: float = 0.1,
    threads: int | None = None,
) -> Plan:
    """Predict memory, disk and time of a run from a dry run of a few iterations.

    Args:
        data: As for ``distill``.
        method: As for ``distill``.
        ipc: As for ``distill``.
        preset: As for ``distill``.
        options: As for ``distill``.
        validation: As for ``distill``.
        threads: As for ``distill``.

    Returns:
        The prediction, for this machine and its present load.  Evaluation is not part of it.

    Raises:
        ConfigError: What ``distill`` would refuse.

    Cost: a few outer iterations with two inner steps, and two steps of an expert.
    """
    settings = {
        "method": method,
        "ipc": ipc,
        "preset": preset,
        "validation": validation,
        "options": options or {},
    }
    return plan_of(from_mapping(RunConfig, settings, where="plan"), data, threads=threads)


def plan_of(config: RunConfig, data: ImageDataset | Any, *, threads: int | None = None) -> Plan:
    """Predict what a run with these settings will need."""
    config.check()
    use(threads)
    method = methods.get(config.method)
    training = training_images(load(data), config.validation)
    check_class_counts(training, config.ipc)
    options = config.method_options
    with tempfile.TemporaryDirectory() as folder:
        dry_run = (
            methods.DryRun(options)
            if method.experts is None
            else method.experts.dry_run(options, training, Path(folder))
        )
        before = peak_bytes()
        problem = (dry_run.method or method).build(
            dry_run.config, dry_run.data or training, config.ipc, 0, None
        )
        seconds = _iteration_seconds(problem) * dry_run.steps_ratio * dry_run.pixels_ratio
    image_bytes = int(_nbytes(problem.state) * dry_run.pixels_ratio)
    optimiser_bytes = int(_nbytes(problem.optimizer.init(problem.state)) * dry_run.pixels_ratio)
    state_bytes = image_bytes + optimiser_bytes
    objective_bytes = int((peak_bytes() - before) * dry_run.pixels_ratio) + dry_run.more_bytes
    resident_bytes = state_bytes
    if (rendering := dry_run.rendering) is not None:
        seconds += rendering.seconds_per_image * len(problem.labels)
        # the objective has released its memory when a chunk of images has a graph
        objective_bytes = max(objective_bytes, rendering.chunk_bytes)
        resident_bytes += rendering.resident_bytes
    checkpoints = 2 if seconds * problem.iterations > 60 else 1
    return Plan(
        memory_bytes=before + objective_bytes + resident_bytes,
        disk_bytes=int(image_bytes * (1 + PREVIEW) + state_bytes * checkpoints)
        + PAGE_BYTES
        + METRICS_LINE_BYTES * problem.iterations // 10,
        seconds=seconds * problem.iterations,
        expert_bytes=dry_run.expert_bytes,
        expert_seconds=dry_run.expert_seconds,
        iteration_seconds=seconds,
        num_params=dry_run.num_params,
        assumptions=() if rendering is None else rendering.assumptions,
    )


def _short_time(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 60 else duration(seconds)


def _iteration_seconds(problem: methods.Problem) -> float:
    """Return the mean time of an iteration over the phases of a run."""
    stops = [*problem.phases[1:], problem.iterations]
    lengths = [stop - first for first, stop in zip(problem.phases, stops, strict=True)]
    timed = {first: n for first, n in zip(problem.phases, lengths, strict=True) if n > 0} or {0: 1}
    total = sum(n * _median_seconds(problem, first) for first, n in timed.items())
    return total / sum(timed.values())


def _median_seconds(problem: methods.Problem, first: int) -> float:
    """Return the median time of a few iterations from ``first``, which itself is left out."""
    times = []
    with torch.no_grad():
        for iteration in range(first, first + 1 + ROUNDS):
            began = time.perf_counter()
            images = problem.prior.render(problem.state, iteration)
            step = problem.objective(iteration, images, problem.state)
            problem.prior.vjp(problem.state, step.grad_images, iteration)
            float(step.loss)
            times.append(time.perf_counter() - began)
    return median(times[1:])


def _nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(x.nbytes for x in tensors.values())
