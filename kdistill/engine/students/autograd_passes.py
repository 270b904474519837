"""The passes of one network by PyTorch's autograd, which a student may replace by faster ones.

Symbols: P parameters, B images, N classes, F features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students.results import GradJvp, SampleGrads, Trace


@dataclass
class _Graph:
    """The leaves and the end of a private autograd graph, kept for the generic ``backward``."""

    theta: Tensor
    images: Tensor
    out: Tensor


class AutogradPasses(ABC):
    """Passes of one network; ``Student`` checks their arguments and takes groups apart.

    A network defines the three abstract methods and may override any other.
    """

    @abstractmethod
    def _features(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return the differentiable ``[B, F]``."""

    @abstractmethod
    def _trace(self, theta: Tensor, images: Tensor) -> Trace:
        """Return the differentiable feature maps, features and logits."""

    @abstractmethod
    def _logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return the differentiable ``[B, N]``."""

    def _infer(self, theta: Tensor, images: Tensor, to: str) -> Tensor:
        return self._logits(theta, images) if to == "logits" else self._features(theta, images)

    def _forward(self, theta: Tensor, images: Tensor, to: str) -> tuple[Tensor, Any]:
        theta, images = theta.detach().requires_grad_(), images.detach().requires_grad_()
        with torch.enable_grad():
            out = self._logits(theta, images) if to == "logits" else self._features(theta, images)
        return out.detach(), _Graph(theta, images, out)

    def _backward(
        self, saved: Any, grad_out: Tensor, want_theta: bool, want_images: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        wanted = ((saved.theta, want_theta), (saved.images, want_images))
        grads = _grads(saved.out, wanted, grad_out, retain_graph=True)
        return grads[0], grads[1]

    def _loss_and_grad(
        self, theta: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._logits(leaf, images)
        loss, grad_logits = layers.softmax_cross_entropy(logits.detach(), labels)
        (grad,) = torch.autograd.grad(logits, leaf, grad_logits, materialize_grads=True)
        return loss, grad

    def _grad_jvp(
        self, theta: Tensor, images: Tensor, labels: Tensor, v: Tensor, want: Sequence[str]
    ) -> GradJvp:
        is_soft = labels.is_floating_point()
        theta, images = theta.detach().requires_grad_(), images.detach().requires_grad_()
        z = labels.detach().requires_grad_(is_soft)
        with torch.enable_grad():
            targets = functional.softmax(z, 1) if is_soft else z
            loss = functional.cross_entropy(self._logits(theta, images), targets)
            (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
            slope = grad @ v
        wanted = ((theta, "hvp" in want), (images, "images" in want), (z, is_soft))
        own = grad.detach() if "grad" in want else None
        return GradJvp(loss.detach(), slope.detach(), own, *_grads(slope, wanted))

    def _grad_then_images_tangent(
        self, theta: Tensor, images: Tensor, labels: Tensor, direction: Callable[[Tensor], Tensor]
    ) -> Tensor:
        _, grad = self._loss_and_grad(theta, images, labels)
        tangent = self._grad_jvp(theta, images, labels, direction(grad), ("images",)).images_tangent
        assert tangent is not None  # it was asked for
        return tangent

    def _features_and_logits(self, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Return the classifier's input and output, and whether it has a bias."""
        features = self._infer(theta, images, "features")
        return features, self._infer(theta, images, "logits"), True

    def _sample_grads(
        self, theta: Tensor, images: Tensor, labels: Tensor, want_last: bool
    ) -> SampleGrads:
        """Return norms over all parameters too, from one backward pass per image."""
        forward = self._last_layer_grads(theta, images, labels, want_last)
        squares = theta.new_empty(len(images), dtype=torch.float64)
        for i in range(len(images)):
            _, grad = self._loss_and_grad(theta, images[i : i + 1], labels[i : i + 1])
            squares[i] = grad.double().square().sum()
        return SampleGrads(forward.logits, squares, forward.last)

    def _last_layer_grads(
        self, theta: Tensor, images: Tensor, labels: Tensor, want_last: bool
    ) -> SampleGrads:
        """Return the logits and, if wanted, norms of the last layer's gradients in closed form."""
        if not want_last:
            return SampleGrads(self._infer(theta, images, "logits"), None, None)
        features, logits, has_bias = self._features_and_logits(theta, images)
        _, grad = layers.softmax_cross_entropy(logits, labels, 1)
        return SampleGrads(logits, None, layers.linear_grad_sqnorm(grad, features, has_bias))


def _grads(
    out: Tensor,
    wanted: Sequence[tuple[Tensor, bool]],
    grad_out: Tensor | None = None,
    *,
    retain_graph: bool = False,
) -> list[Tensor | None]:
    """Return the gradients of ``out`` in those leaves that are wanted, None for the others."""
    leaves = [leaf for leaf, is_wanted in wanted if is_wanted]
    if not leaves:
        return [None] * len(wanted)
    grads = iter(
        torch.autograd.grad(
            out, leaves, grad_out, retain_graph=retain_graph, materialize_grads=True
        )
    )
    return [next(grads) if is_wanted else None for _, is_wanted in wanted]
