"""`dsa_iteration`: one matching step of DSA at a network, ours beside the published loop.

ConvNet-3 of width 128 on 3x32x32, 10 classes with 64 real and 10 synthetic images each:
transformations, both gradients of every class, their distance, its gradient in the images, a step
of SGD.  Before anything is timed, ours has to equal the published loop at equal transformations
within 1e-9 in float64 at width 16, and to point the same way (cosine above 0.999) in the dtype and
at
the width that are timed: there, masks of the ReLU flip between two roundings.  Memory is that of a
    fresh process, over what it
had before the call.
"""

import subprocess
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.iteration import (
    CLASSES,
    DSA,
    IPC,
    REAL,
    SIZE,
    flat,
    inputs,
    same_network,
    same_transformations,
)
from benchmarks.measurement import Call, Timing, clock_of, interleaved
from benchmarks.op_runs import Result
from benchmarks.peers import gradient_matching as peer
from kdistill.augment import Augment
from kdistill.engine import build_student, loss_and_grad
from kdistill.keys import generator, make_key
from kdistill.objectives.class_gradient_match import class_gradient_match

WIDTH, CHECK_WIDTH = 128, 16
SCRIPT = """
import sys, torch
from benchmarks import gradient_matching as benchmark
from kdistill._native import peak_bytes
problem = benchmark.Problem(torch.device("cpu"), torch.float32, benchmark.WIDTH)
problem.warm_up()
before = peak_bytes()
problem.call(sys.argv[1])()
print((peak_bytes() - before) / 2**20)
"""


class Problem:
    """One network and one set of images for all contestants."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        width: int,
        sizes: tuple[int, ...] = (CLASSES, REAL, IPC, SIZE),
    ):
        classes, _, _, size = sizes
        self.real, self.images = inputs(device, dtype, sizes)  # type: ignore[arg-type]
        self.student = build_student(
            "convnet", channels=3, size=size, classes=classes, width=width, depth=3
        )
        self.theta = self.student.init(generator(make_key(0, "student"))).to(self.real)
        self.augment = Augment(DSA, siamese=True, key=make_key(0, "benchmark"), align_corners=False)
        self.net = same_network(self.student, self.theta, width).requires_grad_()

    def ours(self, images: Tensor, step: int) -> tuple[Tensor, Tensor]:
        real, real_labels = flat(self.real)
        syn, labels = flat(images)
        loss, grad = class_gradient_match(
            self.student,
            self.theta,
            real,
            real_labels,
            syn,
            labels,
            augment=self.augment,
            step=step,
        )
        return loss, grad.view(images.shape)

    def published(self, name: str, step: int = 1) -> tuple[Tensor, Tensor]:
        drawn = same_transformations(self.augment, step, self.images[0], len(self.real))
        return peer.EXACT[name](self.net, self.real, self.images, drawn)

    def warm_up(self) -> None:
        loss_and_grad(self.student, self.theta, *flat(self.images))

    def call(self, name: str) -> Call:
        if name == "ours":
            return OurIteration(self)
        return peer.Iteration(peer.EXACT[name], self.net, self.real, self.images)


class OurIteration:
    """The same work as the peers' ``Iteration`` through the engine."""

    def __init__(self, problem: Problem):
        self.problem, self.images, self.step = problem, problem.images.clone(), 0
        self.optimiser = torch.optim.SGD([self.images], lr=0.1, momentum=0.5)

    def __call__(self) -> Tensor:
        self.step += 1
        loss, self.images.grad = self.problem.ours(self.images, self.step)
        self.optimiser.step()
        return loss


def check(device: torch.device, dtype: torch.dtype) -> str:
    """Return "ok", or how our loss or image gradient differs from the published loop's."""
    small = Problem(device, torch.float64, CHECK_WIDTH)
    for what, ours, truth in zip(
        ("loss", "image gradient"),
        small.ours(small.images, 1),
        small.published("published loop"),
        strict=True,
    ):
        off = float((ours - truth).abs().max() / truth.abs().max())
        if not off <= 1e-9:
            return f"wrong: {what} differs by {off:.1e} of its size in float64"
    wide = Problem(device, dtype, WIDTH)
    ours, published = wide.ours(wide.images, 1)[1], wide.published("published loop")[1]
    cosine = float(F.cosine_similarity(ours.flatten(), published.flatten(), 0))
    return (
        "ok"
        if cosine > 0.999
        else f"wrong: the image gradient has cosine {cosine:.5f} with the published one"
    )


def peak_megabytes(name: str) -> float:
    """Return the memory of one matching step in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def run_dsa_iteration(
    device: torch.device, dtype: torch.dtype, seconds: float, quick: bool, check_only: bool
) -> Iterator[Result]:
    """Yield time and memory per contestant."""
    common = (
        f"k{CLASSES}_n{REAL}_ipc{IPC}_3x{SIZE}x{SIZE}_w{WIDTH}",
        str(dtype).removeprefix("torch."),
    )
    status = check(device, dtype)
    if status != "ok" or check_only:
        yield Result("dsa_iteration", device.type, *common, "iteration", status)
        return
    problem = Problem(device, dtype, WIDTH)
    calls = {name: problem.call(name) for name in ("ours", *peer.EXACT)}
    for name, readings in interleaved(calls, 5 * seconds, clock_of(device)).items():
        for what, timing in readings.items():
            metric = f"iteration_{what}" if what else "iteration"
            yield Result(
                "dsa_iteration",
                device.type if name == "ours" else name,
                *common,
                metric,
                "ok",
                timing,
            )
    if device.type == "cuda" or quick:
        return
    for name in calls:
        used = peak_megabytes(name)
        shown = device.type if name == "ours" else name
        yield Result(
            "dsa_iteration", shown, *common, "memory", "ok", Timing(used, used, used, 1), unit="MB"
        )
