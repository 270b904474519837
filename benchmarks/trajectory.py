"""`trajectory_match` times a trajectory's gradient, `training_step` a step of the student.

ConvNet-3 of width 128 on 3x32x32, 10 classes.  Before anything is timed, ours has to equal the
published unroll within 1e-9 in float64 at width 16, and every other exact peer has to equal ours;
in the dtype and at the width that are timed all of them have to point the same way (cosine above
0.999): there, masks of the ReLU flip between two roundings.  Memory is that of a fresh process,
over what it had before the call."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measurement import Call, Timing, clock_of, interleaved
from benchmarks.op_runs import Result
from benchmarks.peers import trajectory_matching as peer
from benchmarks.peers.distribution_matching import ConvNet
from kdistill.engine import build_student, loss_and_grad, trajectory_match, use_precision
from kdistill.engine.precision import PRECISIONS
from kdistill.keys import generator

BATCH, LR, WIDTH = 10, 0.01, 128
STEPS, MEMORY_STEPS = 10, (5, 50)
LARGE_BATCH, FEW_STEPS = 100, 3
AGREEMENT = {"fp32": 0.999, "tf32": 0.99, "bf16": 0.99}  # smallest cosine with the float32 gradient
TRUNCATED = ("ours, tesla", "published TESLA")  # another gradient than the exact one
SCRIPT = """
import sys, torch
from benchmarks import trajectory
from kdistill._native import peak_bytes
problem = trajectory.Problem(torch.device("cpu"), torch.float32, int(sys.argv[2]), trajectory.WIDTH)
problem.call("training")()
before = peak_bytes()
problem.call(sys.argv[1])()
print((peak_bytes() - before) / 2**20)
"""


class Problem:
    """One trajectory for all contestants: equal parameters, images, labels and learning rate."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, steps: int, width: int, batch: int = BATCH
    ):
        drawn = torch.Generator().manual_seed(0)
        self.student = build_student(
            "convnet", channels=3, size=32, classes=10, width=width, depth=3
        )
        self.start, self.target = (
            self.student.init(generator(seed)).to(device, dtype) for seed in (0, 1)
        )
        self.images = torch.randn(batch, 3, 32, 32, generator=drawn, dtype=torch.float64).to(
            device, dtype
        )
        self.labels = (torch.arange(batch) % 10).to(device)
        self.net = ConvNet(width=width).to(device, dtype)
        self.steps = steps

    def ours(self, grad_mode: str = "adjoint", cuda_graph: bool = False) -> peer.Gradients:
        batches = [torch.arange(len(self.images), device=self.images.device)] * self.steps
        found = trajectory_match(
            *(self.student, self.start, self.target, self.images, self.labels, LR),
            **{"batches": batches, "grad_mode": grad_mode, "cuda_graph": cuda_graph},
        )
        return found.loss, found.grad_images, found.grad_lr

    def published(self, name: str) -> peer.Gradients:
        others = {"published TESLA": peer.tesla, peer.COMPILED: peer.compiled_forward_over_reverse}
        function = {**peer.EXACT, **others}[name]
        return function(self.net, self.start, self.target, self.images, self.labels, LR, self.steps)

    def call(self, name: str) -> Call:
        if name == "training":
            return lambda: loss_and_grad(self.student, self.start, self.images, self.labels)
        ours = {"ours": "adjoint", "ours, tesla": "tesla"}
        return partial(self.ours, ours[name]) if name in ours else partial(self.published, name)


def check(device: torch.device, dtype: torch.dtype) -> str:
    """Return "ok", or how our gradient differs from the published unroll's."""
    small = Problem(device, torch.float64, 4, 16)
    for what, ours, truth in zip(
        ("loss", "image gradient", "slope of lr"),
        small.ours(),
        small.published("published unroll"),
        strict=True,
    ):
        off = float((ours - truth).abs().max() / truth.abs().max())
        if not off <= 1e-9:
            return f"wrong: {what} differs by {off:.1e} of its size in float64"
    wide = Problem(device, dtype, STEPS, WIDTH)
    cosine = float(
        F.cosine_similarity(
            wide.ours()[1].flatten(), wide.published("published unroll")[1].flatten(), 0
        )
    )
    return (
        "ok"
        if cosine > 0.999
        else f"wrong: the image gradient has cosine {cosine:.5f} with the published one"
    )


def contestants(problem: Problem, quick: bool) -> dict[str, str]:
    """Return "ok" for every exact peer whose gradient is ours, or why it is not timed."""
    small = Problem(problem.start.device, torch.float64, 2, 4, 4)
    truth, ours = small.ours(), problem.ours()[1].flatten()
    found: dict[str, str] = {}
    for name in (*peer.EXACT, peer.COMPILED):
        if name == peer.COMPILED and quick:
            found[name] = "left out: compiling takes minutes; run without --quick"
            continue
        try:
            if name != peer.COMPILED:  # another dtype and another width would be compiled once more
                off = max(
                    float((x - y).abs().max() / y.abs().max())
                    for x, y in zip(small.published(name), truth, strict=True)
                )
                if not off <= 1e-9:
                    found[name] = f"wrong: differs from ours by {off:.1e} of its size in float64"
                    continue
            cosine = float(F.cosine_similarity(problem.published(name)[1].flatten(), ours, 0))
            found[name] = (
                "ok"
                if cosine > 0.999
                else f"wrong: the image gradient has cosine {cosine:.5f} with ours"
            )
        # a peer that cannot run here is a line of the table, not the end of the benchmark
        except Exception as error:
            found[name] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return {**found, **peer.libraries.ABSENT}


def one_graph(problem: Problem, precision: str) -> peer.Gradients:
    """Return our gradient in one precision, replayed from a recorded step."""
    with use_precision(precision, problem.start.device):
        return problem.ours(cuda_graph=True)


def replayed(problem: Problem, precisions: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (contestant, precision, "ok" or why it is not timed).

    Each has to point where the plain float32 gradient points.
    """
    exact = problem.ours()[1].flatten()
    for precision in precisions:
        name = f"{problem.start.device.type} with one graph" + (
            "" if precision == "fp32" else f", {precision}"
        )
        cosine = float(F.cosine_similarity(one_graph(problem, precision)[1].flatten(), exact, 0))
        yield (
            name,
            precision,
            "ok"
            if cosine > AGREEMENT[precision]
            else f"wrong: the image gradient has cosine {cosine:.5f}",
        )


def peak_megabytes(name: str, steps: int) -> float:
    """Return the memory of one call in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(steps)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def run_trajectory_match(
    device: torch.device, dtype: torch.dtype, seconds: float, quick: bool, check_only: bool
) -> Iterator[Result]:
    """Yield time per contestant, and memory at two numbers of steps; float32 is never TF32."""
    with use_precision("fp32", device):
        yield from _run_trajectory_match(device, dtype, seconds, quick, check_only)


def _run_trajectory_match(
    device: torch.device, dtype: torch.dtype, seconds: float, quick: bool, check_only: bool
) -> Iterator[Result]:
    shape, kind = f"b{BATCH}_n{STEPS}_3x32x32_w{WIDTH}", str(dtype).removeprefix("torch.")
    status = check(device, dtype)
    if status != "ok" or check_only:
        yield Result("trajectory_match", device.type, shape, kind, "gradient", status)
        return
    problem = Problem(device, dtype, STEPS, WIDTH)
    states = contestants(problem, quick)
    yield from (
        Result("trajectory_match", n, shape, kind, "gradient", state)
        for n, state in states.items()
        if state != "ok"
    )
    names = ("ours", *(name for name, state in states.items() if state == "ok"), *TRUNCATED)
    calls, metrics = (
        {n: problem.call(n) for n in names},
        dict.fromkeys(TRUNCATED, "truncated_gradient"),
    )
    for name, precision, state in replayed(
        problem, PRECISIONS if device.type == "cuda" and dtype == torch.float32 else ()
    ):
        metrics[name] = "gradient" if precision == "fp32" else f"gradient_{precision}"
        if state == "ok":
            calls[name] = partial(one_graph, problem, precision)
        else:
            yield Result("trajectory_match", name, shape, kind, metrics[name], state)
    for name, readings in interleaved(calls, 5 * seconds, clock_of(device)).items():
        metric, shown = metrics.get(name, "gradient"), device.type if "ours" in name else name
        for what, timing in readings.items():
            yield Result(
                "trajectory_match",
                shown,
                shape,
                kind,
                f"{metric}_{what}" if what else metric,
                "ok",
                timing,
            )
    if device.type == "cuda" or quick:
        return
    for steps in MEMORY_STEPS:
        shape = f"b{BATCH}_n{steps}_3x32x32_w{WIDTH}"
        for shown, name in ((device.type, "ours"), ("published unroll", "published unroll")):
            used = peak_megabytes(name, steps)
            timing = Timing(used, used, used, 1)
            yield Result(
                "trajectory_match",
                shown,
                f"b{BATCH}_n{steps}_3x32x32_w{WIDTH}",
                kind,
                "memory",
                "ok",
                timing,
                unit="MB",
            )


def run_large_batch(
    device: torch.device, dtype: torch.dtype, seconds: float, quick: bool, check_only: bool
) -> Iterator[Result]:
    """Yield the time of the exact gradient at a large batch and few steps, beside exact peers."""
    name, shape = "trajectory_large_batch", f"b{LARGE_BATCH}_n{FEW_STEPS}_3x32x32_w{WIDTH}"
    kind = str(dtype).removeprefix("torch.")
    with use_precision("fp32", device):
        status = check(device, dtype)
        if status != "ok" or check_only:
            yield Result(name, device.type, shape, kind, "gradient", status)
            return
        problem = Problem(device, dtype, FEW_STEPS, WIDTH, LARGE_BATCH)
        states = contestants(problem, quick=True)
        yield from (
            Result(name, peer_name, shape, kind, "gradient", state)
            for peer_name, state in states.items()
            if state != "ok"
        )
        calls = {
            n: problem.call(n)
            for n in ("ours", *(n for n, state in states.items() if state == "ok"))
        }
        for found, readings in interleaved(calls, 5 * seconds, clock_of(device)).items():
            shown = device.type if found == "ours" else found
            for what, timing in readings.items():
                yield Result(
                    name,
                    shown,
                    shape,
                    kind,
                    f"gradient_{what}" if what else "gradient",
                    "ok",
                    timing,
                )


def run_training_step(
    device: torch.device, dtype: torch.dtype, seconds: float, quick: bool, check_only: bool
) -> Iterator[Result]:
    """Yield the time of a forward and backward pass at two batches, beside eager PyTorch."""
    kind = str(dtype).removeprefix("torch.")
    for batch in (BATCH,) if quick else (BATCH, 100):
        shape = f"b{batch}_3x32x32_w{WIDTH}"
        problem = Problem(device, dtype, 1, WIDTH, batch)
        eager = partial(
            eager_step, peer.Flat(problem.net), problem.start, problem.images, problem.labels
        )
        status = agree(problem, eager())
        if status != "ok" or check_only:
            yield Result("training_step", device.type, shape, kind, "step", status)
            continue
        calls: dict[str, Call] = {device.type: problem.call("training"), "eager PyTorch": eager}
        for name, readings in interleaved(calls, 3 * seconds, clock_of(device)).items():
            for what, timing in readings.items():
                yield Result(
                    "training_step",
                    name,
                    shape,
                    kind,
                    f"step_{what}" if what else "step",
                    "ok",
                    timing,
                )


def eager_step(model: peer.Flat, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return model.gradient(theta, images, labels)


def agree(problem: Problem, eager: Tensor) -> str:
    _, ours = loss_and_grad(problem.student, problem.start, problem.images, problem.labels)
    cosine = float(F.cosine_similarity(ours, eager, 0))
    return (
        "ok"
        if cosine > 0.9999
        else f"wrong: the gradient has cosine {cosine:.6f} with the eager one"
    )
