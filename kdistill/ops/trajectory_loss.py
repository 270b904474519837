"""The normalised distance of a student's final parameters to the expert's: the objective of MTT.

Symbols: P parameters, G trajectories, M the mask, D the denominator.  Derivation and traffic:
    docs/ops/trajectory_loss.md.
"""

from typing import cast

from torch import Tensor

from kdistill.errors import DataError
from kdistill.ops._layout import Signature, array, contiguous, mask_of, require
from kdistill.ops._registry import plain

GRAD_ORDER = 0


def _declare(final: Tensor, target: Tensor, start: Tensor, mask: Tensor | None) -> Signature:
    flatten = "flatten parameters into one vector per row"
    vectors = "final, target and start [P] or [G, P]"
    require(final.ndim in (1, 2), vectors, list(final.shape), flatten)
    return Signature((*[array(*final.shape, hint=flatten)] * 3, mask_of(final, mask)))


_run = plain("trajectory_loss", _declare)


def trajectory_loss(
    final: Tensor, target: Tensor, start: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return ``|M(final - target)|^2 / |M(start - target)|^2`` and its gradient in ``final``.

    Args:
        final: The student's parameters after the last inner step, ``[P]`` or ``[G, P]``, float32 or
            float64.
        target: The expert's later snapshot, like ``final``.
        start: The expert's snapshot from which the student began, like ``final``.
        mask: 0 or 1, ``[P]`` (for every row) or ``[G, P]``, dtype and device of ``final``; a
            constant.  None leaves nothing out.

    Returns:
        The loss in float64, ``[]`` or ``[G]``, and ``2 * M(final - target) / D``, a new tensor like
        ``final``.  Differences are taken in the dtype of the inputs, sums in float64 and in an
        order that depends on P alone.  Not differentiable: the gradient is where the adjoint of the
        trajectory starts.

    Raises:
        DataError: The denominator D is 0 (CPU tensors).  On a GPU the check would stop the stream;
            there the loss is inf or NaN, which the caller's guard for non-finite losses detects.
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: 9 flops per element; reads three arrays (four with a mask ``[G, P]``), writes one and
        scales it in place.

    References: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR
        2022, the normalised parameter distance; the mask: Li et al., Prioritize Alignment in
        Dataset Distillation (PAD), 2024.
    """
    results = _run(*contiguous(final, target, start, mask))
    loss, grad, denominator = cast("tuple[Tensor, Tensor, Tensor]", results)
    if denominator.device.type == "cpu":
        _check_denominator(denominator)
    return loss, grad


def _check_denominator(denominator: Tensor) -> None:
    values = [denominator.item()] if denominator.ndim == 0 else denominator.tolist()
    if 0.0 in values:
        row = f" in row {values.index(0.0)}" if denominator.ndim else ""
        raise DataError(
            "trajectory_loss: expected start and target to differ where the mask is 1, got equal "
            f"parameters{row}; the expert snapshots alias each other (store clones), are the same "
            "epoch, or the mask is empty"
        )
