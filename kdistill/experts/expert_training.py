"""Expert training: its settings, SGD with DSA (MTT), or GSAM around it (FTD: flat trajectories).

GSAM, one step, with g the gradient at theta:

    e  = rho * |theta|^2 g / ||  |theta| g ||         (adaptive perturbation)
    g' = gradient at theta + e on the same batch
    d  = g' - a * (g - (<g, g'> / |g'|^2) g')         (what of g is orthogonal to g', subtracted)

Papers: Cazenavette et al., MTT, CVPR 2022; Du et al., FTD, CVPR 2023; Zhuang et al., GSAM, ICLR
2022.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from kdistill.augment import Augment
from kdistill.engine import Student, loss_and_grad, train
from kdistill.experts.trajectory_store import TrajectoryStore
from kdistill.formatting import byte_count, duration
from kdistill.keys import generator, make_key
from kdistill.options import COUNT, MOMENTUM, NOT_NEGATIVE, POSITIVE, check_options
from kdistill.status import note, status_line

Gradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Rows = Callable[[int], Tensor]  # epoch (0 is the first) to the rows that it trains on


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    """Settings of expert training; the defaults are MTT's.

    Attributes:
        count: Number of experts.
        epochs: Passes over the data: snapshots 0 (untrained) to ``epochs`` are stored, so no more
            than a method uses.
        optimiser: ``"sgd"``, or ``"gsam"`` (FTD: flat trajectories; two gradients per step).
        lr: Learning rate of SGD, constant.
        batch_size: Images per step.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        strategy: DSA families of the augmentation, or ``"none"``.
        rho: Radius of the perturbation of GSAM, relative to the weights.
        surrogate: Weight a of the part of the gradient orthogonal to the perturbed one, subtracted
            by GSAM.
        seed: Seed of all experts; expert i does not depend on ``count``.

    Raises:
        ConfigError: A number out of range, or an unknown optimiser.
    """

    count: Annotated[int, COUNT] = 100
    epochs: Annotated[int, COUNT] = 50
    optimiser: Literal["sgd", "gsam"] = "sgd"
    lr: Annotated[float, POSITIVE] = 0.01
    batch_size: Annotated[int, COUNT] = 256
    momentum: Annotated[float, MOMENTUM] = 0.0
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    strategy: str = "color_crop_cutout_flip_scale_rotate"
    rho: Annotated[float, NOT_NEGATIVE] = 0.01
    surrogate: Annotated[float, NOT_NEGATIVE] = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, "experts")

    def identity(
        self, data: dict[str, Any], student: str, selection: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return what must be equal for a stored trajectory to be this one.

        That is everything but ``count``.  ``selection`` says which images every epoch trains on;
        None stands for all of them.
        """
        settings = {key: value for key, value in asdict(self).items() if key != "count"}
        identity = {"settings": settings, "data": data, "student": student}
        return identity if selection is None else {**identity, "selection": selection}


@dataclass(frozen=True)
class Estimate:
    """What training the missing experts will take.

    Attributes:
        nbytes: Size on the disk.
        seconds: Time, from one timed step.
        experts: Number of missing experts.
    """

    nbytes: int
    seconds: float
    experts: int

    def __str__(self) -> str:
        minutes = f"{self.seconds / 60:.1f} min" if self.seconds >= 90 else f"{self.seconds:.0f} s"
        plural = "s" * (self.experts != 1)
        size = byte_count(self.nbytes)
        return f"{self.experts} expert{plural} to train: about {minutes} and {size}"


def estimate(
    spec: ExpertSpec,
    student: Student,
    images: Tensor,
    labels: Tensor,
    missing: int,
    rows_of: Rows | None = None,
) -> Estimate:
    """Return size and time of ``missing`` experts, from the second of two steps."""
    batch = min(spec.batch_size, len(images))
    gradient, theta = gradient_of(spec, student), student.init(generator(0)).to(images)
    for _ in range(2):
        began = time.perf_counter()
        gradient(theta, images[:batch], labels[:batch])
        seconds = time.perf_counter() - began
    counts = [
        len(images) if rows_of is None else len(rows_of(epoch)) for epoch in range(spec.epochs)
    ]
    steps = missing * sum(-(-count // spec.batch_size) for count in counts)
    return Estimate(missing * (spec.epochs + 1) * student.num_params * 4, steps * seconds, missing)


def train_expert(
    spec: ExpertSpec,
    student: Student,
    images: Tensor,
    labels: Tensor,
    number: int,
    rows_of: Rows | None = None,
) -> Tensor:
    """Return the snapshots ``[epochs + 1, P]`` of expert ``number``, float32 on the CPU.

    Args:
        spec: The recipe.
        student: The network.
        images: Normalised real images ``[N, C, S, S]``.
        labels: int64 ``[N]``.
        number: Number that decides weights, order and augmentation, together with the seed.
        rows_of: Epoch to the images that it trains on (a curriculum); None is all of them.

    Cost: ``epochs`` passes over the images, two gradients per step with GSAM.
    """
    key = make_key(spec.seed, "expert", number)
    snapshots = [student.init(generator(make_key(key, "init", 0))).to(images).cpu()]
    augment = None
    if spec.strategy != "none":
        augment = Augment(
            spec.strategy, siamese=False, key=make_key(key, "augment"), align_corners=True
        )
    train(
        student,
        images,
        labels,
        epochs=spec.epochs,
        lr=spec.lr,
        key=key,
        batch_size=spec.batch_size,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        schedule="constant",
        augment=augment,
        gradient=gradient_of(spec, student),
        rows_of=rows_of,
        on_epoch=lambda epoch, thetas: snapshots.append(thetas[0].to("cpu", copy=True)),
    )
    return torch.stack(snapshots)


def train_experts(
    spec: ExpertSpec,
    student: Student,
    images: Tensor,
    labels: Tensor,
    store: TrajectoryStore,
    *,
    rows_of: Rows | None = None,
) -> TrajectoryStore:
    """Train the experts that ``store`` lacks, one file after the other.

    A killed training goes on where it was.  Processes that share a folder share the work: what
    another one is training is left to it, and waited for at the end.  Size and time are shown
    before it starts (``kdistill.status``).

    Args:
        spec: The recipe.
        student: The network.
        images: Normalised real images ``[N, C, S, S]``.
        labels: int64 ``[N]``.
        store: Store of the experts; its identity names the selection behind ``rows_of``.
        rows_of: Epoch to the images that it trains on; None is all of them.
    """
    store.forget_missing()
    missing = [i for i in range(spec.count) if not store.has(i)]
    if not missing:
        return store
    note(
        f"experts: {estimate(spec, student, images, labels, len(missing), rows_of)}, in "
        f"{store.folder}"
    )
    began = time.monotonic()
    with status_line("experts") as progress:
        for done, number in enumerate(missing):
            left = (time.monotonic() - began) / done * (len(missing) - done) if done else None
            with store.claimed(number, wait=False) as is_missing:
                if is_missing:
                    progress(
                        f"training {done + 1} of {len(missing)}"
                        + ("" if left is None else f"  {duration(left)} left")
                    )
                    store.add(number, train_expert(spec, student, images, labels, number, rows_of))
        for number in (number for number in missing if not store.has(number)):
            progress(f"waiting for expert {number}, which another process is training")
            with store.claimed(number, wait=True) as is_missing:
                if is_missing:  # the other one was stopped
                    store.add(number, train_expert(spec, student, images, labels, number, rows_of))
    return store


def gradient_of(spec: ExpertSpec, student: Student) -> Gradient:
    """Return the direction of a step: ``(theta, images, labels) -> (loss, direction)``."""
    if spec.optimiser == "sgd":
        return lambda theta, images, labels: loss_and_grad(student, theta, images, labels)

    def gsam(theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, grad = loss_and_grad(student, theta, images, labels)
        scaled = theta.abs() * grad
        perturbed = theta + spec.rho * theta.abs() * scaled / (scaled.norm() + 1e-12)
        _, ahead = loss_and_grad(student, perturbed, images, labels)
        along = (grad @ ahead) / ahead.square().sum().clamp(min=1e-30)
        return loss, ahead - spec.surrogate * (grad - along * ahead)

    return gsam
