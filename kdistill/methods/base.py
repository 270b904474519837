"""What a method file provides, and what all of them share."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from kdistill.augment import Augment, strategy_for
from kdistill.data import ImageDataset
from kdistill.engine.precision import PRECISIONS
from kdistill.engine.students import NORMS, STUDENTS, Student, build_student
from kdistill.errors import ConfigError, did_you_mean
from kdistill.experts import TrajectoryStore
from kdistill.keys import generator, make_key
from kdistill.options import (
    COUNT,
    ITERATIONS,
    MOMENTUM,
    SCHEDULE,
    Unset,
    Words,
    check_options,
    check_value,
)
from kdistill.priors import Prior, State
from kdistill.selection import select

# what a first step moves the images by, as a share of their norm, where a method finds its learning
# rates
MOVE = 0.03
COPY_NOISE = (
    0.1  # of the images' standard deviation, on copies of images of a class that has too few
)
INITS = ("real", "herding", "k_means", "k_center", "noise")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The options that every method has; a method's own dataclass derives from this one.

    Attributes:
        iterations: Outer steps of the distillation.
        momentum: Momentum of the outer SGD, the one that changes the images.
        schedule: How the outer learning rates change: ``"constant"``, or ``"cosine"``, down to 0 at
            the end.
        init: The first images: ``"real"`` (random real images), ``"herding"``, ``"k_means"`` or
            ``"k_center"`` (chosen real images), or ``"noise"``.
        student: The network that is trained or compared.
        width: Width of the network (channels of a ConvNet's blocks).
        depth: Depth of the network.
        norm: Normalisation of the network.
        strategy: Differentiable augmentation (DSA).
        precision: Numbers in which the network's products are taken: ``"fp32"``, ``"tf32"`` (on a
            GPU) or ``"bf16"`` (``convnet`` alone); NUMERICS.md states the errors.
    """

    iterations: Annotated[int, ITERATIONS]
    momentum: Annotated[float, MOMENTUM] = 0.5
    schedule: Annotated[str, SCHEDULE] = "constant"
    init: Annotated[str, Words(INITS)] = "real"
    student: Annotated[str, Words(STUDENTS)] = "convnet"
    width: Annotated[int, COUNT] = 128
    depth: Annotated[int | None, Unset("follows the size of the images")] = None
    norm: Annotated[str, Words(NORMS)] = "instance"
    strategy: Annotated[str, "auto, none, or families joined by _ such as color_crop"] = "auto"
    precision: Annotated[str, Words(PRECISIONS)] = "fp32"

    def __post_init__(self) -> None:
        check_options(self)
        Augment(
            strategy_for(self.strategy, True), siamese=True, key=0, align_corners=False
        )  # raises for an unknown family

    def network(self, data: ImageDataset) -> Student:
        """Return the network that a run uses on ``data``."""
        return build_student(
            self.student,
            channels=data.channels,
            size=data.size,
            classes=data.num_classes,
            width=self.width,
            depth=self.depth,
            norm=self.norm,
        )


@dataclass(frozen=True)
class Step:
    """What an objective returns.

    Attributes:
        loss: A scalar.
        grad_images: dL/dimages.
        grads: Gradients of the tensors of the state that are not the prior's, such as
            ``"label_logits"`` and ``"lr"``.
        carried: Tensors of the state that are replaced by these, such as a network in training; no
            step is taken on them.
        is_skipped: Whether the loop leaves state and velocity as they are: the loss was too large
            to learn from (DATM).
    """

    loss: Tensor
    grad_images: Tensor
    grads: State = field(default_factory=dict)
    carried: State = field(default_factory=dict)
    is_skipped: bool = False


@dataclass(frozen=True)
class Findings:
    """What a search leaves beside the images.

    Attributes:
        metrics: Goes into ``metrics.json`` under ``"search"``.
        files: Other files of the artefact by name.
    """

    metrics: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)


class Search(Protocol):
    """Changes, between two steps, which tensors a run optimises, and says which of them the result is taken from.

    All that it remembers stands in the state, so that a resumed run has the same bits; the
    objective hands those tensors on (``Step.carried``).
    """

    def after_step(self, iteration: int, state: State, velocity: State) -> tuple[State, State]:
        """Return state and velocity for the step after ``iteration`` steps; may add, replace and drop tensors."""

    def result(self, state: State) -> State:
        """Return the tensors from which images, labels and learning rate of the result are taken."""

    def findings(self, state: State) -> Findings:
        """Return what the record says about the search."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One run, ready for the loop.

    Attributes:
        prior: Turns the state into images and returns vector-Jacobian products.
        state: The tensors that are optimised: the prior's, and perhaps ``"label_logits" [M, K]``
            and ``"lr" []``; and those that an iteration hands to the next one (``Step.carried``).
        labels: Hard labels of the synthetic images, int64 ``[M]``, class-major.
        objective: ``(iteration, images, state) -> Step``; a pure function of its arguments and the
            run's seed.
        learning_rates: Learning rate of each tensor of the state, or of all whose names begin with
            the same word and a dot.
        momentum: Of the outer SGD; a mapping names it for tensors of the state, with ``"images"``
            for all others.
        iterations: Outer steps.
        schedule: Of the learning rates: ``"constant"``, or ``"cosine"``: down to 0 at the last
            step.
        lower: Smallest value of a tensor of the state, held after every step.
        average: Decay of the running mean of a tensor of the state, which the result takes in its
            place; the result takes all other tensors as they are after the last step.
        advice: What to change when the numbers blow up, for the error message.
        about: What the result depends on beside options and data, such as the digest of a
            generator; goes into the record.
        search: What happens between two steps, or None.
        fresh_every: Iterations that are multiples of this need nothing that an earlier one handed
            on.
        first_move: Share of their norm by which a first step moves the images, where learning rates
            are found.
    """

    prior: Prior
    state: State
    labels: Tensor
    objective: Callable[[int, Tensor, State], Step]
    learning_rates: Mapping[str, float]
    momentum: float | Mapping[str, float]
    iterations: int
    schedule: str = "constant"
    lower: Mapping[str, float] = field(default_factory=dict)
    average: Mapping[str, float] = field(default_factory=dict)
    advice: str = "lower the learning rate"
    about: Mapping[str, Any] = field(default_factory=dict)
    search: Search | None = None
    fresh_every: int = 1
    first_move: float = MOVE

    def __post_init__(self) -> None:
        check_value("iterations", self.iterations, ITERATIONS)
        check_value("schedule", self.schedule, SCHEDULE)

    def momentum_of(self, name: str) -> float:
        """Return the momentum of one tensor of the state."""
        return (
            self.momentum.get(name, self.momentum["images"])
            if isinstance(self.momentum, Mapping)
            else self.momentum
        )

    def step_size(self, name: str, iteration: int) -> float:
        """Return the learning rate of one tensor of the state at ``iteration`` (0 is the first)."""
        decay = (
            0.5 * (1.0 + math.cos(math.pi * iteration / self.iterations))
            if self.schedule == "cosine"
            else 1.0
        )
        group = name if name in self.learning_rates else name.partition(".")[0]
        return self.learning_rates[group] * decay

    def with_prior(
        self, prior: Prior, state: State, learning_rates: Mapping[str, float], **changes: Any
    ) -> "Problem":
        """Return the run with its images rendered by another prior from ``state``; labels, ``"lr"`` and the objective stay.

        ``changes`` are other fields to replace, such as ``advice``.
        """
        rest = {name: x for name, x in self.state.items() if name != "images"}
        rates = {
            **{name: rate for name, rate in self.learning_rates.items() if name != "images"},
            **learning_rates,
        }
        average = {name: decay for name, decay in self.average.items() if name != "images"}
        if "images" in self.average:
            average |= dict.fromkeys(state, self.average["images"])
        own = {
            "prior": prior,
            "state": {**state, **rest},
            "learning_rates": rates,
            "average": average,
        }
        return replace(self, **{**own, **changes})


@dataclass(frozen=True)
class DryRun:
    """A cheap form of a run, and what the whole one needs beyond it (``kdistill.api.plan``).

    Attributes:
        config: Options to build and time.
        steps_ratio: Time of a whole iteration over that of the dry_run one.
        more_bytes: Memory of a whole iteration beyond that of the dry_run one.
        expert_bytes: Of the experts that are missing, on the disk.
        expert_seconds: To train them.
        num_params: P, where it is known.
    """

    config: Any
    steps_ratio: float = 1.0
    more_bytes: int = 0
    expert_bytes: int = 0
    expert_seconds: float = 0.0
    num_params: int = 0


FAMILIES = {
    "distribution": "Distribution matching",
    "gradient": "Gradient matching",
    "trajectory": "Trajectory matching",
    "latent": "Latents of a generator, under the objective of any method above",
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published method: one file of ``kdistill/methods`` holds exactly one of these, named ``METHOD``.

    Attributes:
        name: What users write.
        title: The method in one sentence, for the record of a run.
        summary: The method in at most 60 characters, for the list of methods.
        family: What the method matches or learns, a key of ``FAMILIES``.
        paper: Citation.
        config: The dataclass of its options; their defaults are the paper's.
        presets: Named changes to the defaults.
        build: ``(config, data, ipc, seed, start) -> Problem``; ``start`` is None or the images
            ``[M, C, H, W]`` to begin with, as networks see them.
        deviations: Where it knowingly differs from the paper or its code.
        experts: ``(config, data) -> TrajectoryStore``: trains those that are missing; None for a
            method without experts.
        dry_run: ``(config, data, folder) -> DryRun``, for a method whose iterations are long; None
            rehearses it as it is.
        soft_labels: Whether labels are learned too.
        cost: In one line.
        needs: What a run needs beside the data, in one line; by default what ``experts`` says.
    """

    name: str
    title: str
    summary: str
    family: str
    paper: str
    config: type
    presets: Mapping[str, Mapping[str, Any]]
    build: Callable[[Any, ImageDataset, int, int, Tensor | None], Problem]
    deviations: tuple[str, ...] = ()
    experts: Callable[[Any, ImageDataset], TrajectoryStore] | None = None
    dry_run: Callable[[Any, ImageDataset, Path], DryRun] | None = None
    soft_labels: bool = False
    cost: str = field(default="first order")
    needs: str = ""


def balanced_labels(num_classes: int, ipc: int) -> Tensor:
    """Return ``[0]*ipc + [1]*ipc + ...``, the class-major order of the field."""
    return torch.arange(num_classes).repeat_interleave(ipc)


def initial_images(data: ImageDataset, ipc: int, init: str, seed: int) -> Tensor:
    """Return the first images ``[K*ipc, C, H, W]`` as networks see them.

    ``init`` is ``"real"`` (random real images of each class), ``"herding"``, ``"k_means"`` or
    ``"k_center"`` (real images chosen by their pixels, see ``kdistill.selection.select``) or
    ``"noise"`` (standard normal).  Copies of an image, where a class has fewer than ``ipc``, get
    some noise.
    """
    if init == "noise":
        shape = (data.num_classes * ipc, data.channels, data.size, data.size)
        return torch.randn(shape, generator=generator(make_key(seed, "init"))).to(data.train.images)
    if init not in INITS:
        raise ConfigError(
            f"init: expected a known start, got '{init}'; {did_you_mean(init, list(INITS))}"
        )
    rows = select(
        "random" if init == "real" else init,
        data.train.images.flatten(1),
        data.train.labels,
        ipc,
        make_key(seed, "init"),
    )
    return told_apart(data.transform.apply(data.train.images[rows]), rows, seed)


def told_apart(images: Tensor, rows: Tensor, seed: int) -> Tensor:
    """Return ``images [M, C, H, W]``, which stand in ``rows`` of a data set, with noise on those whose row occurred before.

    Equal images have equal gradients, so copies would stay copies to the end of the run.
    """
    first = {row: i for i, row in reversed(list(enumerate(rows.tolist())))}
    is_copy = torch.tensor(
        [first[row] != i for i, row in enumerate(rows.tolist())], device=images.device
    )
    if not bool(is_copy.any()):
        return images
    noise = torch.randn(images.shape, generator=generator(make_key(seed, "copies"))).to(images)
    return images + COPY_NOISE * images.std() * noise * is_copy[:, None, None, None]


def augmentation(
    strategy: str, data: ImageDataset, key: int, *, siamese: bool, align_corners: bool
) -> Augment:
    """Return the keyed DSA augmentation; ``"auto"`` is every family, without flip where the data must not be mirrored."""
    return Augment(
        strategy_for(strategy, data.mirrors), siamese=siamese, key=key, align_corners=align_corners
    )
