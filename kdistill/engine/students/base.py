"""The interface of every student: a network as a function of one flat parameter vector.

Symbols: P parameters, B images, C channels, S their side, N classes, F features, G members of a
    group (one network each).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students.autograd_passes import AutogradPasses
from kdistill.engine.students.results import GradJvp, SampleGrads, Trace
from kdistill.errors import ConfigError, ShapeError

GRADS = ("theta", "images")
JVPS = ("grad", "hvp", "images")
SAMPLE_GRADS = ("all", "last")


@dataclass(frozen=True)
class Slot:
    """One parameter tensor inside theta.

    Attributes:
        name: Dotted name, e.g. ``"blocks.0.conv.weight"``.
        shape: Shape of the tensor.
        fan_in: The tensor is drawn from U(±1/sqrt(fan_in)), PyTorch's default of convolutions and
            linear layers; None for a constant.
        value: The constant.
    """

    name: str
    shape: tuple[int, ...]
    fan_in: int | None = None
    value: float = 0.0

    @cached_property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return initial values, flat, float32."""
        if self.fan_in is None:
            return torch.full((self.numel,), self.value, device=generator.device)
        bound = 1.0 / math.sqrt(self.fan_in)
        if len(self.shape) > 1:  # the same number, rounded as torch.nn.init rounds it
            bound = math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(self.fan_in))
        out = torch.empty(self.numel, device=generator.device)
        return out.uniform_(-bound, bound, generator=generator)


def unflatten(theta: Tensor, slots: Sequence[Slot]) -> list[Tensor]:
    """Return ``theta [P]`` as views of the shapes of ``slots``."""
    parts = theta.split([slot.numel for slot in slots])
    return [part.view(slot.shape) for part, slot in zip(parts, slots, strict=True)]


@dataclass
class _Group:
    """What a group keeps for ``backward``; ``is_shared`` where all members took one batch."""

    members: list[Any]
    is_shared: bool


class Student(AutogradPasses):
    """A network as a function of one flat parameter vector ``theta [P]``.

    Every call also takes a group: ``theta [G, P]`` with ``images [G, B, C, S, S]``, or with one
    shared ``[B, C, S, S]``; results then begin with G.  Images are normalised, float32 or float64
    like theta.

    Attributes:
        name: E.g. ``"convnet"``.
        channels: Channels of the images, C.
        size: Side of the images, S.
        classes: Number of classes, N.
        slots: The parameter tensors in the order in which theta holds them, shallow to deep.
        num_params: Number of parameters, P.
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

    def __repr__(self) -> str:
        shape = f"{self.channels}x{self.size}x{self.size}"
        return f"Student({self.name}, {shape} -> {self.classes}, {self.num_params} parameters)"

    def init(self, generator: torch.Generator) -> Tensor:
        """Return fresh float32 parameters ``[P]`` on the generator's device and drawn from it."""
        return torch.cat([slot.draw(generator) for slot in self.slots])

    def unflatten(self, theta: Tensor) -> list[Tensor]:
        """Return ``theta [P]`` as views of the shapes of ``slots``."""
        return unflatten(theta, self.slots)

    # ---- differentiable calls

    def apply(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return logits ``[B, N]`` (``[G, B, N]``); differentiable twice in theta and images."""
        return self._each(self._logits, theta, images)

    @overload
    def features(self, theta: Tensor, images: Tensor) -> Tensor: ...

    @overload
    def features(self, theta: Tensor, images: Tensor, layers: str) -> Tensor | list[Tensor]: ...

    def features(
        self, theta: Tensor, images: Tensor, layers: str = "last"
    ) -> Tensor | list[Tensor]:
        """Return features before the classifier; differentiable twice in theta and images.

        Args:
            theta: ``[P]`` or ``[G, P]``.
            images: ``[B, C, S, S]`` or ``[G, B, C, S, S]``.
            layers: ``"last"``: the vector that the classifier reads, ``[B, F]``.  ``"all"``: the
                post-activation feature maps of every block before its pooling, shallow to deep.
        """
        if layers == "last":
            return self._each(self._features, theta, images)
        if layers != "all":
            raise ConfigError(
                f"features: expected layers 'last' or 'all', got '{layers}'; pass one of the two"
            )
        return list(self._each(lambda t, x: tuple(self._trace(t, x).maps), theta, images))

    def trace(self, theta: Tensor, images: Tensor) -> Trace:
        """Return feature maps, features and logits of one pass with ``theta [P]``.

        Later ones are differentiable in earlier ones.
        """
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
        members = self._members(theta, images)
        outs, saved = zip(*(self._forward(*member, to) for member in members), strict=True)
        if theta.ndim == 1:
            return outs[0], saved[0]
        return torch.stack(outs), _Group(list(saved), images.ndim == 4)

    @torch.no_grad()
    def backward(
        self, saved: Any, grad_out: Tensor, *, want: Sequence[str] = GRADS
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return those of (dL/dtheta, dL/dimages) that ``want`` names, None for the other.

        Shapes are those of ``theta`` and ``images`` in ``forward``; images shared by a group get
        the sum over the group.
        """
        _check_want("backward", want, GRADS)
        flags = "theta" in want, "images" in want
        if not isinstance(saved, _Group):
            return self._backward(saved, grad_out, *flags)
        pairs = zip(saved.members, grad_out, strict=True)
        grad_theta, grad_images = _stacked([self._backward(*pair, *flags) for pair in pairs])
        return grad_theta, _summed(grad_images) if saved.is_shared else grad_images

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

        def call(t: Tensor, x: Tensor) -> Tensor:
            if batch_size is None:
                return self._infer(t, x, to)
            return torch.cat([self._infer(t, part, to) for part in x.split(batch_size)])

        return self._each(call, theta, images)

    @torch.no_grad()
    def loss_and_grad(self, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy ``[]`` and its gradient ``[P]``, or ``[G]`` and ``[G, P]``.

        Args:
            theta: ``[P]`` or ``[G, P]``.
            images: ``[B, C, S, S]``, or ``[G, B, C, S, S]``.
            labels: int64 ``[B]``, or float logits of soft labels ``[B, N]``; with a G in front if
                the images have one.
        """
        self._check_labels("loss_and_grad", images, labels)
        return self._each(self._loss_and_grad, theta, images, labels)

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
        """Return loss, gradient and derivatives in the direction ``v``, as ``engine.grad_jvp``."""
        self._check_labels("grad_jvp", images, labels)
        _check_want("grad_jvp", want, JVPS)
        if v.shape != theta.shape or v.dtype != theta.dtype or v.device != theta.device:
            raise ShapeError(
                f"grad_jvp: expected v like theta ({theta.dtype} {list(theta.shape)} on "
                f"{theta.device}), got {v.dtype} {list(v.shape)} on {v.device}; pass one direction "
                "per network"
            )
        if theta.ndim == 1:
            self._check(theta, images)
            return self._grad_jvp(theta, images, labels, v, want)
        members = zip(self._members(theta, images, labels), v, strict=True)
        group = GradJvp(*_stacked([self._grad_jvp(*member, d, want) for member, d in members]))
        if images.ndim == 5:
            return group
        return group._replace(
            images_tangent=_summed(group.images_tangent),
            labels_tangent=_summed(group.labels_tangent),
        )

    @torch.no_grad()
    def grad_then_images_tangent(
        self, theta: Tensor, images: Tensor, labels: Tensor, direction: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the derivative of dL/dimages in the direction ``direction(dL/dtheta)`` of theta.

        Args:
            theta: ``[P]``.
            images: ``[B, C, S, S]``.
            labels: As in ``loss_and_grad``.
            direction: ``g [P] -> v [P]``, called once; v is a constant of the derivative.

        Returns:
            Like ``images``; the same as ``grad_jvp(theta, images, labels, v).images_tangent``, from
            one pass forward and backward instead of two where the network can keep the results of
            the pass that gives g.
        """
        self._check_labels("grad_then_images_tangent", images, labels)
        self._check(theta, images)
        return self._grad_then_images_tangent(theta, images, labels, direction)

    @torch.no_grad()
    def sample_grads(
        self, theta: Tensor, images: Tensor, labels: Tensor, *, want: Sequence[str] = SAMPLE_GRADS
    ) -> SampleGrads:
        """Return the logits and the squared norm of every image's own gradient.

        ``want`` names the norms: over "all" parameters, over those of the "last" layer.

        Raises:
            ConfigError: ``want`` is unknown; or ``"all"`` under batch statistics, where no image
                has a gradient of its own.
        """
        self._check_labels("sample_grads", images, labels)
        self._check(theta, images)
        _check_want("sample_grads", want, SAMPLE_GRADS)
        if "all" not in want:
            return self._last_layer_grads(theta, images, labels, "last" in want)
        if self.is_joint:
            raise ConfigError(
                "sample_grads: expected a student whose images do not depend on each other, got "
                f"{self.name} with the statistics of the batch; use norm='instance', frozen "
                "statistics (with_statistics), or the last layer's gradient"
            )
        return self._sample_grads(theta, images, labels, "last" in want)

    # ---- groups and checks

    def _each(self, call: Callable[..., Any], theta: Tensor, *others: Tensor) -> Any:
        """Return the result of ``call`` for one network, or the stacked results of a group."""
        results = [call(*member) for member in self._members(theta, *others)]
        return results[0] if theta.ndim == 1 else _stacked(results)

    def _members(self, theta: Tensor, images: Tensor, *labels: Tensor) -> list[tuple[Tensor, ...]]:
        """Return (theta, images, labels) of every network, checked; those of a batch are shared."""
        if theta.ndim == 1:
            self._check(theta, images)
            return [(theta, images, *labels)]
        if (
            theta.ndim != 2
            or images.ndim not in (4, 5)
            or (images.ndim == 5 and images.shape[0] != theta.shape[0])
        ):
            raise ShapeError(
                f"{self.name}: expected theta [P] or [G, P] and images [B, C, S, S] or [G, B, C, "
                f"S, S], got {list(theta.shape)} and {list(images.shape)}; give both the same G"
            )
        others = [list(x) if images.ndim == 5 else [x] * theta.shape[0] for x in (images, *labels)]
        self._check(theta[0], others[0][0])
        return list(zip(theta, *others, strict=True))

    def _check_labels(self, where: str, images: Tensor, labels: Tensor) -> None:
        layers.check_labels(where, labels, tuple(images.shape[:-3]), self.classes)

    def _check(self, theta: Tensor, images: Tensor) -> None:
        shape = (self.channels, self.size, self.size)
        if (
            images.ndim != 4
            or tuple(images.shape[1:]) != shape
            or tuple(theta.shape) != (self.num_params,)
        ):
            raise ShapeError(
                f"{self.name}: expected theta [{self.num_params}] and images [B, "
                f"{', '.join(map(str, shape))}], got {list(theta.shape)} and {list(images.shape)}; "
                "build the student for this size and these channels"
            )
        if theta.dtype != images.dtype or theta.device != images.device:
            raise ShapeError(
                f"{self.name}: expected images like theta ({theta.dtype} on {theta.device}), got "
                f"{images.dtype} on {images.device}; convert with .to(theta)"
            )


def _stacked(members: Sequence[Any]) -> Any:
    """Return the results of a group's members, tensors or tuples of tensors and None, as one."""
    if members[0] is None:
        return None
    if isinstance(members[0], Tensor):
        return torch.stack(list(members))
    return tuple(_stacked(column) for column in zip(*members, strict=True))


def _summed(group: Tensor | None) -> Tensor | None:
    return None if group is None else group.sum(0)


def _check_end(where: str, to: str) -> None:
    if to not in ("logits", "features"):
        raise ConfigError(
            f"{where}: expected to='logits' or 'features', got '{to}'; pass one of the two"
        )


def _check_want(where: str, want: Sequence[str], known: tuple[str, ...]) -> None:
    if not set(want) <= set(known):
        raise ConfigError(
            f"{where}: expected want among {known}, got {tuple(want)}; leave the others out"
        )
