"""One differentiable augmentation per image: color, crop, cutout, flip, or an affine map (scale, rotate).

Symbols: B images, C channels, H x W pixels, S parameter sets, V batched calls of
    ``torch.func.vmap``.
Definitions, the table of parameters and the transposes: docs/ops/diff_augment.md.
"""

from typing import Any

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
from kdistill.errors import NotDifferentiableError, ShapeError
from kdistill.ops._layout import Layout, array, require, sizes_of
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


def _layouts_fwd(
    images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool
) -> tuple[Layout, ...]:
    b, c, h, w = sizes_of(images, "images [B, C, H, W]")
    s, _ = sizes_of(params, f"params [S, {ROW}]")
    require(s > 0 or b == 0, "at least one row of params", "none")
    return array(b, c, h, w), array(s, ROW, dtype=torch.float64), array(b, dtype=torch.int64)


def _layouts_bwd(
    grad: Tensor, params: Tensor, index: Tensor, align_corners: bool
) -> tuple[Layout, ...]:
    return _layouts_fwd(grad, params, index, align_corners, True)


_fwd = register(
    "diff_augment",
    "(Tensor images, Tensor params, Tensor index, bool align_corners, bool linear) -> Tensor",
    fake=lambda images, params, index, align_corners, linear: torch.empty_like(images),
    layouts=_layouts_fwd,
)
_bwd = register(
    "diff_augment_bwd",
    "(Tensor grad, Tensor params, Tensor index, bool align_corners) -> Tensor",
    fake=lambda grad, params, index, align_corners: torch.empty_like(grad),
    layouts=_layouts_bwd,
)


class _DiffAugment(torch.autograd.Function):
    """The affine map; with ``linear`` without its offset, which is its own derivative."""

    @staticmethod
    def forward(
        images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool
    ) -> Tensor:
        return _fwd(images, params, index, align_corners, linear)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, params, index, ctx.align_corners, _ = inputs
        ctx.save_for_backward(params, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        params, index = ctx.saved_tensors
        return (
            _transpose(grad.contiguous(), params, index, ctx.align_corners),
            None,
            None,
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        images, params, index = _one_batch(info.batch_size, in_dims, *args[:3])
        return _DiffAugment.apply(images, params, index, *args[3:]).unflatten(
            0, (info.batch_size, -1)
        ), 0


class _DiffAugmentTranspose(torch.autograd.Function):
    """The transpose of the linear part, whose own derivative is the linear part."""

    @staticmethod
    def forward(grad: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Tensor:
        return _bwd(grad, params, index, align_corners)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, params, index, ctx.align_corners = inputs
        ctx.save_for_backward(params, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        params, index = ctx.saved_tensors
        return _augment(grad.contiguous(), params, index, ctx.align_corners, True), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        grad, params, index = _one_batch(info.batch_size, in_dims, *args[:3])
        return _DiffAugmentTranspose.apply(grad, params, index, *args[3:]).unflatten(
            0, (info.batch_size, -1)
        ), 0


def _augment(
    images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool
) -> Tensor:
    if _is_recorded(images):
        return _DiffAugment.apply(images, params, index, align_corners, linear)  # type: ignore[no-any-return]
    return _fwd(images, params, index, align_corners, linear)  # type: ignore[no-any-return]


def _transpose(grad: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Tensor:
    if _is_recorded(grad):
        return _DiffAugmentTranspose.apply(grad, params, index, align_corners)  # type: ignore[no-any-return]
    return _bwd(grad, params, index, align_corners)  # type: ignore[no-any-return]


def _is_recorded(images: Tensor) -> bool:
    # Function.apply inspects signatures for 0.1 ms, which a call without a graph need not pay
    return (torch.is_grad_enabled() and images.requires_grad) or _is_inside_a_transform()


def _is_inside_a_transform() -> bool:
    # torch.compile traces, or torch.func maps: values cannot be read
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _one_batch(
    v: int, in_dims: tuple[int | None, ...], images: Tensor, params: Tensor, index: Tensor
) -> tuple[Tensor, ...]:
    # V calls become one of V*B images: sets of different calls stand one after the other in one
    # table
    def leading(x: Tensor, dim: int | None) -> Tensor:
        return x.expand(v, *x.shape) if dim is None else x.movedim(dim, 0)

    images, index = leading(images, in_dims[0]), leading(index, in_dims[2])
    if in_dims[1] is not None:
        params = params.movedim(in_dims[1], 0)
        index = index + params.shape[1] * torch.arange(v, device=index.device)[:, None]
    return (
        images.flatten(0, 1).contiguous(),
        params.reshape(-1, ROW).contiguous(),
        index.flatten().contiguous(),
    )


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
            maps, which keep the centre of the image, it changes nothing on square images.

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
    _check(images, params, index, "diff_augment")
    return _augment(
        images.contiguous(), params.contiguous(), index.contiguous(), bool(align_corners), False
    )


def diff_augment_transpose(
    grad: Tensor, params: Tensor, index: Tensor, *, align_corners: bool
) -> Tensor:
    """Pull a gradient in the output of ``diff_augment`` back to its input, without running the forward.

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
    _check(grad, params, index, "diff_augment_transpose")
    return _transpose(
        grad.contiguous(), params.contiguous(), index.contiguous(), bool(align_corners)
    )


def _check(images: Tensor, params: Tensor, index: Tensor, where: str) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ShapeError(
            f"{where}: expected images [B, C, H, W] of a floating dtype, got {images.dtype} "
            f"{list(images.shape)}; "
            "flatten leading dimensions with x.flatten(0, -4)"
        )
    if (
        params.ndim != 2
        or params.shape[1] != ROW
        or params.dtype != torch.float64
        or params.device != images.device
    ):
        raise ShapeError(
            f"{where}: expected params float64 [S, {ROW}] on {images.device}, got {params.dtype} "
            f"{list(params.shape)} on "
            f"{params.device}; one row per parameter set, a family code in column 0"
        )
    if (
        index.shape != images.shape[:1]
        or index.dtype != torch.int64
        or index.device != images.device
    ):
        raise ShapeError(
            f"{where}: expected index int64 [{images.shape[0]}] on {images.device}, got "
            f"{index.dtype} {list(index.shape)} on "
            f"{index.device}; pass one row of params per image"
        )
    if params.shape[0] == 0 and images.shape[0] > 0:
        raise ShapeError(
            f"{where}: expected at least one row of params, got none; pass [IDENTITY, 0, ...] for "
            "no change"
        )
    if params.requires_grad:
        raise NotDifferentiableError(
            f"{where}: expected constant params, got some that require grad; detach them"
        )
    if images.device.type == "cpu" and index.numel() and not _is_inside_a_transform():
        _check_values(params, index, where)


def _check_values(params: Tensor, index: Tensor, where: str) -> None:
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
            f"{sorted(set(codes.tolist()))}; "
            "use the constants of kdistill.ops.diff_augment"
        )
