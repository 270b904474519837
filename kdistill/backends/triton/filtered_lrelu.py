"""filtered_lrelu in Triton: the filters along a row are products with band matrices, those along a column are loops."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdistill.backends.triton import refusal as supports

__all__ = ["filtered_lrelu", "filtered_lrelu_bwd", "supports"]

_BLOCK_C = {torch.float32: 16, torch.float64: 2}  # channels of a program
# columns of the result of a program; times any factor a multiple of 4, whole bytes of the mask
_TILE = 16
_BAND = 8  # rows of the result of a program


@triton.jit
def _taps(ptr, at, inside, LENGTH: tl.constexpr, TURNED: tl.constexpr, DTYPE: tl.constexpr):
    # the factors `at` of a filter where inside, else 0; without a filter 1
    if ptr is None:
        factors = inside.to(DTYPE)
    elif TURNED:
        factors = tl.load(ptr + LENGTH - 1 - at, mask=inside, other=0.0)
    else:
        factors = tl.load(ptr + at, mask=inside, other=0.0)
    return factors


@triton.jit
def _product(a, b, dtype: tl.constexpr):
    # a @ b; float64, which checks gradients and is not for speed, without tensor cores: Triton 3.6
    # fails to compile them here
    if dtype == tl.float64:
        return tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    return tl.dot(a, b, input_precision="ieee", out_dtype=dtype)


@triton.jit
def _first_sample(u, origin, UP: tl.constexpr):
    # ceil((u - origin) / UP); the shift keeps the quotient from being rounded towards 0
    return (u - origin + UP - 1 + (UP << 20)) // UP - (1 << 20)


@triton.jit
def _point(
    y, mask_ptr, u, v, cols, C, S, own_u, own_v, SLOPE: tl.constexpr, GAIN: tl.constexpr, LIMIT: tl.constexpr,
    BACKWARD: tl.constexpr, SIZE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # y [SIZE, BLOCK_C]: raised columns v of row u; forward: the nonlinearity, codes to the mask;
    # backward: its derivative
    quads = (S + 3) // 4
    if BACKWARD:
        there = ((v >= 0) & (v < S))[:, None] & (cols < C)[None, :]
        byte = tl.load(
            mask_ptr + (u * quads + v // 4)[:, None] * C + cols[None, :], mask=there, other=0
        )
        codes = byte.to(tl.int32) >> ((v & 3) * 2)[:, None]
        z = y * GAIN
        z = tl.where((codes & 1) != 0, z, z * SLOPE)
        return tl.where((codes & 2) != 0, 0.0, z)
    z = tl.where(y > 0.0, y, y * SLOPE) * GAIN
    if mask_ptr is not None:
        codes = tl.where(y > 0.0, 1, 0) | tl.where((z >= LIMIT) | (z <= -LIMIT), 2, 0)
        codes = tl.reshape(codes << ((v & 3) * 2)[:, None], (SIZE // 4, 4, BLOCK_C))
        first = tl.min(v, axis=0) + 4 * tl.arange(0, SIZE // 4)
        there = (first < tl.where(u < own_u, own_v, 0))[:, None] & (cols < C)[None, :]
        to = (u * quads + first // 4)[:, None] * C + cols[None, :]
        tl.store(mask_ptr + to, tl.sum(codes, axis=1).to(tl.uint8), mask=there)
    z = tl.where(z > LIMIT, LIMIT, z)  # a NaN stays
    return tl.where(z < -LIMIT, -LIMIT, z)


@triton.jit
def _filter(
    in_ptr, bias_ptr, first_ptr, second_ptr, mask_ptr, out_ptr, partials_ptr, C, IN_H, IN_W, R, S, H, W,
    origin_y, origin_x, start_y, start_x, FIRST: tl.constexpr, SECOND: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr,
    SCALE: tl.constexpr, SLOPE: tl.constexpr, GAIN: tl.constexpr, LIMIT: tl.constexpr, BACKWARD: tl.constexpr,
    RAISED: tl.constexpr, SAMPLES: tl.constexpr, TILE: tl.constexpr, BAND: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # one program per image, BAND x TILE results and BLOCK_C channels.  Raised sample u is the sum
    # over j of first[j * UP + origin - u] * in[j], result o the sum over s of second[s] * raised[o
    # * DOWN + start + s].
    DTYPE: tl.constexpr = in_ptr.dtype.element_ty
    image, tiles = tl.program_id(0).to(tl.int64), tl.cdiv(W, TILE)
    y0, x0 = tl.program_id(1) // tiles * BAND, tl.program_id(1) % tiles * TILE
    cols = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    in_ptr += image * IN_H * IN_W * C
    out_ptr += image * H * W * C
    if mask_ptr is not None:
        mask_ptr += image * R * ((S + 3) // 4) * C
    own_u = tl.where(y0 + BAND >= H, R, (y0 + BAND) * DOWN)
    own_v = tl.where(x0 + TILE >= W, S, (x0 + TILE) * DOWN)
    v0 = x0 * DOWN + start_x
    v, j = v0 + tl.arange(0, RAISED), _first_sample(v0, origin_x, UP) + tl.arange(0, SAMPLES)
    o_y, o_x = tl.arange(0, BAND), tl.arange(0, TILE)
    t = j[None, :] * UP + origin_x - v[:, None]
    raising = _taps(
        first_ptr,
        t,
        (t >= 0) & (t < FIRST) & ((v >= 0) & (v < S))[:, None],
        FIRST,
        not BACKWARD,
        DTYPE,
    )
    s = (v - v0)[None, :] - o_x[:, None] * DOWN
    lowering = _taps(second_ptr, s, (s >= 0) & (s < SECOND), SECOND, not BACKWARD, DTYPE)
    shift = tl.zeros((BLOCK_C,), dtype=DTYPE)
    if bias_ptr is not None:
        shift = tl.load(bias_ptr + cols, mask=inside, other=0.0)
    result = tl.zeros((BAND, TILE, BLOCK_C), dtype=DTYPE)
    u0 = y0 * DOWN + start_y
    for u in range(tl.maximum(u0, 0), tl.minimum(u0 + BAND * DOWN + SECOND, R)):
        i = _first_sample(u, origin_y, UP)
        phase = i * UP + origin_y - u
        row = tl.zeros((SAMPLES, BLOCK_C), dtype=DTYPE)
        for k in tl.static_range((FIRST + UP - 1) // UP):
            tap = phase + k * UP
            real = (tap < FIRST) & (i + k >= 0) & (i + k < IN_H)
            there = ((j >= 0) & (j < tl.where(real, IN_W, 0)))[:, None] & inside[None, :]
            x = tl.load(
                in_ptr + ((i + k) * IN_W + j)[:, None] * C + cols[None, :], mask=there, other=0.0
            )
            row += _taps(first_ptr, tap, real, FIRST, not BACKWARD, DTYPE) * tl.where(
                there, x + shift[None, :], 0.0
            )
        y = _product(raising, row, DTYPE)
        if not BACKWARD:
            y *= SCALE
        z = _point(
            y,
            mask_ptr,
            u,
            v,
            cols,
            C,
            S,
            own_u,
            own_v,
            SLOPE,
            GAIN,
            LIMIT,
            BACKWARD,
            RAISED,
            BLOCK_C,
        )
        lowered = _product(lowering, z, DTYPE)  # [TILE, BLOCK_C]
        lag = u - u0 - o_y * DOWN
        factors = _taps(second_ptr, lag, (lag >= 0) & (lag < SECOND), SECOND, not BACKWARD, DTYPE)
        result += factors[:, None, None] * lowered[None, :, :]
    if BACKWARD:
        result *= SCALE
    there = ((y0 + o_y < H)[:, None] & (x0 + o_x < W)[None, :])[:, :, None] & inside[None, None, :]
    at = ((y0 + o_y)[:, None] * W + x0 + o_x[None, :])[:, :, None] * C + cols[None, None, :]
    tl.store(out_ptr + at, result, mask=there)
    if BACKWARD:  # [N, tiles, C]
        total = tl.sum(tl.sum(tl.where(there, result, 0.0), axis=0), axis=0)
        tl.store(
            partials_ptr + (image * tl.num_programs(1) + tl.program_id(1)) * C + cols,
            total,
            mask=inside,
        )


@triton.jit
def _filtered_lrelu_fwd_kernel(
    x_ptr, bias_ptr, up_ptr, down_ptr, mask_ptr, out_ptr, C, IN_H, IN_W, R, S, H, W, above, left,
    T: tl.constexpr, TAPS: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, SLOPE: tl.constexpr, GAIN: tl.constexpr,
    LIMIT: tl.constexpr, RAISED: tl.constexpr, SAMPLES: tl.constexpr, TILE: tl.constexpr, BAND: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    _filter(
        x_ptr, bias_ptr, up_ptr, down_ptr, mask_ptr, out_ptr, None, C, IN_H, IN_W, R, S, H, W, above, left, 0, 0,
        T, TAPS, UP, DOWN, UP * UP, SLOPE, GAIN, LIMIT, False, RAISED, SAMPLES, TILE, BAND, BLOCK_C,
    )  # fmt: skip


@triton.jit
def _filtered_lrelu_bwd_kernel(
    grad_ptr, up_ptr, down_ptr, mask_ptr, dx_ptr, partials_ptr, C, IN_H, IN_W, R, S, H, W, above, left,
    T: tl.constexpr, TAPS: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, SLOPE: tl.constexpr, GAIN: tl.constexpr,
    RAISED: tl.constexpr, SAMPLES: tl.constexpr, TILE: tl.constexpr, BAND: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # H x W: of dx; the filters exchanged, turned
    _filter(
        grad_ptr, None, down_ptr, up_ptr, mask_ptr, dx_ptr, partials_ptr, C, IN_H, IN_W, R, S, H, W, TAPS - 1, TAPS - 1,
        above - T + 1, left - T + 1, TAPS, T, DOWN, UP, UP * UP, SLOPE, GAIN, 0.0, True, RAISED, SAMPLES, TILE, BAND, BLOCK_C,
    )  # fmt: skip


def _length(taps: Tensor | None) -> int:
    return 1 if taps is None else len(taps)


def _empty(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)


def _sizes(dtype: torch.dtype, first: int, second: int, up: int, down: int) -> dict[str, int]:
    raised = (
        _TILE * down + second
    )  # columns behind a tile of the result, those of its share of the mask included
    wide = {"RAISED": raised, "SAMPLES": (raised + first) // up + 2}
    blocks = {"TILE": _TILE, "BAND": _BAND, "BLOCK_C": _BLOCK_C[dtype]}
    return {name: max(16, triton.next_power_of_2(size)) for name, size in wide.items()} | blocks


def filtered_lrelu(
    x: Tensor,
    bias: Tensor | None,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    up: int,
    down: int,
    padding: list[int],
    slope: float,
    gain: float,
    limit: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    t, s = _length(up_taps), _length(down_taps)
    left, right, above, below = padding
    rows, columns = h * up + above + below - t + 1, w * up + left + right - t + 1
    out = _empty(x, n, c, (rows - s) // down + 1, (columns - s) // down + 1)
    mask = x.new_empty((n, rows, (columns + 3) // 4, c) if keep else (0,), dtype=torch.uint8)
    if out.numel():
        tiles = triton.cdiv(out.shape[2], _BAND) * triton.cdiv(out.shape[3], _TILE)
        _filtered_lrelu_fwd_kernel[(n, tiles, triton.cdiv(c, _BLOCK_C[x.dtype]))](
            *(
                x,
                bias,
                up_taps,
                down_taps,
                mask if keep else None,
                out,
                c,
                h,
                w,
                rows,
                columns,
                *out.shape[2:],
                above,
                left,
            ),
            **{
                "T": t,
                "TAPS": s,
                "UP": up,
                "DOWN": down,
                "SLOPE": slope,
                "GAIN": gain,
                "LIMIT": limit,
            },
            **_sizes(x.dtype, t, s, up, down),
        )
    return out, mask


def filtered_lrelu_bwd(
    grad: Tensor,
    mask: Tensor,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    height: int,
    width: int,
    up: int,
    down: int,
    padding: list[int],
    slope: float,
    gain: float,
) -> tuple[Tensor, Tensor]:
    n, c, h, w = grad.shape
    t, s = _length(up_taps), _length(down_taps)
    left, right, above, _ = padding
    rows, columns = mask.shape[1], width * up + left + right - t + 1
    dx, tiles = (
        _empty(grad, n, c, height, width),
        triton.cdiv(height, _BAND) * triton.cdiv(width, _TILE),
    )
    partials = grad.new_empty((n, tiles, c))
    if grad.numel():
        _filtered_lrelu_bwd_kernel[(n, tiles, triton.cdiv(c, _BLOCK_C[grad.dtype]))](
            *(
                grad,
                up_taps,
                down_taps,
                mask,
                dx,
                partials,
                c,
                h,
                w,
                rows,
                columns,
                height,
                width,
                above,
                left,
            ),
            **{"T": t, "TAPS": s, "UP": up, "DOWN": down, "SLOPE": slope, "GAIN": gain},
            **_sizes(grad.dtype, s, t, down, up),
        )
    return dx, partials.sum((0, 1), dtype=torch.float64).to(grad.dtype)
