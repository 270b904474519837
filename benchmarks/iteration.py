"""`dm_iteration`: one whole iteration of distribution matching, ours beside the published loop.

ConvNet-3 of width 128 on 3x32x32, 10 classes with 64 real and 10 synthetic images each, DSA on: a
new network, its transformations, loss and image gradient, a step of SGD.  Before anything is timed,
the image gradient at equal parameters and equal transformations is checked against the published
loop in float64."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.measurement import Call, clock_of, interleaved
from benchmarks.op_runs import Result, tried
from benchmarks.peers import distribution_matching as peer
from kdistill import ops
from kdistill.augment import Augment
from kdistill.engine import Student, build_student
from kdistill.keys import generator, make_key
from kdistill.objectives.distribution_matching import distribution_match
from kdistill.ops import AUTOMATIC_ORDER
from kdistill.ops.diff_augment import AFFINE, COLOR, CROP, CUTOUT, FLIP
from kdistill.testing.tolerance import ToleranceError, assert_close_enough

CLASSES, REAL, IPC, SIZE, WIDTH = 10, 64, 10, 32, 128
CODES = {COLOR: "color", CROP: "crop", CUTOUT: "cutout", FLIP: "flip", AFFINE: "affine"}
PEERS: dict[str, peer.Gradient] = {
    "per-class loop": peer.per_class_gradient,
    "batched PyTorch": peer.batched_gradient,
}


class OurIteration:
    """The same work as the peers' ``Iteration`` through the engine."""

    def __init__(self, backend: str, real: Tensor, images: Tensor, *, width: int):
        k, _, channels, size, _ = real.shape
        self.backend = backend
        self.student = build_student(
            "convnet", channels=channels, size=size, classes=k, width=width, depth=3
        )
        self.augment = Augment(DSA, siamese=True, key=make_key(0, "benchmark"), align_corners=False)
        self.real, self.real_labels = flat(real)
        self.images, self.labels = flat(images.clone())
        self.optimiser = torch.optim.SGD([self.images], lr=1.0, momentum=0.5)
        self.step = 0

    def __call__(self) -> Tensor:
        self.step += 1
        theta = self.student.init(generator(make_key(0, "student", self.step))).to(self.real)
        with ops.use_backend(self.backend):
            loss, self.images.grad = distribution_match(
                self.student,
                theta,
                self.real,
                self.real_labels,
                self.images,
                self.labels,
                augment=self.augment,
                step=self.step,
            )
        self.optimiser.step()
        return loss


DSA = "color_crop_cutout_flip_scale_rotate"


def flat(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``[K, N, ...]`` as ``[K*N, ...]`` and the labels."""
    labels = torch.arange(len(images), device=images.device).repeat_interleave(images.shape[1])
    return images.flatten(0, 1).contiguous(), labels


def same_network(student: Student, theta: Tensor, width: int) -> peer.ConvNet:
    net = peer.ConvNet(student.channels, student.size, student.classes, width).to(theta)
    torch.nn.utils.vector_to_parameters(theta, net.parameters())
    return net.requires_grad_(False)


def same_transformations(
    augment: Augment, step: int, like: Tensor, classes: int
) -> list[peer.Transformation]:
    drawn = []
    for label in range(classes):
        groups = torch.full(like.shape[:1], label)
        row = augment.parameters(step, shape=like.shape, groups=groups)[0][0][0].tolist()
        drawn.append((CODES[int(row[0])], row[1:5]))
    return drawn


def inputs(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    classes, num_real, ipc, size = sizes
    drawn = torch.Generator().manual_seed(0)
    real, images = (
        torch.randn(classes, n, 3, size, size, generator=drawn, dtype=torch.float64)
        for n in (num_real, ipc)
    )
    return real.to(device, dtype), images.to(device, dtype)


def additions(width: int, size: int) -> float:
    """Return the additions behind one entry of the image gradient.

    They are those of convolutions and statistics, forward and backward.
    """
    convolutions = 9 * (3 + 2 * width)
    statistics = sum((size >> block) ** 2 for block in range(3))
    return 2.0 * convolutions + 4.0 * statistics


def check(backend: str, real: Tensor, images: Tensor, *, width: int, step: int = 1) -> str:
    """Return "ok", or how our loss and image gradient differ at equal parameters."""
    ours = OurIteration(backend, real, images, width=width)
    theta = ours.student.init(generator(make_key(0, "student", step))).to(real)
    drawn = same_transformations(ours.augment, step, ours.images, len(real))
    with ops.use_backend(backend):
        got = distribution_match(
            ours.student,
            theta,
            ours.real,
            ours.real_labels,
            ours.images,
            ours.labels,
            augment=ours.augment,
            step=step,
        )
    eager = peer.per_class_gradient(same_network(ours.student, theta, width), real, images, drawn)
    truth = peer.per_class_gradient(
        same_network(ours.student, theta.double(), width), real.double(), images.double(), drawn
    )
    depth = additions(width, ours.student.size)
    try:
        for what, mine, same, true in zip(
            ("loss", "image gradient"), got, eager, truth, strict=True
        ):
            assert_close_enough(mine.reshape(true.shape), same, true, depth, f"dm_iteration {what}")
    except ToleranceError as error:
        return f"wrong: {error}"
    return "ok"


def run_dm_iteration(
    device: torch.device, dtype: torch.dtype, seconds: float, quick: bool, check_only: bool
) -> Iterator[Result]:
    """Yield one result per backend and peer."""
    sizes = (CLASSES, REAL, IPC, SIZE)
    real, images = inputs(device, dtype, sizes)
    common = (
        f"k{CLASSES}_n{REAL}_ipc{IPC}_3x{SIZE}x{SIZE}_w{WIDTH}",
        str(dtype).removeprefix("torch."),
        "iteration",
    )
    calls: dict[str, Call] = {}
    for backend in AUTOMATIC_ORDER[device.type]:
        status = tried(partial(check, backend, real, images, width=WIDTH))
        if status == "ok":
            calls[backend] = OurIteration(backend, real, images, width=WIDTH)
        if status != "ok" or check_only:
            yield Result("dm_iteration", backend, *common, status)
    if check_only:
        return
    calls |= {
        name: peer.Iteration(gradient, real, images, width=WIDTH)
        for name, gradient in PEERS.items()
    }
    for name, readings in interleaved(calls, 5 * seconds, clock_of(device)).items():
        for what, timing in readings.items():
            metric = f"iteration_{what}" if what else "iteration"
            yield Result("dm_iteration", name, *common[:2], metric, "ok", timing)
