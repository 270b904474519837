"""diff_augment in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdistill.backends.reference import diff_augment as reference

_ROW = tl.constexpr(reference.ROW)
_COLOR = tl.constexpr(reference.COLOR)
_CROP = tl.constexpr(reference.CROP)
_CUTOUT = tl.constexpr(reference.CUTOUT)
_FLIP = tl.constexpr(reference.FLIP)
_AFFINE = tl.constexpr(reference.AFFINE)


@triton.jit
def _row_of(params_ptr, index_ptr, image, sets):
    row = tl.load(index_ptr + image)
    row = tl.minimum(tl.maximum(row, 0), sets - 1)
    return params_ptr + row * _ROW


@triton.jit
def _clamped(value, low, high):
    # the integer part of value, from low to high
    return tl.minimum(tl.maximum(value, low), high).to(tl.int32)


@triton.jit
def _mean_kernel(x_ptr, params_ptr, index_ptr, mean_ptr, sets, size, BLOCK: tl.constexpr):
    # one program per image that needs its mean
    image = tl.program_id(0).to(tl.int64)
    if tl.load(_row_of(params_ptr, index_ptr, image, sets)).to(tl.int32) == _COLOR:
        acc = tl.zeros((BLOCK,), dtype=tl.float64)
        for start in range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            acc += tl.load(x_ptr + image * size + at, mask=at < size, other=0.0).to(tl.float64)
        tl.store(mean_ptr + image, tl.sum(acc, axis=0) / size)


@triton.jit
def _position(t0, t1, dx, dy, centre, size):
    # clamped to where no tap lies inside; float64, because an error here is an error of the image
    # times its slope
    at = t0 * dx + t1 * dy + centre
    at = tl.minimum(tl.maximum(at, -1.0), size)
    first = tl.floor(at)
    return first.to(tl.int32), at - first


@triton.jit
def _tap(x, plane, at_y, at_x, weight, H, W, inside):
    valid = inside & ((at_y >= 0) & (at_y < H) & (at_x >= 0) & (at_x < W))[:, None]
    value = tl.load(x + plane + (at_y * W + at_x)[:, None], mask=valid, other=0.0)
    return weight.to(value.dtype)[:, None] * value


@triton.jit
def _affine(x, plane, i, j, t00, t01, t10, t11, H, W, inside):
    centre_x, centre_y = (W - 1) / 2.0, (H - 1) / 2.0
    dx, dy = j.to(tl.float64) - centre_x, i.to(tl.float64) - centre_y
    x0, fx = _position(t00, t01, dx, dy, centre_x, W)
    y0, fy = _position(t10, t11, dx, dy, centre_y, H)
    out = _tap(x, plane, y0, x0, (1 - fy) * (1 - fx), H, W, inside)
    out += _tap(x, plane, y0, x0 + 1, (1 - fy) * fx, H, W, inside)
    out += _tap(x, plane, y0 + 1, x0, fy * (1 - fx), H, W, inside)
    out += _tap(x, plane, y0 + 1, x0 + 1, fy * fx, H, W, inside)
    return out


@triton.jit
def _box(at, reach, size):
    # the first of the outputs that may have read this pixel, and how many: all of them where the
    # map is singular
    reach = tl.minimum(reach, size)
    count = tl.minimum(tl.floor(2 * reach).to(tl.int32) + 1, size)
    first = tl.where(count == size, 0.0, tl.ceil(at - reach))
    return first.to(tl.int32), count


@triton.jit
def _affine_transpose(
    g, plane, i, j, t00, t01, t10, t11, H, W, inside, BLOCK: tl.constexpr, CHANNELS: tl.constexpr
):
    # a gather over the outputs whose source lies within one pixel: no atomics, one fixed order
    centre_x, centre_y = (W - 1) / 2.0, (H - 1) / 2.0
    dx, dy = j.to(tl.float64) - centre_x, i.to(tl.float64) - centre_y
    det = t00 * t11 - t01 * t10
    singular = tl.abs(det) < 1e-9
    det = tl.where(singular, 1.0, det)
    reach_x = tl.where(singular, 1e9, (tl.abs(t11) + tl.abs(t01)) / tl.abs(det) + 1e-6)
    reach_y = tl.where(singular, 1e9, (tl.abs(t00) + tl.abs(t10)) / tl.abs(det) + 1e-6)
    first_x, count_x = _box((t11 * dx - t01 * dy) / det + centre_x, reach_x, W)
    first_y, count_y = _box((t00 * dy - t10 * dx) / det + centre_y, reach_y, H)
    acc = tl.zeros((BLOCK, CHANNELS), dtype=g.dtype.element_ty)
    for step_y in range(0, count_y):
        for step_x in range(0, count_x):
            out_x, out_y = first_x + step_x, first_y + step_y
            ox, oy = out_x.to(tl.float64) - centre_x, out_y.to(tl.float64) - centre_y
            x0, fx = _position(t00, t01, ox, oy, centre_x, W)
            y0, fy = _position(t10, t11, ox, oy, centre_y, H)
            weight_x = tl.where(x0 == j, 1 - fx, tl.where(x0 + 1 == j, fx, 0.0))
            weight_y = tl.where(y0 == i, 1 - fy, tl.where(y0 + 1 == i, fy, 0.0))
            acc += _tap(g, plane, out_y, out_x, weight_x * weight_y, H, W, inside)
    return acc


@triton.jit
def _color(x, plane, at, mean, p0, p1, p2, C, inside, LINEAR: tl.constexpr):
    value = tl.load(x + plane + at[:, None], mask=inside, other=0.0)
    T = value.dtype
    saturation = tl.where(C == 1, 1.0, p1)
    rest = (1 - p2) * mean
    if not LINEAR:
        rest += p0
    shared = ((1 - saturation) * p2 / C).to(T) * tl.sum(value, axis=1)
    return (saturation * p2).to(T) * value + (shared + rest.to(T))[:, None]


@triton.jit
def _cut(at, centre, side, size):
    length = _clamped(side, 0, size * 2)
    start = _clamped(centre, size * -4, size * 4) - length // 2
    return (at >= start) & (at < start + length)


@triton.jit
def _diff_augment_kernel(
    x_ptr, params_ptr, index_ptr, out_ptr, mean_ptr, sets, C, H, W, SIZE_H, SIZE_W,
    LINEAR: tl.constexpr, TRANSPOSE: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # one program per image and BLOCK pixels, with all channels
    image = tl.program_id(0).to(tl.int64)
    row = _row_of(params_ptr, index_ptr, image, sets)
    family = tl.load(row).to(tl.int32)
    p0, p1, p2, p3 = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    i, j = at // W, at % W
    channel = tl.arange(0, CHANNELS)
    inside = (at < H * W)[:, None] & (channel < C)[None, :]  # [BLOCK, CHANNELS]
    x = x_ptr + image * C * H * W
    plane = (channel * (H * W))[None, :]
    if family == _COLOR:
        value = _color(x, plane, at, tl.load(mean_ptr + image), p0, p1, p2, C, inside, LINEAR)
    elif family == _AFFINE:
        # theta in pixels: align_corners only changes the ratio of the two axes' units
        t01, t10 = p1 * SIZE_W / tl.maximum(SIZE_H, 1), p2 * SIZE_H / tl.maximum(SIZE_W, 1)
        if TRANSPOSE:
            value = _affine_transpose(
                x, plane, i, j, p0, t01, t10, p3, H, W, inside, BLOCK, CHANNELS
            )
        else:
            value = _affine(x, plane, i, j, p0, t01, t10, p3, H, W, inside)
    else:
        from_i, from_j, keep = i, j, at >= 0
        if family == _CROP:
            shift_h, shift_w = _clamped(p0, -H, H), _clamped(p1, -W, W)
            if TRANSPOSE:
                from_i, from_j = i - shift_h, j - shift_w
            else:
                from_i, from_j = i + shift_h, j + shift_w
        if family == _CUTOUT:
            keep = (_cut(i, p0, p2, H) & _cut(j, p1, p3, W)) == 0
        if (family == _FLIP) & (p0 != 0):
            from_j = W - 1 - j
        keep = keep & (from_i >= 0) & (from_i < H) & (from_j >= 0) & (from_j < W)
        value = tl.load(
            x + plane + (from_i * W + from_j)[:, None], mask=inside & keep[:, None], other=0.0
        )
    tl.store(out_ptr + image * C * H * W + plane + at[:, None], value, mask=inside)


def _launch(
    x: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool, transpose: bool
) -> Tensor:
    n, c, h, w = x.shape
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    means = x.new_empty(n, dtype=torch.float64)
    _mean_kernel[(n,)](x, params, index, means, len(params), c * h * w, BLOCK=1024)
    channels = triton.next_power_of_2(c)
    block = max(16, min(256, 2048 // channels))
    _diff_augment_kernel[(n, triton.cdiv(h * w, block))](
        *(x, params, index, out, means, len(params), c, h, w, h - align_corners, w - align_corners),
        LINEAR=linear,
        TRANSPOSE=transpose,
        BLOCK=block,
        CHANNELS=channels,
    )
    return out


def diff_augment(
    images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool
) -> Tensor:
    return _launch(images, params, index, align_corners, linear, transpose=False)


def diff_augment_bwd(grad: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Tensor:
    return _launch(grad, params, index, align_corners, linear=True, transpose=True)
