"""The interface of every student: a network as a function of one flat parameter vector.

Symbols: P parameters, B images, C channels, S their side, N classes, F features, G members of a
    group (one network each).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students import sample_grads as _sample_grads
from kdistill.engine.students.results import GradJvp, GraphSaved, GroupSaved, Trace, stacked
from kdistill.engine.students.sample_grads import SAMPLE_GRADS, SampleGrads
from kdistill.errors import ConfigError, ShapeError

GRADS = ("theta", "images")
JVPS = ("grad", "hvp", "images")


@dataclass(frozen=True)
class Slot:
    """One parameter tensor inside theta.

    Attributes:
        name: Dotted, e.g. ``"blocks.0.conv.weight"``.
        shape: Of the tensor.
        fan_in: Drawn from U(±1/sqrt(fan_in)), PyTorch's default of convolutions and linear layers;
            None for a constant.
        value: The constant.
    """

    name: str
    shape: tuple[int, ...]
    fan_in: int | None = None
    value: float = 0.0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return initial values, flat, float32."""
        if self.fan_in is None:
            return torch.full((self.numel,), self.value, device=generator.device)
        if len(self.shape) == 1:
            bound = 1.0 / math.sqrt(self.fan_in)
        else:  # the same number, rounded as torch.nn.init rounds it
            bound = math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(self.fan_in))
        return torch.empty(self.numel, device=generator.device).uniform_(
            -bound, bound, generator=generator
        )


class Student(ABC):
    """A network as a function of one flat parameter vector ``theta [P]``.

    Every call also takes a group: ``theta [G, P]`` with ``images [G, B, C, S, S]``, or with one
        shared ``[B, C, S, S]``; results
    then begin with G.  Images are what the network sees (normalised), float32 or float64 like
    theta.

    Attributes:
        name: E.g. ``"convnet"``.
        channels: C.
        size: S.
        classes: N.
        slots: The parameter tensors in the order in which theta holds them, shallow to deep.
        feature_dim: F, the length of the vector before the classifier.
    """

    is_joint = False  # whether images of a batch depend on each other (batch statistics)

    def __init__(
        self,
        name: str,
        channels: int,
        size: int,
        classes: int,
        slots: Sequence[Slot],
        feature_dim: int,
    ):
        self.name, self.channels, self.size, self.classes = name, channels, size, classes
        self.slots, self.feature_dim = tuple(slots), feature_dim
        self.num_params = sum(slot.numel for slot in self.slots)
        self._numels = [slot.numel for slot in self.slots]

    def __repr__(self) -> str:
        return f"Student({self.name}, {self.channels}x{self.size}x{self.size} -> {self.classes}, {self.num_params} parameters)"

    def init(self, generator: torch.Generator) -> Tensor:
        """Return fresh parameters ``theta [P]``, float32, on the generator's device and drawn from it alone."""
        return torch.cat([slot.draw(generator) for slot in self.slots])

    def unflatten(self, theta: Tensor) -> list[Tensor]:
        """Return ``theta [P]`` as views of the shapes of ``slots``."""
        return [
            part.view(slot.shape)
            for part, slot in zip(theta.split(self._numels), self.slots, strict=True)
        ]

    # ---- differentiable calls

    def apply(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return logits ``[B, N]`` (``[G, B, N]``); differentiable twice in theta and images."""
        return self._each(theta, images, self._logits)

    def features(
        self, theta: Tensor, images: Tensor, layers: str = "last"
    ) -> Tensor | list[Tensor]:
        """Return what the network computes before its classifier; differentiable twice in theta and images.

        Args:
            theta: ``[P]`` or ``[G, P]``.
            images: ``[B, C, S, S]`` or ``[G, B, C, S, S]``.
            layers: ``"last"``: the vector that the classifier reads, ``[B, F]``.  ``"all"``: the
                post-activation maps of every block before its pooling, shallow to deep.
        """
        if layers == "last":
            return self._each(theta, images, self._features)
        if layers != "all":
            raise ConfigError(
                f"features: expected layers 'last' or 'all', got '{layers}'; pass one of the two"
            )
        if theta.ndim == 1:
            return self.trace(theta, images).maps
        members = [self.trace(t, x).maps for t, x in self._members(theta, images)]
        return [torch.stack(level) for level in zip(*members, strict=True)]

    def trace(self, theta: Tensor, images: Tensor) -> Trace:
        """Return maps, features and logits of one pass with ``theta [P]``; the later ones can be derived in the earlier ones."""
        self._check(theta, images)
        return self._trace(theta, images)

    # ---- graph-free calls

    @torch.no_grad()
    def forward(self, theta: Tensor, images: Tensor, *, to: str = "logits") -> tuple[Tensor, Any]:
        """Run the network without an autograd graph and keep what ``backward`` needs.

        Args:
            theta: ``[P]`` or ``[G, P]``.
            images: ``[B, C, S, S]`` or ``[G, B, C, S, S]``.
            to: ``"logits"`` or ``"features"`` (the vector before the classifier).

        Returns:
            (out ``[B, N]`` or ``[B, F]``, saved).  Theta and images must not change before
            ``backward``.
        """
        _check_end("forward", to)
        if theta.ndim == 1:
            self._check(theta, images)
            return self._forward(theta, images, to)
        pairs = [self._forward(t, x, to) for t, x in self._members(theta, images)]
        saved = GroupSaved([kept for _, kept in pairs], images.ndim == 4)
        return torch.stack([out for out, _ in pairs]), saved

    @torch.no_grad()
    def backward(
        self, saved: Any, grad_out: Tensor, *, want: Sequence[str] = GRADS
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return (dL/dtheta or None, dL/dimages or None) from ``grad_out = dL/dout``; ``want`` names those to compute.

        Shapes are those of ``theta`` and ``images`` in ``forward``; images shared by a group get
        the sum over the group.
        """
        if not set(want) <= set(GRADS):
            raise ConfigError(
                f"backward: expected want among {GRADS}, got {tuple(want)}; leave the others out"
            )
        flags = "theta" in want, "images" in want
        if not isinstance(saved, GroupSaved):
            return self._backward(saved, grad_out, *flags)
        pairs = [
            self._backward(kept, grad, *flags)
            for kept, grad in zip(saved.members, grad_out, strict=True)
        ]
        grad_theta = torch.stack([t for t, _ in pairs if t is not None]) if flags[0] else None
        if not flags[1]:
            return grad_theta, None
        grads = torch.stack([x for _, x in pairs if x is not None])
        return grad_theta, grads.sum(0) if saved.shared else grads

    @torch.no_grad()
    def infer(
        self, theta: Tensor, images: Tensor, *, to: str = "logits", batch_size: int | None = None
    ) -> Tensor:
        """Return what ``forward`` returns and keep nothing.

        Args:
            theta: ``[P]`` or ``[G, P]``.
            images: ``[B, C, S, S]`` or ``[G, B, C, S, S]``.
            to: ``"logits"`` or ``"features"``.
            batch_size: Most images at a time; None leaves it to the student.  Under batch
                statistics it changes the result.
        """
        _check_end("infer", to)
        call = self._infer_logits if to == "logits" else self._infer_features
        if batch_size is None:
            return self._each(theta, images, call)
        return self._each(
            theta, images, lambda t, x: torch.cat([call(t, part) for part in x.split(batch_size)])
        )

    @torch.no_grad()
    def loss_and_grad(self, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy and its gradient in theta: (``[]``, ``[P]``), or (``[G]``, ``[G, P]``).

        Args:
            theta: ``[P]`` or ``[G, P]``.
            images: ``[B, C, S, S]``, or ``[G, B, C, S, S]``.
            labels: int64 ``[B]``, or float logits of soft labels ``[B, N]``; with a G in front if
                the images have one.
        """
        layers.check_labels("loss_and_grad", labels, tuple(images.shape[:-3]), self.classes)
        if theta.ndim == 1:
            self._check(theta, images)
            return self._loss_and_grad(theta, images, labels)
        members = self._members(theta, images)
        each = [labels] * len(members) if images.ndim == 4 else list(labels)
        pairs = [self._loss_and_grad(t, x, y) for (t, x), y in zip(members, each, strict=True)]
        return torch.stack([loss for loss, _ in pairs]), torch.stack([grad for _, grad in pairs])

    @torch.no_grad()
    def grad_jvp(
        self,
        theta: Tensor,
        images: Tensor,
        labels: Tensor,
        v: Tensor,
        *,
        want: Sequence[str] = JVPS,
    ) -> GradJvp:
        """Return loss and gradient, and their derivatives in the direction ``v`` of theta; see ``kdistill.engine.grad_jvp``."""
        layers.check_labels("grad_jvp", labels, tuple(images.shape[:-3]), self.classes)
        if not set(want) <= set(JVPS):
            raise ConfigError(
                f"grad_jvp: expected want among {JVPS}, got {tuple(want)}; leave the others out"
            )
        if v.shape != theta.shape or v.dtype != theta.dtype or v.device != theta.device:
            raise ShapeError(
                f"grad_jvp: expected v like theta ({theta.dtype} {list(theta.shape)} on "
                f"{theta.device}), got {v.dtype} "
                f"{list(v.shape)} on {v.device}; pass one direction per network"
            )
        if theta.ndim == 1:
            self._check(theta, images)
            return self._grad_jvp(theta, images, labels, v, want)
        shared = images.ndim == 4
        each = [labels] * len(theta) if shared else list(labels)
        members = zip(self._members(theta, images), each, v, strict=True)
        return stacked([self._grad_jvp(t, x, y, d, want) for (t, x), y, d in members], shared)

    @torch.no_grad()
    def grad_then_images_tangent(
        self, theta: Tensor, images: Tensor, labels: Tensor, direction: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the derivative of dL/dimages in the direction ``v = direction(g)`` of theta, where g is dL/dtheta.

        Args:
            theta: ``[P]``.
            images: ``[B, C, S, S]``.
            labels: As in ``loss_and_grad``.
            direction: ``g [P] -> v [P]``, called once; v is a constant of the derivative.

        Returns:
            Like ``images``; the same as ``grad_jvp(theta, images, labels, v).images_tangent``, from
            one pass forward and backward instead of two where the network can keep what it found on
            the way to g.
        """
        layers.check_labels(
            "grad_then_images_tangent", labels, tuple(images.shape[:-3]), self.classes
        )
        self._check(theta, images)
        return self._grad_then_images_tangent(theta, images, labels, direction)

    @torch.no_grad()
    def sample_grads(
        self, theta: Tensor, images: Tensor, labels: Tensor, *, want: Sequence[str] = SAMPLE_GRADS
    ) -> SampleGrads:
        """Return the logits and the squared norm of every image's own gradient; ``want``: "all" parameters, "last" layer."""
        layers.check_labels("sample_grads", labels, tuple(images.shape[:-3]), self.classes)
        self._check(theta, images)
        return _sample_grads.of(self, theta, images, labels, want)

    # ---- what a network defines; always one member, checked

    @abstractmethod
    def _features(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return the differentiable ``[B, F]``."""

    @abstractmethod
    def _trace(self, theta: Tensor, images: Tensor) -> Trace:
        """Return the differentiable maps, features and logits."""

    @abstractmethod
    def _logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return the differentiable ``[B, N]``."""

    # ---- what a network may replace by something faster

    def _infer_logits(self, theta: Tensor, images: Tensor) -> Tensor:
        return self._logits(theta, images)

    def _infer_features(self, theta: Tensor, images: Tensor) -> Tensor:
        return self._features(theta, images)

    def _forward(self, theta: Tensor, images: Tensor, to: str) -> tuple[Tensor, Any]:
        theta, images = theta.detach().requires_grad_(), images.detach().requires_grad_()
        with torch.enable_grad():
            out = self._logits(theta, images) if to == "logits" else self._features(theta, images)
        return out.detach(), GraphSaved(theta, images, out)

    def _backward(
        self, saved: Any, grad_out: Tensor, want_theta: bool, want_images: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        inputs = [
            x for x, wanted in ((saved.theta, want_theta), (saved.images, want_images)) if wanted
        ]
        if not inputs:
            return None, None
        grads = iter(
            torch.autograd.grad(
                saved.out, inputs, grad_out, retain_graph=True, materialize_grads=True
            )
        )
        return next(grads) if want_theta else None, next(grads) if want_images else None

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
        leaves = [
            x.detach().requires_grad_() for x in (theta, images, labels)[: 3 if is_soft else 2]
        ]
        with torch.enable_grad():
            targets = functional.softmax(leaves[2], 1) if is_soft else labels
            loss = functional.cross_entropy(self._logits(*leaves[:2]), targets)
            (grad,) = torch.autograd.grad(loss, leaves[:1], create_graph=True)
            slope = grad @ v
        asked = ("hvp" in want, "images" in want, is_soft)
        wanted = [leaf for leaf, needed in zip(leaves, asked, strict=False) if needed]
        found = iter(torch.autograd.grad(slope, wanted, materialize_grads=True) if wanted else ())
        return GradJvp(
            loss=loss.detach(),
            loss_tangent=slope.detach(),
            grad=grad.detach() if "grad" in want else None,
            hvp=next(found) if asked[0] else None,
            images_tangent=next(found) if asked[1] else None,
            labels_tangent=next(found) if is_soft else None,
        )

    def _grad_then_images_tangent(
        self, theta: Tensor, images: Tensor, labels: Tensor, direction: Callable[[Tensor], Tensor]
    ) -> Tensor:
        _, grad = self._loss_and_grad(theta, images, labels)
        tangent = self._grad_jvp(theta, images, labels, direction(grad), ("images",)).images_tangent
        assert tangent is not None  # it was asked for
        return tangent

    def _features_and_logits(self, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor, bool]:
        return (
            self._infer_features(theta, images),
            self._infer_logits(theta, images),
            True,
        )  # True: the last layer has a bias

    def _sample_grads(
        self, theta: Tensor, images: Tensor, labels: Tensor, want_last: bool
    ) -> SampleGrads:
        return _sample_grads.by_loop(self, theta, images, labels, want_last)

    # ---- groups and checks

    def _each(
        self, theta: Tensor, images: Tensor, call: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        if theta.ndim == 1:
            self._check(theta, images)
            return call(theta, images)
        return torch.stack([call(t, x) for t, x in self._members(theta, images)])

    def _members(self, theta: Tensor, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        if (
            theta.ndim != 2
            or images.ndim not in (4, 5)
            or (images.ndim == 5 and images.shape[0] != theta.shape[0])
        ):
            raise ShapeError(
                f"{self.name}: expected theta [P] or [G, P] and images [B, C, S, S] or [G, B, C, "
                "S, S], "
                f"got {list(theta.shape)} and {list(images.shape)}; give both the same G"
            )
        each = list(images) if images.ndim == 5 else [images] * theta.shape[0]
        self._check(theta[0], each[0])
        return list(zip(theta, each, strict=True))

    def _check(self, theta: Tensor, images: Tensor) -> None:
        want = (self.channels, self.size, self.size)
        if (
            images.ndim != 4
            or tuple(images.shape[1:]) != want
            or tuple(theta.shape) != (self.num_params,)
        ):
            raise ShapeError(
                f"{self.name}: expected theta [{self.num_params}] and images [B, "
                f"{', '.join(map(str, want))}], got "
                f"{list(theta.shape)} and {list(images.shape)}; build the student for this size "
                "and these channels"
            )
        if theta.dtype != images.dtype or theta.device != images.device:
            raise ShapeError(
                f"{self.name}: expected images like theta ({theta.dtype} on {theta.device}), got "
                f"{images.dtype} on "
                f"{images.device}; convert with .to(theta)"
            )


def _check_end(where: str, to: str) -> None:
    if to not in ("logits", "features"):
        raise ConfigError(
            f"{where}: expected to='logits' or 'features', got '{to}'; pass one of the two"
        )
