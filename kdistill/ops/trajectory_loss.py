"""The normalised distance between a student's final parameters and the expert's, with its gradient: the objective of MTT.

Symbols: P parameters, G trajectories, M the mask, D the denominator.  Derivation and traffic:
    docs/ops/trajectory_loss.md.
"""

from typing import cast

from torch import Tensor

from kdistill.errors import DataError, ShapeError
from kdistill.ops._registry import check_same_dtype_and_device, plain

GRAD_ORDER = 0

_run = plain("trajectory_loss")


def trajectory_loss(
    final: Tensor, target: Tensor, start: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return ``|M(final - target)|^2 / D`` with ``D = |M(start - target)|^2``, and its gradient in ``final``.

    Args:
        final: The student's parameters after the last inner step, ``[P]`` or ``[G, P]``, float32 or
            float64.
        target: The expert's later snapshot, like ``final``.
        start: The expert's snapshot from which the student began, like ``final``.
        mask: 0 or 1, ``[P]`` (for every row) or ``[G, P]``, dtype and device of ``final``; a
            constant.  None keeps everything.

    Returns:
        The loss in float64, ``[]`` or ``[G]``, and ``2 * M(final - target) / D``, a new tensor like
        ``final``.  Differences are taken in the dtype of the inputs, sums in float64 and in an
        order that depends on P alone.  Not differentiable: the gradient is where the adjoint of the
        trajectory starts.

    Raises:
        DataError: D is 0 (CPU tensors).  On a GPU the check would stop the stream; there the loss
            is inf or NaN, which the caller's guard for non-finite losses finds.
        ShapeError: A shape, dtype or device does not fit.
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: 9 flops per element; reads three arrays (four with a mask ``[G, P]``), writes one and
        scales it in place.

    References: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR
        2022, the normalised parameter
    distance; the mask: Li et al., Prioritize Alignment in Dataset Distillation (PAD), 2024.
    """
    if (
        final.ndim not in (1, 2)
        or not final.shape == target.shape == start.shape
        or not final.is_floating_point()
    ):
        raise ShapeError(
            "trajectory_loss: expected final, target and start [P] or [G, P] of a floating dtype, "
            f"got {final.dtype} "
            f"{list(final.shape)}, {list(target.shape)} and {list(start.shape)}; flatten "
            "parameters into one vector per row"
        )
    if mask is not None and mask.shape not in (final.shape, final.shape[-1:]):
        raise ShapeError(
            f"trajectory_loss: expected mask {list(final.shape[-1:])} or {list(final.shape)}, got "
            f"{list(mask.shape)}; "
            "pass one number, 0 or 1, per parameter"
        )
    masks = {} if mask is None else {"mask": mask}
    check_same_dtype_and_device("trajectory_loss", final=final, target=target, start=start, **masks)
    found = _run(
        final.contiguous(),
        target.contiguous(),
        start.contiguous(),
        None if mask is None else mask.contiguous(),
    )
    loss, grad, denominator = cast("tuple[Tensor, Tensor, Tensor]", found)
    if denominator.device.type == "cpu":
        _check_denominator(denominator)
    return loss, grad


def _check_denominator(denominator: Tensor) -> None:
    values = [denominator.item()] if denominator.ndim == 0 else denominator.tolist()
    if 0.0 in values:
        row = f" in row {values.index(0.0)}" if denominator.ndim else ""
        raise DataError(
            "trajectory_loss: expected start and target to differ where the mask is 1, got equal "
            f"parameters{row}; the expert "
            "snapshots alias each other (store clones), are the same epoch, or the mask is empty"
        )
