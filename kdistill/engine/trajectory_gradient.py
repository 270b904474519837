"""The exact gradient of a matched trajectory, with the memory of one step.

    theta_{i+1} = theta_i - alpha * g_i,   i = 0..N-1
    g_i = gradient of the loss at theta_i on x_i = A_i(images[b_i])
    L = |M (theta_N - target)|^2 / |M (start - target)|^2

    lambda_N = dL/dtheta_N,   lambda_i = lambda_{i+1} - alpha * H_i lambda_{i+1}
    dL/dx_i = -alpha * d<g_i, lambda_{i+1}>/dx_i,   dL/dz likewise
    dL/dalpha = -sum_i <g_i, lambda_{i+1}>

What unrolling with ``create_graph`` computes, by one ``grad_jvp`` per step backwards.
Symbols: N steps, P parameters, G trajectories, M the mask (and the number of images in shapes).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kdistill.augment import Augment
from kdistill.engine.inner_problem import InnerProblem, Mask, draw
from kdistill.engine.layers import check_labels
from kdistill.engine.precision import asked_precision
from kdistill.engine.students import Student
from kdistill.errors import ConfigError, ShapeError, did_you_mean
from kdistill.ops import capture, step_with_dots, trajectory_loss

GRAD_MODES = ("adjoint", "unroll", "tesla")
# published learning rates are linear, and nothing in the published code keeps them positive
SMALLEST_LR = 1e-6
SUMMED = ("grad_images", "grad_labels", "grad_lr")  # over the trajectories of a group


class TrajectoryMatch(NamedTuple):
    """Value and gradients of a matched trajectory.

    Attributes:
        loss: L, float64, ``[]`` (``[G]``).
        grad_images: dL/dimages, like the images.
        grad_labels: dL/dz of the label logits, like the labels; None for hard labels.
        grad_lr: dL/dalpha, float64 ``[]``; 0 where ``lr`` lies below the smallest learning rate.
        final: theta_N, like ``start``.
        grad_norms: |g_i| of every step, float64 ``[N]`` (``[G, N]``): where a run that explodes
            began to do so.
    """

    loss: Tensor
    grad_images: Tensor
    grad_labels: Tensor | None
    grad_lr: Tensor
    final: Tensor
    grad_norms: Tensor


def trajectory_match(
    student: Student,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor | float,
    *,
    batches: Sequence[Tensor],
    augment: Callable[[Tensor, int], Tensor] | None = None,
    first_step: int = 0,
    mask: Mask | None = None,
    grad_mode: str = "adjoint",
    checkpoint_every: int = 1,
    cuda_graph: bool = False,
) -> TrajectoryMatch:
    """Train from ``start`` on ``images``, compare with ``target``, and differentiate all of it.

    Args:
        student: The network.
        start: The expert's parameters to begin with, ``[P]``; or ``[G, P]`` for several
            trajectories on the same images.
        target: The expert's parameters to arrive at, like ``start``.
        images: The synthetic images, normalised, ``[M, C, S, S]``.
        labels: int64 ``[M]`` (hard), or float LOGITS ``[M, K]`` of soft labels, which get a
            gradient.
        lr: alpha, the student's learning rate; taken as 1e-6 where it is smaller.
        batches: int64 indices into the images, one tensor per step.
        augment: ``(images, step) -> images``, deterministic in step and differentiable.  A
            ``kdistill.augment.Augment`` is transposed by its kernel, anything else by autograd.
        first_step: Step i of this trajectory is augmented as step ``first_step + i``.
        mask: 0 or 1, ``[P]``, or ``(final, target) -> [P]``; a constant in the derivative (PAD).
        grad_mode: ``"adjoint"`` is exact; ``"unroll"`` is the same by plain autograd through all
            steps, the oracle; ``"tesla"`` keeps lambda at its last value, the published
            approximation, with the factor 2 that its code loses.
        checkpoint_every: Number of steps between parameter vectors that are kept; the others are
            recomputed.  sqrt(N) is the least memory.
        cuda_graph: On a GPU, record the kernels of the first call and replay them in later ones of
            the same shapes and options (docs/guide/gpu.md).  There is no effect on the CPU, for
            ``"unroll"``, and for an ``augment`` of another kind than ``Augment``.

    Returns:
        The loss and its gradients; for a group the gradients are summed over it.

    Raises:
        ConfigError: Unknown ``grad_mode``, no batches, or ``checkpoint_every`` < 1.
        ShapeError: Shapes, dtypes or devices do not fit.
        DataError: ``start`` equals ``target`` where the mask is 1.

    Cost: 3 + 8 products per convolution and step (``"tesla"`` 3 + 6), a fifth more for
        recomputation with checkpoints; memory of ``N*P/checkpoint_every`` numbers and one step.
        ``"unroll"`` keeps the graphs of all steps.

    References: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR
        2022; Cui et al., Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory
        (TESLA), ICML 2023; the adjoint of gradient descent: Maclaurin et al., Gradient-based
        Hyperparameter Optimization through Reversible Learning, ICML 2015.
    """
    _check(student, start, target, images, labels, batches, grad_mode, checkpoint_every)
    alpha = torch.as_tensor(lr, dtype=start.dtype, device=start.device).detach()
    # reading a number on a GPU would wait for it; there the caller's guard finds the consequences
    if alpha.device.type == "cpu" and not math.isfinite(lr):
        raise ConfigError(
            f"trajectory_match: expected a finite lr, got {float(lr)}; 0.01 is a usual learning "
            "rate"
        )
    draws, sizes = draw(augment, batches, first_step, images)
    call = {"adjoint": _adjoint, "tesla": partial(_adjoint, frozen=True), "unroll": _unroll}[
        grad_mode
    ]

    def run(
        start: Tensor, target: Tensor, images: Tensor, labels: Tensor, alpha: Tensor, *rest: Any
    ) -> TrajectoryMatch:
        *draws, fixed_mask = rest
        inner = InnerProblem.of(
            draws,
            sizes,
            student=student,
            images=images,
            labels=labels,
            lr=alpha.clamp(min=SMALLEST_LR),
            augment=augment,
            first_step=first_step,
            mask=mask if callable(mask) else fixed_mask,
        )
        if start.ndim == 1:
            match = call(inner, start, target, checkpoint_every)
        else:
            pairs = zip(start, target, strict=True)
            match = _summed([call(inner, *pair, checkpoint_every) for pair in pairs])
        slope = torch.where(alpha >= SMALLEST_LR, match.grad_lr, torch.zeros_like(match.grad_lr))
        return match._replace(grad_lr=slope)

    fixed_mask = mask.to(start) if isinstance(mask, Tensor) else None
    inputs = (start, target, images, labels, alpha, *draws, fixed_mask)
    is_pure = grad_mode != "unroll" and (augment is None or isinstance(augment, Augment))
    if not cuda_graph or not is_pure:
        return run(*inputs)
    mask_function = mask if callable(mask) else None
    key = (grad_mode, asked_precision(), checkpoint_every, sizes, augment, mask_function)
    return TrajectoryMatch(*capture(student, key, run, inputs))


class _Path:
    """The parameters of every step, stored or recomputed one segment at a time."""

    def __init__(self, inner: InnerProblem, start: Tensor, every: int):
        self.inner, self.every = inner, every
        steps = len(inner.batches)
        self.stored = _aligned_rows(start, -(-steps // every))
        self.segment, self.first = self.stored[:0], -1
        theta, squares = start, []
        for i in range(steps):
            if i % every == 0:
                theta = self.stored[i // every].copy_(theta)
            following = self.stored[(i + 1) // every] if every == 1 and i + 1 < steps else None
            theta, square = self._advance(theta, i, following)
            squares.append(square)
        self.final, self.grad_norms = theta.clone(), torch.stack(squares).sqrt()

    def __getitem__(self, i: int) -> Tensor:
        """Return theta_i."""
        first = i - i % self.every
        if i == first:
            return self.stored[i // self.every]
        if first != self.first:
            last = min(first + self.every, len(self.inner.batches))
            self.segment, self.first = _aligned_rows(self.final, last - first), first
            self.segment[0] = self.stored[first // self.every]
            for j in range(first, last - 1):
                self._advance(self.segment[j - first], j, self.segment[j - first + 1])
        return self.segment[i - first]

    def _advance(self, theta: Tensor, i: int, out: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return theta_{i+1} and |g_i|^2."""
        x, y, _ = self.inner.batch(i)
        _, grad = self.inner.student.loss_and_grad(theta, x, y)
        after, dots = step_with_dots(theta, grad, self.inner.lr, out=out)
        return after, dots[1]


def _aligned_rows(like: Tensor, rows: int) -> Tensor:
    """Return uninitialised ``[rows, P]``, every row on a cache line.

    A library's product may round by the place of its inputs.
    """
    line = 64 // like.element_size()
    return like.new_empty((rows, -(-len(like) // line) * line))[:, : len(like)]


@torch.no_grad()
def _adjoint(
    inner: InnerProblem, start: Tensor, target: Tensor, every: int, *, frozen: bool = False
) -> TrajectoryMatch:
    """Differentiate backwards through the steps; ``frozen`` keeps lambda as it is (TESLA)."""
    path, is_soft = _Path(inner, start, every), inner.labels.is_floating_point()
    grad_images = torch.zeros_like(inner.images)
    grad_labels = torch.zeros_like(inner.labels) if is_soft else None
    grad_lr = inner.images.new_zeros((), dtype=torch.float64)
    loss, lam = trajectory_loss(path.final, target, start, inner.mask_of(path.final, target))
    for i in reversed(range(len(inner.batches))):
        x, y, vjp = inner.batch(i)
        want = ("images",) if frozen or i == 0 else ("hvp", "images")
        step = inner.student.grad_jvp(path[i], x, y, lam, want=want)
        grad_lr -= step.loss_tangent.double()
        grad_images.index_add_(0, inner.batches[i], vjp(step.images_tangent) * -inner.lr)
        if is_soft:
            grad_labels.index_add_(0, inner.batches[i], step.labels_tangent * -inner.lr)
        if step.hvp is not None:
            lam, _ = step_with_dots(lam, step.hvp, inner.lr, out=lam)
    return TrajectoryMatch(loss, grad_images, grad_labels, grad_lr, path.final, path.grad_norms)


def _unroll(inner: InnerProblem, start: Tensor, target: Tensor, every: int) -> TrajectoryMatch:
    """Differentiate by plain autograd through all steps; the oracle of ``_adjoint``."""
    is_soft = inner.labels.is_floating_point()
    images = inner.images.detach().requires_grad_()
    labels = inner.labels.detach().requires_grad_(is_soft)
    lr = inner.lr.detach().requires_grad_()
    theta, norms = start.detach().requires_grad_(), []
    with torch.enable_grad():
        for i, rows in enumerate(inner.batches):
            x, y = inner.augmented(images[rows], i), labels[rows]
            y = functional.softmax(y, 1) if is_soft else y
            loss = functional.cross_entropy(inner.student.apply(theta, x), y)
            (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
            norms.append(grad.detach().double().norm())
            theta = theta - lr * grad
        final = theta.detach()
        mask = inner.mask_of(final, target)
        ahead, whole = theta - target, start.detach() - target
        if mask is not None:
            ahead, whole = mask * ahead, mask * whole
        trajectory_loss(final, target, start.detach(), mask)  # refuses equal ends
        total = ahead.double().square().sum() / whole.double().square().sum()
        leaves = [images, lr, *([labels] if is_soft else [])]
        grads = torch.autograd.grad(total, leaves, materialize_grads=True)
    grad_labels = grads[2] if is_soft else None
    return TrajectoryMatch(
        total.detach(), grads[0], grad_labels, grads[1].double(), final, torch.stack(norms)
    )


def _summed(members: list[TrajectoryMatch]) -> TrajectoryMatch:
    """Return several trajectories as one: gradients are summed, all else is stacked."""
    columns = zip(*members, strict=True)
    match = TrajectoryMatch(*(c[0] if c[0] is None else torch.stack(c) for c in columns))
    gradients = match._asdict().items()
    return match._replace(**{k: x.sum(0) for k, x in gradients if k in SUMMED and x is not None})


def _check(
    student: Student,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    grad_mode: str,
    every: int,
) -> None:
    if grad_mode not in GRAD_MODES:
        raise ConfigError(
            f"trajectory_match: expected a known grad_mode, got '{grad_mode}'; "
            f"{did_you_mean(grad_mode, list(GRAD_MODES))}"
        )
    if not batches or every < 1:
        raise ConfigError(
            "trajectory_match: expected at least one batch and checkpoint_every >= 1, got "
            f"{len(batches)} and {every}; raise it (sqrt(N) = {math.isqrt(max(len(batches), 1))} "
            "needs the least memory)"
        )
    if (
        start.ndim not in (1, 2)
        or start.shape != target.shape
        or start.dtype != target.dtype
        or start.dtype != images.dtype
    ):
        raise ShapeError(
            "trajectory_match: expected start and target [P] or [G, P] and images of one dtype, "
            f"got {start.dtype} {list(start.shape)}, {target.dtype} {list(target.shape)} and "
            f"images {images.dtype}; take both from one expert"
        )
    check_labels("trajectory_match", labels, tuple(images.shape[:1]), student.classes)
    if labels.is_floating_point() and labels.dtype != images.dtype:
        raise ShapeError(
            f"trajectory_match: expected label logits of the images' dtype ({images.dtype}), got "
            f"{labels.dtype}; convert them"
        )
    for i, rows in enumerate(batches):
        if (
            rows.device.type == "cpu"
            and rows.numel()
            and not 0 <= int(rows.min()) <= int(rows.max()) < len(images)
        ):
            raise ShapeError(
                f"trajectory_match: expected indices of {len(images)} images in batch {i}, got "
                f"{int(rows.min())} to {int(rows.max())}; split a permutation of the images"
            )
        if rows.ndim != 1 or rows.dtype != torch.int64 or not len(rows):
            raise ShapeError(
                f"trajectory_match: expected int64 indices [B] with B >= 1 in batch {i}, got "
                f"{rows.dtype} {list(rows.shape)}; split a permutation of the images"
            )
