"""The contract between a method and the loop: options, an iteration, a run, a method file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from kdistill.augment import Augment, strategy_for
from kdistill.config import from_mapping, to_mapping
from kdistill.data import ImageDataset
from kdistill.engine.precision import PRECISIONS
from kdistill.engine.students import NORMS, STUDENTS, Student, build_student
from kdistill.errors import ConfigError, did_you_mean
from kdistill.experts import TrajectoryStore
from kdistill.methods.init import INITS
from kdistill.methods.stages import Stages
from kdistill.optim import SGD, ByName, Schedule, sgd
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
from kdistill.priors.conditional_gan import ConditionalGenerator


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

    def augmentation(
        self, data: ImageDataset, key: int, *, siamese: bool, align_corners: bool = False
    ) -> Augment:
        """Return the keyed augmentation; ``"auto"`` flips only where data may be mirrored."""
        families = strategy_for(self.strategy, data.mirrors)
        return Augment(families, siamese=siamese, key=key, align_corners=align_corners)

    def sgd(self, lr: float | None, iterations: int | None = None, **options: Any) -> SGD:
        """Return the outer SGD with this momentum and schedule; ``options`` as for ``sgd``."""
        length = self.iterations if iterations is None else iterations
        options = {"momentum": self.momentum, **options}
        return sgd(lr, schedule=Schedule(self.schedule, length), **options)  # type: ignore[arg-type]

    def before(self) -> dict[str, Any]:
        """Return what options were in earlier versions that had no such option."""
        return to_mapping(type(self)())  # type: ignore[call-arg]


@dataclass(frozen=True)
class Step:
    """What an objective returns.

    Attributes:
        loss: A scalar.
        grad_images: dL/dimages.
        grads: Gradients of the tensors of the state that are not the prior's, such as
            ``"label_logits"`` and ``"lr"``.
        updates: Tensors that replace those of the state as they are, such as a network in training.
        metrics: Other scalars for the log.
    """

    loss: Tensor
    grad_images: Tensor
    grads: State = field(default_factory=dict)
    updates: State = field(default_factory=dict)
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)


Objective = Callable[[int, Tensor, State], Step]


def by_autograd(
    loss: Callable[[int, Tensor, State], Tensor], learned: tuple[str, ...] = ()
) -> Objective:
    """Return an objective from an ordinary differentiable loss.

    Args:
        loss: ``(iteration, images, state) -> scalar``, written with torch's operations.
        learned: Names of tensors of the state that are learned beside the images, such as
            ``"label_logits"``.

    Cost: the graph of one evaluation; the objectives in ``kdistill.objectives`` build none.
    """

    def objective(iteration: int, images: Tensor, state: State) -> Step:
        leaves = {name: state[name].detach().requires_grad_() for name in learned}
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            value = loss(iteration, images, {**state, **leaves})
            grad, *others = torch.autograd.grad(value, [images, *leaves.values()])
        return Step(value.detach(), grad, dict(zip(leaves, others, strict=True)))

    return objective


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One run, ready for ``calibrate`` and the loop.

    Attributes:
        prior: Turns the state into images and returns vector-Jacobian products.
        state: Tensors by name: the prior's, perhaps ``"label_logits" [M, K]`` and ``"lr" []`` (the
            student's learning rate), and what an iteration hands to the next (``Step.updates``).
        labels: Hard labels of the synthetic images, int64 ``[M]``, class-major.
        objective: ``(iteration, images, state) -> Step``; a pure function of its arguments and the
            run's seed.
        optimizer: Steps the tensors that have a gradient; learning rates that are None are found
            by ``calibrate``.
        iterations: Outer steps.
        stages: Progressive search, or None.
        provenance: What the result depends on beside options and data, such as the digest of a
            generator; goes into the record.
        hint: What to change when the numbers blow up, for the error message.
        phases: First iterations of the parts of a run whose iterations cost differently, ascending
            from 0, for ``plan``.
        generator: For a run whose product is a generator: makes it from the tensors that the
            result is taken from (``Outcome.state``).  None: the product are the images.
    """

    prior: Prior
    state: State
    labels: Tensor
    objective: Objective
    optimizer: ByName
    iterations: int
    stages: Stages | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    hint: str = "lower the learning rate"
    phases: tuple[int, ...] = (0,)
    generator: Callable[[State], ConditionalGenerator] | None = None

    def __post_init__(self) -> None:
        check_value("iterations", self.iterations, ITERATIONS)


@dataclass(frozen=True)
class Rendering:
    """What it takes to draw the images of a run, where a dry run leaves that out.

    Attributes:
        seconds_per_image: Time of an image in every iteration.
        resident_bytes: Memory that is held all the time, such as weights.
        chunk_bytes: Memory of a chunk with a graph, while the objective holds none.
        assumptions: What the numbers come from, one phrase each.
    """

    seconds_per_image: float
    resident_bytes: int
    chunk_bytes: int
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class DryRun:
    """A cheap form of a run, and what the whole one needs beyond it (``kdistill.api.plan``).

    Attributes:
        config: Options to build and time.
        steps_ratio: Time of an iteration of the whole run over that of the dry run.
        more_bytes: Memory of an iteration of the whole run beyond that of the dry run.
        expert_bytes: Disk space of the experts that are missing.
        expert_seconds: Time to train them.
        num_params: P, where it is known.
        method: The method that ``config`` belongs to; None is the run's own.
        data: Smaller images to build it on; None are the run's own.
        pixels_ratio: Pixels of the run's images over those of ``data``; time and memory of the
            objective are taken to grow with it.
        rendering: What the dry run leaves out, or None.
    """

    config: Any
    steps_ratio: float = 1.0
    more_bytes: int = 0
    expert_bytes: int = 0
    expert_seconds: float = 0.0
    num_params: int = 0
    method: "Method | None" = None
    data: ImageDataset | None = None
    pixels_ratio: float = 1.0
    rendering: Rendering | None = None


@dataclass(frozen=True)
class Experts:
    """What a method does with expert trajectories.

    Attributes:
        train: ``(config, data) -> TrajectoryStore``: trains those that are missing.
        dry_run: ``(config, data, folder) -> DryRun``: a run with few short experts in ``folder``.
    """

    train: Callable[[Any, ImageDataset], TrajectoryStore]
    dry_run: Callable[[Any, ImageDataset, Path], DryRun]


FAMILIES = {
    "distribution": "Distribution matching",
    "gradient": "Gradient matching",
    "trajectory": "Trajectory matching",
    "latent": "Latents of a generator, under the objective of any method above",
    "generator": "The weights of a generator, which draws any number of images",
    "generation": "Images drawn from a generator",
}
PRESETS = ("fast", "paper")  # every method has these


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published method: its file holds exactly one of these, named ``METHOD``.

    Attributes:
        name: What users write.
        title: The method in one sentence, for the record of a run.
        summary: The method in at most 60 characters, for the list of methods.
        family: What the method matches or learns, a key of ``FAMILIES``.
        paper: Citation.
        config: The dataclass of its options; their defaults are the paper's.
        presets: Named changes to the defaults; ``"fast"`` and ``"paper"`` are required.
        build: ``(config, data, ipc, seed, start) -> Problem``; ``start`` is None or the normalised
            images ``[M, C, H, W]`` to begin with.
        deviations: Where it knowingly differs from the paper or its code.
        experts: How expert trajectories are made, for a method that needs them.
        cost: Work of an iteration, in one line.
        needs: What a run needs beside the data, in one line.
    """

    name: str
    title: str
    summary: str
    family: str
    paper: str
    config: type[MethodConfig]
    presets: Mapping[str, Mapping[str, Any]]
    build: Callable[[Any, ImageDataset, int, int, Tensor | None], Problem]
    deviations: tuple[str, ...] = ()
    experts: Experts | None = None
    cost: str = "first order"
    needs: str = "only the data"

    def __post_init__(self) -> None:
        missing = set(PRESETS) - set(self.presets)
        if missing:
            raise ConfigError(
                f"method {self.name}: expected the presets {' and '.join(PRESETS)}, got none of "
                f"'{min(missing)}'; name both, {{}} for the defaults"
            )

    def options(
        self, preset: str, changes: Mapping[str, Any], *, where: str = "", name: str = "preset"
    ) -> Any:
        """Return an instance of ``config``: the defaults, then a preset, then ``changes``.

        Args:
            preset: A key of ``presets``.
            changes: Values by option.
            where: Stands before the option's name in messages.
            name: What the preset is called in messages.

        Raises:
            ConfigError: The preset or an option is unknown, or a value is out of range.
        """
        if preset not in self.presets:
            raise ConfigError(
                f"{name}: expected one of {self.name}'s, got '{preset}'; "
                f"{did_you_mean(preset, list(self.presets))}"
            )
        values = {**self.presets[preset], **changes}
        return from_mapping(self.config, values, where=where or f"options of {self.name}")
