"""What a method file provides, and what all of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdistill.augment import Augment
from kdistill.data import ImageDataset
from kdistill.engine.students import Student, build_student
from kdistill.errors import ConfigError
from kdistill.keys import generator, make_key
from kdistill.priors import Prior, State
from kdistill.selection import select

FAMILIES = "color_crop_cutout_flip_scale_rotate"
DIGIT_SETS = ("mnist5k", "digits")  # a mirrored digit is another digit: the field leaves "flip" out for these


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One run, ready for the loop.

    Attributes:
        prior: Turns the state into images and pulls gradients back.
        state: The tensors that are optimised.
        labels: Hard labels of the synthetic images, int64 ``[M]``, class-major.
        objective: ``(iteration, images) -> (loss, dL/dimages)``; a pure function of its arguments and the run's seed.
        learning_rates: Step size of each tensor of the state.
        momentum: Of the outer SGD.
        iterations: Outer steps.
    """

    prior: Prior
    state: State
    labels: Tensor
    objective: Callable[[int, Tensor], tuple[Tensor, Tensor]]
    learning_rates: Mapping[str, float]
    momentum: float
    iterations: int


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published method: one file of ``kdistill/methods`` holds exactly one of these, named ``METHOD``.

    Attributes:
        name: What users write.
        title: The method in one line.
        paper: Citation.
        config: The dataclass of its options; their defaults are the paper's.
        presets: Named changes to the defaults.
        build: ``(config, data, ipc, seed, start) -> Problem``; ``start`` is None or the images ``[M, C, H, W]`` to begin
            with, as networks see them.
        deviations: Where it knowingly differs from the paper or its code.
        needs_experts: Whether expert trajectories are trained first.
        soft_labels: Whether labels are learned too.
    """

    name: str
    title: str
    paper: str
    config: type
    presets: Mapping[str, Mapping[str, Any]]
    build: Callable[[Any, ImageDataset, int, int, Tensor | None], Problem]
    deviations: tuple[str, ...] = ()
    needs_experts: bool = False
    soft_labels: bool = False
    cost: str = field(default="first order")


def balanced_labels(num_classes: int, ipc: int) -> Tensor:
    """Return ``[0]*ipc + [1]*ipc + ...``, the class-major order of the field."""
    return torch.arange(num_classes).repeat_interleave(ipc)


def initial_images(data: ImageDataset, ipc: int, init: str, seed: int) -> Tensor:
    """Return the first images ``[K*ipc, C, H, W]`` as networks see them: real ones of each class, or standard normal noise."""
    if init == "noise":
        shape = (data.num_classes * ipc, data.channels, data.size, data.size)
        return torch.randn(shape, generator=generator(make_key(seed, "init")))
    if init != "real":
        raise ConfigError(f"init: expected 'real' or 'noise', got '{init}'; pass earlier images with init=<folder or set>")
    rows = select("random", data.train.images.flatten(1), data.train.labels, ipc, make_key(seed, "init"))
    return data.transform.apply(data.train.images[rows])


def augmentation(strategy: str, data: ImageDataset, key: int, *, siamese: bool, align_corners: bool) -> Augment:
    """Return the keyed DSA augmentation; ``"auto"`` is every family, without flip for the built-in digit sets."""
    if strategy == "auto":
        strategy = FAMILIES.replace("_flip", "") if data.name in DIGIT_SETS else FAMILIES
    return Augment(strategy, siamese=siamese, key=key, align_corners=align_corners)


def student_for(data: ImageDataset, name: str, *, width: int, depth: int | None, norm: str) -> Student:
    """Return the network that a run uses on ``data``."""
    return build_student(
        name, channels=data.channels, size=data.size, classes=data.num_classes, width=width, depth=depth, norm=norm
    )
