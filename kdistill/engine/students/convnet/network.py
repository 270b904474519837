"""ConvNet-D, the field's standard student.

D times (3×3 conv → norm → activation → 2×2 pool), then a linear classifier.

Source: Gidaris and Komodakis, CVPR 2018, as used by Zhao et al. (dataset condensation) and everyone
    after them.
The standard block (instance norm, ReLU, average pooling) runs through the fused op; the passes
without a graph are in ``passes``, ``jvp``, ``gradient_match`` and ``sample_grads``.
Symbols: P parameters, B images, C channels, S their side, W width, N classes, F features.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from kdistill.engine.layers import EPS
from kdistill.engine.students.base import Student
from kdistill.engine.students.convnet import gradient_match, jvp, passes
from kdistill.engine.students.convnet import sample_grads as gradient_norms
from kdistill.engine.students.convnet.blocks import pool
from kdistill.engine.students.convnet.conv_products import convolution
from kdistill.engine.students.convnet.spec import (
    ACTIVATIONS,
    ConvNetSpec,
    Statistics,
    default_depth,
)
from kdistill.engine.students.results import GradJvp, SampleGrads, Trace
from kdistill.errors import ConfigError
from kdistill.ops.norm_act_pool import norm_act_pool


class ConvNet(Student):
    """A ConvNet-D, made by ``build_student("convnet", ...)``; ``spec`` is its architecture."""

    spec: ConvNetSpec

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
        width, depth = width or 128, default_depth(size) if depth is None else depth
        spec = ConvNetSpec(channels, size, classes, width, depth, norm, activation, pooling)
        super().__init__("convnet", channels, size, classes, spec.slots, spec.features)
        self.spec = spec

    @property
    def is_joint(self) -> bool:  # type: ignore[override]
        """Whether images of a batch depend on each other."""
        return self.spec.is_joint

    # ---- batch statistics

    @torch.no_grad()
    def batch_statistics(self, theta: Tensor, images: Tensor) -> Statistics:
        """Return (mean [W], biased variance [W]) of every block over ``images``."""
        self._check(theta, images)
        statistics: Statistics = []
        self._run(theta, images, statistics=statistics)
        return statistics

    def with_statistics(self, statistics: Statistics | None) -> "ConvNet":
        """Return this student with frozen normalisation statistics, constants in every derivative.

        None: statistics of the batch.
        """
        if self.spec.norm != "batch":
            raise ConfigError(
                f"with_statistics: expected norm 'batch', got '{self.spec.norm}'; only batch norm "
                "has such statistics"
            )
        if statistics is not None and len(statistics) != self.spec.depth:
            raise ConfigError(
                f"with_statistics: expected {self.spec.depth} pairs, got {len(statistics)}; pass "
                "the result of batch_statistics"
            )
        student = copy.copy(self)
        student.spec = replace(self.spec, statistics=statistics)
        return student

    # ---- differentiable

    def _features(self, theta: Tensor, images: Tensor) -> Tensor:
        return self._run(theta, images)[0]

    def _trace(self, theta: Tensor, images: Tensor) -> Trace:
        maps: list[Tensor] = []
        features, classifier = self._run(theta, images, maps=maps)
        return Trace(maps, features, functional.linear(features, *classifier))

    def _logits(self, theta: Tensor, images: Tensor) -> Tensor:
        features, classifier = self._run(theta, images)
        return functional.linear(features, *classifier)

    def _run(
        self,
        theta: Tensor,
        images: Tensor,
        *,
        maps: list[Tensor] | None = None,
        statistics: Statistics | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return features, and the classifier's parameters; fill ``maps`` and ``statistics``."""
        spec, parts, x = self.spec, self.unflatten(theta), images
        for level, block in enumerate(spec.blocks):
            weight, bias, *affine = parts[slice(*spec.conv_slots[level : level + 2])]
            x = convolution(x, weight, bias, block.padding)
            if spec.is_standard and maps is None:
                x = norm_act_pool(x, *affine)
                continue
            if statistics is not None:
                statistics.append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
            x = ACTIVATIONS[spec.activation](self._normalise(x, affine, level))
            if maps is not None:
                maps.append(x)
            x = pool(x, spec.pooling)
        return x.flatten(1), parts[-2:]

    def _normalise(self, x: Tensor, affine: Sequence[Tensor], level: int) -> Tensor:
        if self.spec.norm == "none":
            return x
        if self.spec.norm != "batch":
            return functional.group_norm(x, self.spec.groups, *affine, EPS)
        weight, bias = affine
        if self.spec.statistics is None:
            return functional.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
        mean, variance = (s.to(x) for s in self.spec.statistics[level])
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=EPS)

    # ---- graph free

    def _infer(self, theta: Tensor, images: Tensor, to: str) -> Tensor:
        return passes.forward(self.spec, theta, images, to, keep=False)[0]

    def _forward(self, theta: Tensor, images: Tensor, to: str) -> tuple[Tensor, Any]:
        return passes.forward(self.spec, theta, images, to, keep=True)

    def _backward(
        self, saved: Any, grad_out: Tensor, want_theta: bool, want_images: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return passes.backward(saved, grad_out, want_theta, want_images)

    def _loss_and_grad(
        self, theta: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        return passes.loss_and_grad(self.spec, theta, images, labels)

    def _features_and_logits(self, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor, bool]:
        features = self._infer(theta, images, "features")
        return features, functional.linear(features, *self.unflatten(theta)[-2:]), True

    def _sample_grads(
        self, theta: Tensor, images: Tensor, labels: Tensor, want_last: bool
    ) -> SampleGrads:
        return gradient_norms.sample_grads(self.spec, theta, images, labels)

    def _grad_jvp(
        self, theta: Tensor, images: Tensor, labels: Tensor, v: Tensor, want: Sequence[str]
    ) -> GradJvp:
        return jvp.grad_jvp(self.spec, theta, images, labels, v, want)

    def _grad_then_images_tangent(
        self, theta: Tensor, images: Tensor, labels: Tensor, direction: Callable[[Tensor], Tensor]
    ) -> Tensor:
        return gradient_match.grad_then_images_tangent(self.spec, theta, images, labels, direction)
