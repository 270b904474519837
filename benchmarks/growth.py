"""How time and memory grow.

The trajectory gradient grows with steps and batch, distribution matching with classes and images.

`trajectory_growth` varies N at a batch of 10 and the batch at N = 5; `dm_growth` varies classes at
10 images per class and images per class at 10 classes (64 real images of each).  ConvNet-3 of width
128 on 3x32x32 throughout.  What is timed here was checked by `trajectory_match` and `dm_iteration`;
memory is that of a fresh process, over what it had before."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks import iteration, trajectory
from benchmarks.measurement import Call, Timing, clock_of, interleaved
from benchmarks.op_runs import Result

WIDTH = 128
SCRIPT = """
import sys, torch
from benchmarks import growth
from kdistill._native import peak_bytes
torch.set_num_threads(int(sys.argv[3]))
axis = growth.AXES[sys.argv[1]]
axis.call(torch.device("cpu"), torch.float32, axis.values[0], True)()
call = axis.call(torch.device("cpu"), torch.float32, int(sys.argv[2]), False)
before = peak_bytes()
call()
print((peak_bytes() - before) / 2**20)
"""


@dataclass(frozen=True)
class Axis:
    """One quantity that grows.

    Attributes:
        op: Benchmark that it belongs to.
        shape: Name of a row, with the value in it.
        values: Values of the quantity.
        call: ``(device, dtype, value, warm) -> call``: the whole call, or with ``warm`` one that
            brings libraries and code in.
    """

    op: str
    shape: str
    values: tuple[int, ...]
    call: Callable[[torch.device, torch.dtype, int, bool], Call]


def _trajectory(
    device: torch.device, dtype: torch.dtype, steps: int, batch: int, warm: bool
) -> Call:
    return trajectory.Problem(device, dtype, steps, WIDTH, batch).call(
        "training" if warm else "ours"
    )


def _matching(device: torch.device, dtype: torch.dtype, classes: int, ipc: int, warm: bool) -> Call:
    real, images = iteration.inputs(
        device, dtype, (2 if warm else classes, 2 if warm else 64, 1 if warm else ipc, 32)
    )
    return iteration.OurIteration(
        "cpu" if device.type == "cpu" else "cuda", real, images, width=WIDTH
    )


AXES = {
    "steps": Axis(
        "trajectory_growth",
        "n{}_b10",
        (5, 10, 20, 50),
        lambda d, t, n, warm: _trajectory(d, t, n, 10, warm),
    ),
    "batch": Axis(
        "trajectory_growth",
        "b{}_n5",
        (10, 20, 50, 100),
        lambda d, t, b, warm: _trajectory(d, t, 5, b, warm),
    ),
    "classes": Axis(
        "dm_growth",
        "k{}_ipc10",
        (5, 10, 20, 40),
        lambda d, t, k, warm: _matching(d, t, k, 10, warm),
    ),
    "ipc": Axis(
        "dm_growth",
        "ipc{}_k10",
        (1, 10, 20, 50),
        lambda d, t, i, warm: _matching(d, t, 10, i, warm),
    ),
}


def run_growth(
    op: str, device: torch.device, dtype: torch.dtype, seconds: float, quick: bool, check_only: bool
) -> Iterator[Result]:
    """Yield time and memory at every value of the axes of ``op``.

    ``quick`` takes the first two values and no memory.
    """
    kind = str(dtype).removeprefix("torch.")
    for name, axis in AXES.items():
        if axis.op != op or check_only:
            continue
        values: Sequence[int] = axis.values[:2] if quick else axis.values
        calls = {
            axis.shape.format(value): axis.call(device, dtype, value, False) for value in values
        }
        for shape, readings in interleaved(calls, seconds, clock_of(device)).items():
            yield Result(op, device.type, shape, kind, f"{name}: time", "ok", readings[""])
        if quick or device.type != "cpu" or dtype != torch.float32:
            continue
        for value in values:
            used = megabytes(name, value)
            yield Result(
                op,
                device.type,
                axis.shape.format(value),
                kind,
                f"{name}: memory",
                "ok",
                Timing(used, used, used, 1),
                unit="MB",
            )


def megabytes(name: str, value: int) -> float:
    """Return the memory of one call in a fresh process."""
    command = [sys.executable, "-c", SCRIPT, name, str(value), str(torch.get_num_threads())]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
