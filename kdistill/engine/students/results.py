"""What the passes of a student return, and what they keep for one another.

Symbols: P parameters, B images, N classes, F features, G members of a group (one network each).
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class GraphSaved:
    """What the generic pair keeps: leaves and the end of a private autograd graph."""

    theta: Tensor
    images: Tensor
    out: Tensor


@dataclass
class GroupSaved:
    """What the pair keeps for a group: one entry per member."""

    members: list[Any]
    shared: bool  # one [B, C, S, S] batch for all members


@dataclass(frozen=True)
class GradJvp:
    """Loss and gradient at theta, and their derivatives in the direction v of theta; see ``grad_jvp``.

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
class Trace:
    """What one pass computes on its way.

    Attributes:
        maps: Post-activation maps of every block before its pooling, shallow to deep.
        features: What the classifier reads, ``[B, ...]``; None where there is no such layer.
        logits: ``[B, N]``.
    """

    maps: list[Tensor]
    features: Tensor | None
    logits: Tensor


def stacked(members: list[GradJvp], shared: bool) -> GradJvp:
    """Return the members of a group as one; what belongs to images and labels that they share is summed."""
    found: dict[str, Any] = {}
    for entry in fields(GradJvp):
        values = [getattr(member, entry.name) for member in members]
        if values[0] is None:
            found[entry.name] = None
        else:
            each = torch.stack(values)
            found[entry.name] = (
                each.sum(0)
                if shared and entry.name in ("images_tangent", "labels_tangent")
                else each
            )
    return GradJvp(**found)
