"""One differentiable augmentation per image: color, crop, cutout, flip, scale or rotate.

Symbols: B images, C channels, H x W pixels, S parameter sets, V calls of ``torch.func.vmap``.
Definitions, the table of parameters and the transposes: docs/ops/diff_augment.md.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from kdistill.backends.reference.diff_augment import (
    AFFINE,
    COLOR,
    CROP,
    CUTOUT,
    FLIP,
    IDENTITY,
    ROW,
)
from kdistill.errors import ShapeError
from kdistill.ops._layout import (
    Signature,
    array,
    records_graph,
    require,
    require_constant,
    sizes_of,
)
from kdistill.ops._registry import register

__all__ = [
    "AFFINE",
    "COLOR",
    "CROP",
    "CUTOUT",
    "FLIP",
    "GRAD_ORDER",
    "IDENTITY",
    "ROW",
    "diff_augment",
    "diff_augment_transpose",
]

GRAD_ORDER = 2


def _declare_fwd(
    images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool
) -> Signature:
    leading = "flatten leading dimensions with x.flatten(0, -4)"
    b, c, h, w = sizes_of(images, "images [B, C, H, W]", leading)
    row = "one row per parameter set, a family code in column 0"
    s, _ = sizes_of(params, f"params [S, {ROW}]", row)
    no_change = "pass [IDENTITY, 0, ...] for no change"
    require(s > 0 or b == 0, "at least one row of params", "none", no_change)
    image = array(b, c, h, w)
    rows = array(s, ROW, dtype=torch.float64, hint=row)
    which = array(b, dtype=torch.int64, hint="pass one row of params per image")
    return Signature((image, rows, which), (image,))


def _declare_bwd(grad: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Signature:
    return _declare_fwd(grad, params, index, align_corners, True)


_fwd = register("diff_augment", _declare_fwd)
_bwd = register("diff_augment_bwd", _declare_bwd)


class _DiffAugment(torch.autograd.Function):
    """The affine function, or the transpose of its linear part: each is the other's derivative."""

    @staticmethod
    def forward(
        images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool, back: bool
    ) -> Tensor:
        return _without_graph(images, params, index, align_corners, linear, back)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, params, index, ctx.align_corners, _, ctx.back = inputs
        ctx.save_for_backward(params, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = (*ctx.saved_tensors, ctx.align_corners)
        return _augment(grad.contiguous(), *saved, True, not ctx.back), None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        v = info.batch_size
        images, params, index = _one_batch(v, in_dims, *args[:3])
        together = _DiffAugment.apply(images, params, index, *args[3:])
        return together.unflatten(0, (v, -1)), 0


def _without_graph(
    images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool, back: bool
) -> Tensor:
    if back:
        return cast("Tensor", _bwd(images, params, index, align_corners))
    return cast("Tensor", _fwd(images, params, index, align_corners, linear))


def _augment(images: Tensor, *others: Any) -> Tensor:
    function = _DiffAugment.apply if _is_recorded(images) else _without_graph
    return cast("Tensor", function(images, *others))


def _is_recorded(images: Tensor) -> bool:
    # Function.apply inspects signatures for 0.1 ms, which a call without a graph need not pay
    return records_graph(images) or _is_inside_a_transform()


def _is_inside_a_transform() -> bool:
    # torch.compile traces, or torch.func maps: values cannot be read
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _one_batch(
    v: int, in_dims: Sequence[int | None], images: Tensor, params: Tensor, index: Tensor
) -> tuple[Tensor, ...]:
    # V calls become one of V*B images: sets of different calls stand one after the other in one
    # table
    def leading(x: Tensor, dim: int | None) -> Tensor:
        return x.expand(v, *x.shape) if dim is None else x.movedim(dim, 0)

    images, index = leading(images, in_dims[0]), leading(index, in_dims[2])
    if in_dims[1] is not None:
        params = params.movedim(in_dims[1], 0)
        index = index + params.shape[1] * torch.arange(v, device=index.device)[:, None]
    tensors = (images.flatten(0, 1), params.reshape(-1, ROW), index.flatten())
    return tuple(x.contiguous() for x in tensors)


def diff_augment(images: Tensor, params: Tensor, index: Tensor, *, align_corners: bool) -> Tensor:
    """Apply to image ``b`` the augmentation in row ``index[b]`` of ``params``.

    Siamese augmentation is one row, siamese per class has ``index = label``, per-image parameters
    have one row per image. ``kdistill.augment.Augment`` draws the rows from a key.

    Args:
        images: ``[B, C, H, W]``, float32 or float64, in any space (the field: normalised), any
            memory format.
        params: ``[S, 8]``, float64 in either dtype of the images, on their device; a constant.  A
            row is one family: ``[IDENTITY]``, ``[COLOR, brightness, saturation, contrast]``,
            ``[CROP, shift_h, shift_w]``, ``[CUTOUT, centre_h, centre_w, side_h, side_w]``, ``[FLIP,
            0 or 1]``, ``[AFFINE, t00, t01, t10, t11]``, each followed by anything up to column 7.
            Shifts, centres and sides are in pixels, whole numbers.
        index: int64 ``[B]``, values in ``0..S-1``.
        align_corners: As in ``torch.nn.functional.affine_grid`` and ``grid_sample``.  For these
            transformations, which keep the centre of the image, it changes nothing on square
            images.

    Returns:
        A new contiguous tensor like ``images``; differentiable twice in ``images``, in which it is
        affine.

    Raises:
        ShapeError: A shape, dtype or device does not fit, an index lies outside ``0..S-1`` or a
            family code outside 0..5 (on a GPU such an index is clamped and such a family is the
            identity instead: checking would stop the stream).
        NotDifferentiableError: ``params`` requires grad.

    Cost: reads and writes ``B*C*H*W`` elements in either direction; up to 6 flops per element, 12
        for the affine families.

    References: Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML
        2021.
    """
    _check_values(params, index, "diff_augment")
    tensors = (images.contiguous(), params.contiguous(), index.contiguous())
    return _augment(*tensors, bool(align_corners), False, False)


def diff_augment_transpose(
    grad: Tensor, params: Tensor, index: Tensor, *, align_corners: bool
) -> Tensor:
    """Return the vector-Jacobian product of ``diff_augment``, without running the forward.

    Args:
        grad: dL/doutput, ``[B, C, H, W]``; the other arguments as for ``diff_augment``.
        params: ``[S, 8]`` float64.
        index: int64 ``[B]``.
        align_corners: As in the forward.

    Returns:
        dL/dimages, a new contiguous tensor like ``grad``; differentiable twice in ``grad``, in
        which it is linear.

    Raises:
        ShapeError: As ``diff_augment``.
        NotDifferentiableError: As ``diff_augment``.
    """
    _check_values(params, index, "diff_augment_transpose")
    tensors = (grad.contiguous(), params.contiguous(), index.contiguous())
    return _augment(*tensors, bool(align_corners), True, True)


def _check_values(params: Tensor, index: Tensor, where: str) -> None:
    require_constant(where, params=params)
    if not index.is_cpu or not params.is_cpu or _is_inside_a_transform():
        return
    if not index.numel() or index.dtype != torch.int64 or params.ndim != 2 or not params.numel():
        return  # the declared layouts say what to pass
    # through NumPy: on a few values its calls cost a tenth of PyTorch's
    rows, codes = index.numpy(), params.numpy()[:, 0]
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= len(codes):
        raise ShapeError(
            f"{where}: expected index in 0..{len(codes) - 1}, got {low}..{high}; pass a row of "
            "params for each"
        )
    if not ((codes >= IDENTITY) & (codes <= AFFINE) & (codes == np.floor(codes))).all():
        raise ShapeError(
            f"{where}: expected family codes {IDENTITY}..{AFFINE} in column 0 of params, got "
            f"{sorted(set(codes.tolist()))}; use the constants of kdistill.ops.diff_augment"
        )
