"""Students: networks as functions of one flat parameter vector."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kdistill.engine.students.base import Student
from kdistill.engine.students.convnet.network import ConvNet
from kdistill.engine.students.convnet.spec import NORMS
from kdistill.engine.students.module import ModuleStudent
from kdistill.engine.students.results import GradJvp, Trace
from kdistill.engine.students.slots import Slot
from kdistill.engine.students.zoo.alexnet import AlexNet
from kdistill.engine.students.zoo.base import ZooModule, refuse
from kdistill.engine.students.zoo.lenet import LeNet
from kdistill.engine.students.zoo.mlp import Mlp
from kdistill.engine.students.zoo.resnet import ResNet18
from kdistill.engine.students.zoo.vgg import Vgg11
from kdistill.engine.students.zoo.vit import Vit
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

_ZOO: dict[str, tuple[type[ZooModule], tuple[str, ...]]] = {  # what each follows of norm and depth
    "mlp": (Mlp, ("depth",)),
    "lenet": (LeNet, ()),
    "alexnet": (AlexNet, ("norm",)),
    "vgg11": (Vgg11, ("norm",)),
    "resnet18": (ResNet18, ("norm",)),
    "vit": (Vit, ("depth",)),
}
STUDENTS = ("convnet", *_ZOO)


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
        classes: N.
        width: Maps (or units) of the first block, 128 for ``convnet``; the others scale from it.
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
            f"{size} and {classes}; resize "
            "the images"
        )
    for what, value in (("width", width), ("depth", depth)):
        if value is not None and value < 1:
            raise ConfigError(
                f"build_student: expected {what} >= 1, got {value}; leave it out for the default"
            )
    shape = {"channels": channels, "size": size, "classes": classes}
    if not isinstance(name, str):
        _own_options(
            "build_student(module)",
            width=width,
            depth=depth,
            norm=norm,
            activation=activation,
            pooling=pooling,
        )
        return _user_module(name, shape)
    if name == "convnet":
        return ConvNet(
            **shape, width=width, depth=depth, norm=norm, activation=activation, pooling=pooling
        )
    if name not in _ZOO:
        raise ConfigError(
            f"build_student: expected a known student, got '{name}'; "
            f"{did_you_mean(name, list(STUDENTS))}"
        )
    return _zoo_student(name, shape, width, depth, norm, activation, pooling)


def _zoo_student(
    name: str,
    shape: dict[str, int],
    width: int | None,
    depth: int | None,
    norm: str,
    activation: str,
    pooling: str,
) -> Student:
    kind, follows = _ZOO[name]
    refuse(
        f"build_student('{name}')",
        activation=(activation, ("relu",)),
        pooling=(pooling, ("avg",)),
        norm=(norm, NORMS if "norm" in follows else ("instance", "none")),
        depth=(depth, (depth if "depth" in follows else None,)),
    )
    options: dict[str, Any] = (
        {"width": width, "depth": depth} if depth is not None else {"width": width}
    )
    if "norm" in follows:
        options["norm"] = norm
    given = {k: v for k, v in options.items() if v is not None}
    with torch.device("meta"):  # shapes only: the values come from init
        module = kind(**shape, **given)
    return ModuleStudent(module, name=name, **shape, taps=module.taps)


def _user_module(name: nn.Module | Callable[[], nn.Module], shape: dict[str, int]) -> Student:
    fresh = None if isinstance(name, nn.Module) else name
    if fresh is None:
        return ModuleStudent(name, name=type(name).__name__, **shape)  # type: ignore[arg-type]
    state = torch.get_rng_state()
    try:
        module = fresh()
    finally:
        torch.set_rng_state(state)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            "build_student: expected a function that returns an nn.Module, got "
            f"{type(module).__name__}; pass one"
        )
    return ModuleStudent(module, name=type(module).__name__, **shape, fresh=fresh)


def _own_options(
    where: str, *, width: int | None, depth: int | None, norm: str, activation: str, pooling: str
) -> None:
    refuse(
        where,
        width=(width, (None,)),
        depth=(depth, (None,)),
        norm=(norm, ("instance",)),
        activation=(activation, ("relu",)),
        pooling=(pooling, ("avg",)),
    )
