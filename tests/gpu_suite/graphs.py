"""Recorded steps against plain ones, recovery from a failed recording, and the same bits twice."""

import logging
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from kdistill.engine import class_gradients, gradient_match, train, use_precision
from kdistill.objectives.distribution_matching import distribution_match
from kdistill.ops import _capture, capture
from tests.gpu_suite.gradient import DSA, Problem, apart
from tests.gpu_suite.report import Report
from tests.gpu_suite.stage import main

AS_PLAIN = 1e-4  # of the norm: a library may choose another algorithm for a recording


class Said(logging.Handler):
    """What the package logs inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> "Said":
        logging.getLogger("kdistill").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("kdistill").removeHandler(self)


def replays_are_plain(problem: Problem, grad_mode: str) -> float:
    """Return the largest distance of three recorded steps from plain ones, each with new draws."""
    worst = 0.0
    with Said() as said, use_precision("fp32", problem.device):
        for step in range(3):
            plain = problem.match(torch.float32, step, grad_mode=grad_mode)
            recorded = problem.match(torch.float32, step, grad_mode=grad_mode, cuda_graph=True)
            worst = max(worst, *apart(recorded, plain).values())
    if refused := [line for line in said.lines if line.startswith("cuda_graph")]:
        raise AssertionError(f"expected a recording, got: {refused[0]}")
    if not worst <= AS_PLAIN:
        raise AssertionError(f"expected replays within {AS_PLAIN} of plain steps, got {worst}")
    return worst


class Owner:
    """Something that recordings belong to."""


def recovers(device: torch.device) -> str:
    """Return what was logged where a recording fails; what follows has to work as before."""
    owner, x = Owner(), torch.arange(4.0, device=device)

    def waits(x: Tensor) -> tuple[Tensor]:
        return (x * float(x.sum()),)

    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    with Said() as said:
        for _ in range(2):
            (got,) = capture(owner, "waits", waits, [x])
            if not torch.equal(got, x * 6):
                raise AssertionError(f"expected the result of a plain call, got {got.tolist()}")
        for factor in (1.0, 2.0):
            (got,) = capture(owner, "records", lambda x: (3 * x,), [factor * x])
            if not torch.equal(got, 3 * factor * x):
                raise AssertionError(
                    f"expected a recording after one that failed to be right, got {got.tolist()}"
                )
    if device.type == "cuda" and torch.cuda.current_stream(device) != stream:
        raise AssertionError("the failed recording left another stream behind")
    if device.type in _capture.RECORDERS and len(said.lines) != 1:
        raise AssertionError(
            f"expected one line that says why nothing is recorded, got {said.lines}"
        )
    return said.lines[0] if said.lines else f"nothing is recorded on {device.type}"


def repeated(problem: Problem) -> dict[str, Callable[[], list[Tensor]]]:
    """Return calls whose second run has to give the bits of the first."""
    device, student = problem.device, problem.student
    theta, images, labels = (x.to(device) for x in (problem.start, problem.images, problem.labels))
    real = images.flip(0) + 0.1

    def matched(**options: bool) -> list[Tensor]:
        return [x for x in problem.match(torch.float32, **options) if x is not None]

    def gradients() -> list[Tensor]:
        goal = class_gradients(student, theta, real, labels, (4, 4))
        return list(
            gradient_match(
                student, theta, images.unflatten(0, (2, 4)), labels.unflatten(0, (2, 4)), goal
            )
        )

    return {
        "trajectory_match": matched,
        "trajectory_match, recorded": lambda: matched(cuda_graph=True),
        "distribution_match": lambda: list(
            distribution_match(student, theta, real, labels, images, labels, augment=DSA)
        ),
        "gradient_match": gradients,
        "train": lambda: [train(student, images, labels, epochs=2, lr=0.1, key=3, batch_size=5)],
    }


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    for grad_mode in ("adjoint", "tesla"):
        with report.trying(f"a recorded step is a plain one, {grad_mode}") as values:
            values["distance"] = replays_are_plain(Problem(device, is_tiny), grad_mode)
    with report.trying("recovery from a recording that fails") as values:
        values["said"] = recovers(device)
    for name, call in repeated(Problem(device, is_tiny)).items():
        with report.trying(f"same bits twice, {name}"):
            call()  # libraries choose their algorithms
            if not all(torch.equal(a, b) for a, b in zip(call(), call(), strict=True)):
                raise AssertionError("expected the bits of the first run, got others")


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
