"""What a network sees in images at several depths, and how much each part of it speaks for a class.

A level is a map of a block, or what the classifier reads.  The last map gives way to the latter:
for a head that flattens, the vector itself (CAM weights are rows of the classifier); for one that
averages over positions, the map again, each channel with the classifier's weight of its mean.
Symbols: B images, K classes, levels A_l of |A_l| numbers an image.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdistill.engine.students import Student, Trace
from kdistill.errors import ConfigError, did_you_mean

LAYERS = ("all", "last")


@dataclass(frozen=True)
class Levels:
    """The parts of a network whose outputs are compared.

    Attributes:
        student: The network.
        layers: ``"all"`` blocks, or the ``"last"`` alone.
        averages: Its classifier reads means over the positions of the last map.
    """

    student: Student
    layers: str
    averages: bool

    def __call__(self, theta: Tensor, images: Tensor) -> list[Tensor]:
        """Return the levels ``[B, ...]``, shallow to deep; differentiable if a graph is kept."""
        if self.layers == "last" and not self.averages:
            if torch.is_grad_enabled() and images.requires_grad:
                features = self.student.features(theta, images)
                assert isinstance(features, Tensor)
                return [features]
            return [self.student.infer(theta, images, to="features")]
        return self._of(self.student.trace(theta, images))

    @torch.enable_grad()
    def with_gradients(
        self, theta: Tensor, images: Tensor, label: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the levels, and in each the derivative of the image's logit of class ``label``.

        Derivatives in feature maps are means over positions, as dimensions of 1: Grad-CAM's weights
        before the mean over images.
        """
        trace = self.student.trace(theta, images.detach().requires_grad_())
        levels, features = self._of(trace), _features(trace)
        inner = trace.maps[:-1] if self.layers == "all" else []
        *grads, last = torch.autograd.grad(
            trace.logits[:, label].sum(), [*inner, features], materialize_grads=True
        )
        weights = [
            grad.mean(_positions(grad), keepdim=True) if _positions(grad) else grad
            for grad in grads
        ]
        weights.append(last.reshape(len(images), -1, 1, 1) if self.averages else last.flatten(1))
        return [level.detach() for level in levels], weights

    def _of(self, trace: Trace) -> list[Tensor]:
        last = trace.maps[-1] if self.averages else _features(trace).flatten(1)
        return [*trace.maps[:-1], last] if self.layers == "all" else [last]


def levels_of(student: Student, theta: Tensor, images: Tensor, layers: str) -> Levels:
    """Return the levels of a network; ``images`` show whether its classifier reads means.

    Raises:
        ConfigError: ``layers`` is unknown, or the network has no classifier whose input can be
            read.
    """
    if layers not in LAYERS:
        raise ConfigError(
            f"layers: expected a known choice, got '{layers}'; {did_you_mean(layers, list(LAYERS))}"
        )
    with torch.no_grad():
        trace = student.trace(theta, images[:2])
    features, last = _features(trace), trace.maps[-1]
    averages = last.ndim == 4 and features.shape == last.shape[:2]
    return Levels(
        student,
        layers,
        averages and torch.allclose(last.mean((2, 3)), features, rtol=1e-4, atol=1e-6),
    )


def class_statistics(
    levels: Levels,
    theta: Tensor,
    images: Callable[[int], Iterable[Tensor]],
    classes: int,
    *,
    weighted: bool,
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Return the class means ``[K, ...]`` of every level and, if ``weighted``, their class weights.

    The weights broadcast to the means.

    Args:
        levels: Levels of the network that are compared.
        theta: ``[P]``.
        images: ``class -> chunks [B, C, S, S]`` of its images, at least one.
        classes: Number of classes, K.
        weighted: Compute weights too.

    Cost: a forward pass over all images, with weights another backward to the first block; memory
        of a chunk beside the result.
    Sums are taken in float64, class by class, so the result does not depend on the order of the
    classes.
    """
    means: list[list[Tensor]] = []
    weights: list[list[Tensor]] = []
    for label in range(classes):
        count, sums, slopes = 0, [], []
        for chunk in images(label):
            if weighted:
                outputs, grads = levels.with_gradients(theta, chunk, label)
            else:
                with torch.no_grad():
                    outputs, grads = levels(theta, chunk), []
            count += len(chunk)
            sums.append([level.double().sum(0) for level in outputs])
            slopes.append([grad.double().sum(0) for grad in grads])
        means.append([(sum(parts) / count).to(theta) for parts in zip(*sums, strict=True)])
        weights.append([(sum(parts) / count).to(theta) for parts in zip(*slopes, strict=True)])
    return _per_level(means), _per_level(weights) if weighted else None


def _per_level(rows: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def _positions(x: Tensor) -> tuple[int, ...]:
    """Return the dimensions of ``[B, C, H, W]`` or ``[B, T, D]`` that are positions."""
    return {4: (2, 3), 3: (1,)}.get(x.ndim, ())


def _features(trace: Trace) -> Tensor:
    if trace.features is None:
        raise ConfigError(
            "relevance: expected a network that ends in a linear classifier, got none; end the "
            "module with one"
        )
    return trace.features
