"""ConvNet-D, the field's standard student: D times (3×3 conv → norm → activation → 2×2 pool), then a linear classifier.

Source: Gidaris and Komodakis, CVPR 2018, as used by Zhao et al. (dataset condensation) and everyone
    after them.
The standard block (instance norm, ReLU, average pooling) runs through the fused op; the passes
without a graph are in ``_convnet_fast``, ``_convnet_dual`` and ``_convnet_match``.
Symbols: P parameters, B images, C channels, S their side, W width, N classes, F features.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from kdistill.engine.layers import EPS
from kdistill.engine.students.base import Slot, Student
from kdistill.engine.students.convnet import gradient_match as matching
from kdistill.engine.students.convnet import jvp as dual
from kdistill.engine.students.convnet import passes as fast
from kdistill.engine.students.convnet import sample_grads as scores
from kdistill.engine.students.convnet.blocks import Block as BlockLayer
from kdistill.engine.students.convnet.blocks import composed, fused
from kdistill.engine.students.convnet.conv_products import Convolution, convolution, convolution_for
from kdistill.engine.students.results import GradJvp, Trace
from kdistill.engine.students.sample_grads import SampleGrads
from kdistill.errors import ConfigError, did_you_mean
from kdistill.ops.norm_act_pool import norm_act_pool

ACTIVATIONS = {
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "silu": functional.silu,
}
NORMS = ("instance", "group", "batch", "none")
POOLINGS = ("avg", "max", "none")

Statistics = list[tuple[Tensor, Tensor]]


def check_choice(where: str, what: str, value: str, known: tuple[str, ...] | list[str]) -> None:
    """Raise ConfigError unless ``value`` is one of ``known``."""
    if value not in known:
        raise ConfigError(
            f"{where}: expected a known {what}, got '{value}'; {did_you_mean(value, list(known))}"
        )


def first_padding(size: int) -> int:
    """Return the padding of the first 3×3 convolution: 28-pixel images are taken to 32."""
    return 3 if size == 28 else 1


def default_depth(size: int) -> int:
    """Return the depth that leaves a 4×4 map: 3 at 28 and 32 pixels, 4 at 64, 5 at 128; at least 1."""
    return max(1, int(math.log2(32 if size == 28 else size)) - 2)


@dataclass(frozen=True)
class Block:
    """One block: its convolution's padding and the side of its map before and after pooling."""

    padding: int
    side: int
    pooled: int


class ConvNet(Student):
    """See the module; made by ``build_student("convnet", ...)``."""

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        classes: int,
        width: int | None = None,
        depth: int | None = None,
        norm: str = "instance",
        activation: str = "relu",
        pooling: str = "avg",
    ):
        check_choice("convnet", "norm", norm, NORMS)
        check_choice("convnet", "activation", activation, list(ACTIVATIONS))
        check_choice("convnet", "pooling", pooling, POOLINGS)
        self.width, self.depth = width or 128, default_depth(size) if depth is None else depth
        self.norm, self.activation, self.pooling = norm, activation, pooling
        self.statistics: Statistics | None = None
        self.blocks = _blocks(size, self.depth, norm, pooling)
        feature_dim = self.width * self.blocks[-1].pooled ** 2
        slots = _slots(channels, self.width, self.depth, norm != "none", feature_dim, classes)
        super().__init__("convnet", channels, size, classes, slots, feature_dim)
        self.is_standard = (norm, activation, pooling) == ("instance", "relu", "avg")

    # ---- batch statistics

    @torch.no_grad()
    def batch_statistics(self, theta: Tensor, images: Tensor) -> Statistics:
        """Return (mean [W], biased variance [W]) of every block over ``images [B, C, S, S]``, for ``with_statistics``."""
        self._check(theta, images)
        found: Statistics = []
        self._run(theta, images, statistics=found)
        return found

    def with_statistics(self, statistics: Statistics | None) -> "ConvNet":
        """Return this student with frozen normalisation statistics, constants in every derivative; None for the batch's own."""
        if self.norm != "batch":
            raise ConfigError(
                f"with_statistics: expected norm 'batch', got '{self.norm}'; only batch norm has "
                "such statistics"
            )
        if statistics is not None and len(statistics) != self.depth:
            raise ConfigError(
                f"with_statistics: expected {self.depth} pairs, got {len(statistics)}; pass the "
                "result of batch_statistics"
            )
        student = copy.copy(self)
        student.statistics = statistics
        return student

    # ---- differentiable

    def _features(self, theta: Tensor, images: Tensor) -> Tensor:
        return self._run(theta, images)[0]

    def _trace(self, theta: Tensor, images: Tensor) -> Trace:
        maps: list[Tensor] = []
        features, (weight, bias) = self._run(theta, images, maps=maps)
        return Trace(maps, features, functional.linear(features, weight, bias))

    def _logits(self, theta: Tensor, images: Tensor) -> Tensor:
        features, (weight, bias) = self._run(theta, images)
        return functional.linear(features, weight, bias)

    def _run(
        self,
        theta: Tensor,
        images: Tensor,
        *,
        maps: list[Tensor] | None = None,
        statistics: Statistics | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        parts = self.unflatten(theta)
        per_block = (len(parts) - 2) // self.depth
        x = images
        for level, block in enumerate(self.blocks):
            weight, bias, *affine = parts[level * per_block : (level + 1) * per_block]
            x = convolution(x, weight, bias, block.padding)
            if self.is_standard and maps is None:
                x = norm_act_pool(x, *affine)
                continue
            if statistics is not None:
                statistics.append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
            x = ACTIVATIONS[self.activation](self._normalise(x, affine, level))
            if maps is not None:
                maps.append(x)
            x = self._pool(x)
        return x.flatten(1), parts[-2:]

    def _normalise(self, x: Tensor, affine: Sequence[Tensor], level: int) -> Tensor:
        if self.norm == "none":
            return x
        weight, bias = affine
        if self.norm == "batch":
            if self.statistics is None:
                return functional.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
            mean, variance = (s.to(x) for s in self.statistics[level])
            return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=EPS)
        return functional.group_norm(x, self._groups(), weight, bias, EPS)

    def _normalise_plainly(self, x: Tensor, affine: Sequence[Tensor], level: int) -> Tensor:
        """Return ``_normalise`` from operations whose backward passes have forward derivatives; torch's norms have none."""
        if self.norm == "none":
            return x
        over = x if self.norm == "batch" else x.unflatten(1, (self._groups(), -1))
        axes = (0, 2, 3) if self.norm == "batch" else (2, 3, 4)
        if self.norm == "batch" and self.statistics is not None:
            mean, variance = (s.to(x)[None, :, None, None] for s in self.statistics[level])
        else:
            mean = over.mean(axes, keepdim=True)
            variance = (over - mean).square().mean(axes, keepdim=True)
        normal = ((over - mean) * torch.rsqrt(variance + EPS)).reshape(x.shape)
        return normal * affine[0][:, None, None] + affine[1][:, None, None]

    def _groups(self) -> int:
        return self.width if self.norm == "instance" else math.gcd(4, self.width)

    def _pool(self, x: Tensor) -> Tensor:
        if self.pooling == "none":
            return x
        return functional.avg_pool2d(x, 2) if self.pooling == "avg" else functional.max_pool2d(x, 2)

    # ---- graph free

    @property
    def is_joint(self) -> bool:  # type: ignore[override]
        """Whether images of a batch depend on each other, so that a pass must take all of them at once."""
        return self.norm == "batch" and self.statistics is None

    def conv_slot(self, level: int) -> int:
        """Return which slot holds the weight of a convolution."""
        return level * (4 if self.norm != "none" else 2)

    def affine_slots(self, level: int) -> range:
        """Return which slots hold the parameters of a block; a bias that cancels is not among them."""
        first = self.conv_slot(level)
        return range(
            first + (2 if self.is_standard else 1), first + (4 if self.norm != "none" else 2)
        )

    def block_layers(self) -> list[BlockLayer]:
        """Return the blocks between the convolutions."""
        if self.is_standard:
            return [fused()] * self.depth

        def function(level: int, x: Tensor, bias: Tensor, *affine: Tensor) -> Tensor:
            y = self._normalise_plainly(x + bias[:, None, None], affine, level)
            return self._pool(
                y * torch.sigmoid(y)
                if self.activation == "silu"
                else ACTIVATIONS[self.activation](y)
            )

        return [composed(partial(function, level)) for level in range(self.depth)]

    def _infer_logits(self, theta: Tensor, images: Tensor) -> Tensor:
        return fast.forward(self, theta, images, "logits", keep=False)[0]

    def _infer_features(self, theta: Tensor, images: Tensor) -> Tensor:
        return fast.forward(self, theta, images, "features", keep=False)[0]

    def _forward(self, theta: Tensor, images: Tensor, to: str) -> tuple[Tensor, Any]:
        return fast.forward(self, theta, images, to, keep=True)

    def _backward(
        self, saved: Any, grad_out: Tensor, want_theta: bool, want_images: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return fast.backward(saved, grad_out, want_theta, want_images)

    def _loss_and_grad(
        self, theta: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        return fast.loss_and_grad(self, theta, images, labels)

    def _features_and_logits(self, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor, bool]:
        features, (weight, bias) = self._infer_features(theta, images), self.unflatten(theta)[-2:]
        return features, functional.linear(features, weight, bias), True

    def _sample_grads(
        self, theta: Tensor, images: Tensor, labels: Tensor, want_last: bool
    ) -> SampleGrads:
        return scores.sample_grads(self, theta, images, labels)

    def _grad_jvp(
        self, theta: Tensor, images: Tensor, labels: Tensor, v: Tensor, want: Sequence[str]
    ) -> GradJvp:
        return dual.grad_jvp(self, theta, images, labels, v, want)

    def _grad_then_images_tangent(
        self, theta: Tensor, images: Tensor, labels: Tensor, direction: Callable[[Tensor], Tensor]
    ) -> Tensor:
        return matching.grad_then_images_tangent(self, theta, images, labels, direction)

    def convolutions(self, like: Tensor) -> list[Convolution]:
        """Return the convolution of every block for tensors like ``like``."""
        sizes = zip([self.channels, *[self.width] * (self.depth - 1)], self.blocks, strict=True)
        return [
            convolution_for(c, self.width, b.padding, b.side - 2 * b.padding + 2, like)
            for c, b in sizes
        ]


def _blocks(size: int, depth: int, norm: str, pooling: str) -> list[Block]:
    blocks: list[Block] = []
    side = size
    for level in range(depth):
        padding = first_padding(size) if level == 0 else 1
        side = side + 2 * padding - 2
        pooled = side if pooling == "none" else side // 2
        if pooled == 0 or (side == 1 and norm == "instance"):
            raise ConfigError(
                f"convnet: expected depth <= {level} for {size}-pixel images, got {depth}; the map "
                "has shrunk to 1×1 "
                f"before block {level + 1}"
            )
        blocks.append(Block(padding, side, pooled))
        side = pooled
    return blocks


def _slots(
    channels: int, width: int, depth: int, has_norm: bool, features: int, classes: int
) -> list[Slot]:
    slots = []
    for level in range(depth):
        fan_in = 9 * (width if level else channels)
        slots.append(Slot(f"blocks.{level}.conv.weight", (width, fan_in // 9, 3, 3), fan_in))
        slots.append(Slot(f"blocks.{level}.conv.bias", (width,), fan_in))
        if has_norm:
            slots.append(Slot(f"blocks.{level}.norm.weight", (width,), None, 1.0))
            slots.append(Slot(f"blocks.{level}.norm.bias", (width,), None, 0.0))
    slots.append(Slot("classifier.weight", (classes, features), features))
    slots.append(Slot("classifier.bias", (classes,), features))
    return slots
