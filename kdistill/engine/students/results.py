"""What the passes of a student return.

Symbols: P parameters, B images, N classes, F features, G members of a group (one network each).
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class GradJvp(NamedTuple):
    """Loss and gradient at theta, and their derivatives in the direction v; see ``grad_jvp``.

    Attributes:
        loss: Mean cross-entropy, ``[]`` (``[G]``).
        loss_tangent: ``<g, v>``, ``[]`` (``[G]``).
        grad: g, like theta, or None if it was not asked for.
        hvp: ``H v``, like theta, or None if it was not asked for.
        images_tangent: Derivative of dL/dimages, like the images, or None if it was not asked for.
        labels_tangent: Derivative of dL/dz in the logits z of soft labels; None for hard labels.
    """

    loss: Tensor
    loss_tangent: Tensor
    grad: Tensor | None
    hvp: Tensor | None
    images_tangent: Tensor | None
    labels_tangent: Tensor | None


@dataclass(frozen=True)
class SampleGrads:
    """Logits of a batch and squared norms of the gradient of every image's own loss.

    Attributes:
        logits: ``[B, N]``.
        all: ``|dl_i/dtheta|^2 [B]`` in float64, or None if it was not asked for.
        last: The same over weight and bias of the last layer, ``|p - t|^2 (1 + |h|^2)`` for
            softmax p, target t and features h.
    """

    logits: Tensor
    all: Tensor | None
    last: Tensor | None


@dataclass(frozen=True)
class Trace:
    """Feature maps, features and logits of one pass.

    Attributes:
        maps: Post-activation feature maps of every block before its pooling, shallow to deep.
        features: Input of the classifier, ``[B, ...]``; None where there is no such layer.
        logits: ``[B, N]``.
    """

    maps: list[Tensor]
    features: Tensor | None
    logits: Tensor
