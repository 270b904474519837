"""Students: networks as functions of one flat parameter vector."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kdistill.engine.students.base import Slot, Student
from kdistill.engine.students.convnet.network import ConvNet
from kdistill.engine.students.convnet.spec import NORMS
from kdistill.engine.students.module import ModuleStudent
from kdistill.engine.students.results import GradJvp, Trace
from kdistill.engine.students.zoo import (
    AlexNet,
    LeNet,
    Mlp,
    ResNet18,
    Vgg11,
    Vit,
    ZooModule,
)
from kdistill.errors import ConfigError, ShapeError, did_you_mean

__all__ = [
    "NORMS",
    "STUDENTS",
    "ConvNet",
    "GradJvp",
    "ModuleStudent",
    "Slot",
    "Student",
    "Trace",
    "build_student",
]

_ZOO: dict[str, type[ZooModule]] = {
    "mlp": Mlp,
    "lenet": LeNet,
    "alexnet": AlexNet,
    "vgg11": Vgg11,
    "resnet18": ResNet18,
    "vit": Vit,
}
STUDENTS = ("convnet", *_ZOO)
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "width": (None,),
    "depth": (None,),
    "norm": ("instance",),
    "activation": ("relu",),
    "pooling": ("avg",),
}


def build_student(
    name: str | nn.Module | Callable[[], nn.Module],
    *,
    channels: int,
    size: int,
    classes: int,
    width: int | None = None,
    depth: int | None = None,
    norm: str = "instance",
    activation: str = "relu",
    pooling: str = "avg",
) -> Student:
    """Return a network as a function of a flat parameter vector.

    Args:
        name: ``"convnet"``, ``"mlp"``, ``"lenet"``, ``"alexnet"``, ``"vgg11"``, ``"resnet18"`` or
            ``"vit"``; or a module that maps ``[B, C, S, S]`` to ``[B, N]``; or a function without
            arguments that makes one (``init`` calls it again).
        channels: C, 1 or more.
        size: S, the side of the images, 8 to 256.
        classes: Number of classes, N.
        width: Channels (or units) of the first block, 128 for ``convnet``; others scale with it.
            Smaller values give narrow variants.
        depth: Blocks of ``convnet`` (None follows the size: 3 at 32 pixels, 4 at 64), layers of
            ``mlp`` (2) and ``vit`` (6).
        norm: ``"instance"``, ``"group"``, ``"batch"`` (statistics of the batch, differentiable) or
            ``"none"``.  ``mlp``, ``lenet`` and ``vit`` have no such layers and take the default as
            "none".
        activation: ``"relu"``, ``"leaky_relu"`` or ``"silu"``, of ``convnet``.
        pooling: ``"avg"``, ``"max"`` or ``"none"``, of ``convnet``; the others have their own.

    Raises:
        ConfigError: Unknown name or option, or an option that this network cannot follow.
        ShapeError: Size, channels or classes out of range.
    """
    if channels < 1 or not 8 <= size <= 256 or classes < 2:
        raise ShapeError(
            f"build_student: expected channels >= 1, size 8..256 and classes >= 2, got {channels}, "
            f"{size} and {classes}; resize the images"
        )
    for what, value in (("width", width), ("depth", depth)):
        if value is not None and value < 1:
            raise ConfigError(
                f"build_student: expected {what} >= 1, got {value}; leave it out for the default"
            )
    shape = {"channels": channels, "size": size, "classes": classes}
    options = {"norm": norm, "activation": activation, "pooling": pooling}
    if name == "convnet":
        return ConvNet(**shape, width=width, depth=depth, **options)
    options |= {"width": width, "depth": depth}
    if not isinstance(name, str):
        _check_options("build_student(module)", options, _DEFAULTS)
        return _student_of_module(name, shape)
    if name not in _ZOO:
        raise ConfigError(
            f"build_student: expected a known student, got '{name}'; "
            f"{did_you_mean(name, list(STUDENTS))}"
        )
    follows = ("width", *_ZOO[name].options)
    allowed = {**_DEFAULTS, "norm": NORMS if "norm" in follows else ("instance", "none")}
    for option in {"width", "depth"} & set(follows):
        del allowed[option]
    _check_options(f"build_student('{name}')", options, allowed)
    chosen = {k: options[k] for k in follows if options[k] is not None}
    with torch.device("meta"):  # shapes only: the values come from init
        module = _ZOO[name](**shape, **chosen)
    return ModuleStudent(module, name=name, **shape, taps=module.taps)


def _student_of_module(
    module: nn.Module | Callable[[], nn.Module], shape: dict[str, int]
) -> Student:
    if isinstance(module, nn.Module):
        return ModuleStudent(module, name=type(module).__name__, **shape)
    with torch.random.fork_rng(devices=[]):
        fresh = module()
    if not isinstance(fresh, nn.Module):
        raise ConfigError(
            "build_student: expected a function that returns an nn.Module, got "
            f"{type(fresh).__name__}; pass one"
        )
    return ModuleStudent(fresh, name=type(fresh).__name__, **shape, fresh=module)


def _check_options(
    where: str, options: dict[str, Any], allowed: dict[str, tuple[Any, ...]]
) -> None:
    """Raise ConfigError for an option that a network cannot follow."""
    for option, values in allowed.items():
        if options[option] not in values:
            raise ConfigError(
                f"{where}: expected {option} among {', '.join(map(str, values))}, got "
                f"{options[option]}; leave it at its default"
            )
