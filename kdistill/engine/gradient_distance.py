"""Gradient matching: the distance between gradients on synthetic and on real images.

It is differentiated in the synthetic images:

    D(g, r),   g = dl/dtheta on the synthetic images,   r = that on the real images, a constant
    dD/dimages = d<g, v>/dimages at the constant v = dD/dg

so one direction per network (or class) and one pass of tangents replace the graph of a gradient
(``create_graph``).
Symbols: P parameters, G classes (or networks), B images of each, C channels, S their side, N
    classes of the labels.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from kdistill.engine.students import Slot, Student
from kdistill.errors import ConfigError, ShapeError, did_you_mean
from kdistill.ops.row_cosine_distance import RowTable, row_cosine_distance

Distance = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]

DISTANCES = ("cosine_rows", "cosine", "mse")


@torch.no_grad()
def gradient_match(
    student: Student,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    real_grad: Tensor,
    *,
    distance: str = "cosine_rows",
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``D(g, real_grad)`` and its exact gradient in ``images``; g is the gradient on them.

    Args:
        student: The network; ``convnet`` runs without an autograd graph.
        theta: ``[P]``, or one network per member ``[G, P]``; float32 or float64.
        images: Normalised, ``[B, C, S, S]``, or ``[G, B, C, S, S]`` for a group: all classes in one
            call, with one ``theta [P]`` for all of them or one each.
        labels: int64 ``[B]`` (hard), or float LOGITS ``[B, N]`` of soft labels; with a G in front
            if the images have one.
        real_grad: What to match, ``[P]``, or ``[G, P]`` for a group (``class_gradients``); a
            constant.
        distance: ``"cosine_rows"``: the sum over output units of 1 - cos
            (``kdistill.ops.row_cosine_distance``), without biases and norms; ``"cosine"``: 1 - cos
            of the whole vectors; ``"mse"``: the squared Euclidean distance of the whole vectors.
        mask: 0 or 1, ``[P]`` or ``[G, P]``, like theta: which parameters are compared; None
            compares all.

    Returns:
        The distance in float64, ``[]`` or ``[G]``, and ``dD/dimages`` like ``images``.

    Raises:
        ShapeError: Shapes, dtypes or devices do not fit.
        ConfigError: ``distance`` is unknown.

    Cost: seven products per convolution, where a training step has three; memory of one member's
        images and their tangents, and three vectors of P numbers.

    References: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021, eq.
        9.
    """
    measure = _distance(distance, student)
    _check(student, theta, images, real_grad, mask)
    losses: list[Tensor] = []
    grouped = images.ndim == 5
    members = zip(images, labels, strict=True) if grouped else [(images, labels)]
    grads = []
    for g, (of_member, y) in enumerate(members):

        def direction(grad: Tensor, g: int = g) -> Tensor:
            loss, v = measure(grad, real_grad[g] if grouped else real_grad, _member(mask, g))
            losses.append(loss)
            return v

        grads.append(student.grad_then_images_tangent(_member(theta, g), of_member, y, direction))  # type: ignore[arg-type]
    return (torch.stack(losses), torch.stack(grads)) if grouped else (losses[0], grads[0])


@torch.no_grad()
def class_gradients(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Return the student's gradient on each of several runs of images, such as classes.

    Args:
        student: The network.
        theta: ``[P]``.
        images: Normalised, ``[B, C, S, S]``.
        labels: int64 ``[B]`` or float LOGITS ``[B, N]``.
        sizes: How many images belong to each run, in their order; at least 1 each, B in all.

    Returns:
        ``[len(sizes), P]``: row g is the gradient of the mean cross-entropy over the g-th run.

    Raises:
        ShapeError: Shapes do not fit, or a run is empty.

    Cost: one training step over B images; memory of one chunk of them beside the result.
    """
    if min(sizes, default=1) < 1 or sum(sizes) != len(images):
        raise ShapeError(
            f"class_gradients: expected sizes above 0 that sum to {len(images)} images, got "
            f"{list(sizes)}; leave out classes without images"
        )
    out = theta.new_empty((len(sizes), student.num_params))
    for row, part, y in zip(out, images.split(list(sizes)), labels.split(list(sizes)), strict=True):
        row.copy_(student.loss_and_grad(theta, part, y)[1])
    return out


@lru_cache(maxsize=16)
def output_rows(slots: tuple[Slot, ...]) -> RowTable:
    """Return the rows of a student's weights, one per output unit, from its ``slots``."""
    return RowTable.of_shapes([slot.shape for slot in slots])


def _distance(name: str, student: Student) -> Distance:
    if name == "mse":
        return _squared
    if name not in DISTANCES:
        raise ConfigError(
            f"gradient_match: expected a known distance, got '{name}'; "
            f"{did_you_mean(name, list(DISTANCES))}"
        )
    rows = (
        output_rows(student.slots)
        if name == "cosine_rows"
        else RowTable([(0, student.num_params)], student.num_params)
    )
    return lambda grad, real, mask: row_cosine_distance(grad, real, rows, mask)


def _squared(grad: Tensor, real: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    difference = grad - real if mask is None else mask * (grad - real)
    return difference.double().square().sum(), 2.0 * difference


def _member(x: Tensor | None, g: int) -> Tensor | None:
    return x if x is None or x.ndim == 1 else x[g]


def _check(
    student: Student, theta: Tensor, images: Tensor, real_grad: Tensor, mask: Tensor | None
) -> None:
    group = (len(images),) if images.ndim == 5 else ()
    whole = (*group, student.num_params)
    if (
        images.ndim not in (4, 5)
        or tuple(real_grad.shape) != whole
        or tuple(theta.shape) not in (whole, whole[-1:])
    ):
        raise ShapeError(
            "gradient_match: expected images [B, C, S, S] or [G, B, C, S, S] with theta "
            f"{[student.num_params]} or {list(whole)} and real_grad {list(whole)}, got "
            f"{list(images.shape)}, {list(theta.shape)} and {list(real_grad.shape)}; give every "
            "member of the group its own real gradient"
        )
    if mask is not None and tuple(mask.shape) not in (whole, whole[-1:]):
        raise ShapeError(
            f"gradient_match: expected mask {[student.num_params]} or {list(whole)}, got "
            f"{list(mask.shape)}; pass one number, 0 or 1, per parameter"
        )
