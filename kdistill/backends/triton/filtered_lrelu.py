"""filtered_lrelu in Triton: band matrices filter along a row, loops along a column."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdistill.backends.arguments import Geometry, Resampling, empty_channels_last

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
    y, mask_ptr, u, v, cols, C, S, own_u, own_v, SLOPE: tl.constexpr, GAIN: tl.constexpr,
    LIMIT: tl.constexpr, BACKWARD: tl.constexpr, SIZE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # y [SIZE, BLOCK_C]: upsampled columns v of row u; forward: the nonlinearity, codes to the mask;
    # backward: its derivative
    quads = (S + 3) // 4
    if BACKWARD:
        valid = ((v >= 0) & (v < S))[:, None] & (cols < C)[None, :]
        byte = tl.load(
            mask_ptr + (u * quads + v // 4)[:, None] * C + cols[None, :], mask=valid, other=0
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
        valid = (first < tl.where(u < own_u, own_v, 0))[:, None] & (cols < C)[None, :]
        to = (u * quads + first // 4)[:, None] * C + cols[None, :]
        tl.store(mask_ptr + to, tl.sum(codes, axis=1).to(tl.uint8), mask=valid)
    z = tl.where(z > LIMIT, LIMIT, z)  # a NaN stays
    return tl.where(z < -LIMIT, -LIMIT, z)


# one kernel is one function: its parts share what is in registers
@triton.jit
def _filter(
    in_ptr, bias_ptr, first_ptr, second_ptr, mask_ptr, out_ptr, partials_ptr, C, IN_H, IN_W, R, S,
    H, W, origin_y, origin_x, start_y, start_x, FIRST: tl.constexpr, SECOND: tl.constexpr,
    UP: tl.constexpr, DOWN: tl.constexpr, SCALE: tl.constexpr, SLOPE: tl.constexpr,
    GAIN: tl.constexpr, LIMIT: tl.constexpr, BACKWARD: tl.constexpr, UPSAMPLED: tl.constexpr,
    SAMPLES: tl.constexpr, TILE: tl.constexpr, BAND: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # one program per image, BAND x TILE results and BLOCK_C channels.  Upsampled sample u is the
    # sum over j of first[j * UP + origin - u] * in[j], result o the sum over s of second[s] *
    # upsampled[o * DOWN + start + s].
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
    v, j = v0 + tl.arange(0, UPSAMPLED), _first_sample(v0, origin_x, UP) + tl.arange(0, SAMPLES)
    o_y, o_x = tl.arange(0, BAND), tl.arange(0, TILE)
    t = j[None, :] * UP + origin_x - v[:, None]
    upsampling = _taps(
        first_ptr,
        t,
        (t >= 0) & (t < FIRST) & ((v >= 0) & (v < S))[:, None],
        FIRST,
        not BACKWARD,
        DTYPE,
    )
    s = (v - v0)[None, :] - o_x[:, None] * DOWN
    downsampling = _taps(second_ptr, s, (s >= 0) & (s < SECOND), SECOND, not BACKWARD, DTYPE)
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
            valid = ((j >= 0) & (j < tl.where(real, IN_W, 0)))[:, None] & inside[None, :]
            x = tl.load(
                in_ptr + ((i + k) * IN_W + j)[:, None] * C + cols[None, :], mask=valid, other=0.0
            )
            row += _taps(first_ptr, tap, real, FIRST, not BACKWARD, DTYPE) * tl.where(
                valid, x + shift[None, :], 0.0
            )
        y = _product(upsampling, row, DTYPE)
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
            UPSAMPLED,
            BLOCK_C,
        )
        downsampled = _product(downsampling, z, DTYPE)  # [TILE, BLOCK_C]
        lag = u - u0 - o_y * DOWN
        factors = _taps(second_ptr, lag, (lag >= 0) & (lag < SECOND), SECOND, not BACKWARD, DTYPE)
        result += factors[:, None, None] * downsampled[None, :, :]
    if BACKWARD:
        result *= SCALE
    valid = ((y0 + o_y < H)[:, None] & (x0 + o_x < W)[None, :])[:, :, None] & inside[None, None, :]
    at = ((y0 + o_y)[:, None] * W + x0 + o_x[None, :])[:, :, None] * C + cols[None, None, :]
    tl.store(out_ptr + at, result, mask=valid)
    if BACKWARD:  # [N, tiles, C]
        total = tl.sum(tl.sum(tl.where(valid, result, 0.0), axis=0), axis=0)
        tl.store(
            partials_ptr + (image * tl.num_programs(1) + tl.program_id(1)) * C + cols,
            total,
            mask=inside,
        )


@triton.jit
def _filtered_lrelu_fwd_kernel(
    x_ptr, bias_ptr, up_ptr, down_ptr, mask_ptr, out_ptr, C, IN_H, IN_W, R, S, H, W, above, left,
    T: tl.constexpr, TAPS: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, SLOPE: tl.constexpr,
    GAIN: tl.constexpr, LIMIT: tl.constexpr, UPSAMPLED: tl.constexpr, SAMPLES: tl.constexpr,
    TILE: tl.constexpr, BAND: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    _filter(
        x_ptr, bias_ptr, up_ptr, down_ptr, mask_ptr, out_ptr, None, C, IN_H, IN_W, R, S, H, W,
        above, left, 0, 0, T, TAPS, UP, DOWN, UP * UP, SLOPE, GAIN, LIMIT, False, UPSAMPLED,
        SAMPLES, TILE, BAND, BLOCK_C,
    )  # fmt: skip


@triton.jit
def _filtered_lrelu_bwd_kernel(
    grad_ptr, up_ptr, down_ptr, mask_ptr, dx_ptr, partials_ptr, C, IN_H, IN_W, R, S, H, W, above,
    left, T: tl.constexpr, TAPS: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr,
    SLOPE: tl.constexpr, GAIN: tl.constexpr, UPSAMPLED: tl.constexpr, SAMPLES: tl.constexpr,
    TILE: tl.constexpr, BAND: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # H x W: of dx; the filters exchanged, turned
    _filter(
        grad_ptr, None, down_ptr, up_ptr, mask_ptr, dx_ptr, partials_ptr, C, IN_H, IN_W, R, S, H, W,
        TAPS - 1, TAPS - 1, above - T + 1, left - T + 1, TAPS, T, DOWN, UP, UP * UP, SLOPE, GAIN,
        0.0, True, UPSAMPLED, SAMPLES, TILE, BAND, BLOCK_C,
    )  # fmt: skip


def _constants(g: Geometry, how: Resampling) -> dict[str, float]:
    taps = {"T": g.up_taps, "TAPS": g.down_taps, "UP": g.up, "DOWN": g.down}
    return taps | {"SLOPE": how.slope, "GAIN": how.gain}


def _sizes(dtype: torch.dtype, first: int, second: int, up: int, down: int) -> dict[str, int]:
    # columns behind a tile of the result, those of its share of the mask included
    upsampled = _TILE * down + second
    wide = {"UPSAMPLED": upsampled, "SAMPLES": (upsampled + first) // up + 2}
    blocks = {"TILE": _TILE, "BAND": _BAND, "BLOCK_C": _BLOCK_C[dtype]}
    return {name: max(16, triton.next_power_of_2(size)) for name, size in wide.items()} | blocks


def _tiles(height: int, width: int) -> int:
    return int(triton.cdiv(height, _BAND) * triton.cdiv(width, _TILE))


def filtered_lrelu(
    x: Tensor,
    bias: Tensor | None,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    how: Resampling,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    g, out, mask = how.outputs(x, up_taps, down_taps, keep)
    if out.numel():
        grid = (g.n, _tiles(g.h, g.w), triton.cdiv(g.c, _BLOCK_C[x.dtype]))
        tensors = (x, bias, up_taps, down_taps, mask if keep else None, out)
        sides = (g.height, g.width, g.rows, g.columns, g.h, g.w, g.above, g.left)
        constants = _constants(g, how) | {"LIMIT": how.limit}
        wide = _sizes(x.dtype, g.up_taps, g.down_taps, g.up, g.down)
        _filtered_lrelu_fwd_kernel[grid](*tensors, g.c, *sides, **constants, **wide)
    return out, mask


def filtered_lrelu_bwd(
    grad: Tensor, mask: Tensor, up_taps: Tensor | None, down_taps: Tensor | None, size: list[int],
    how: Resampling,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    g = how.geometry((*grad.shape[:2], *size), up_taps, down_taps)
    dx, tiles = empty_channels_last(grad, *g[:4]), _tiles(g.height, g.width)
    partials = grad.new_empty((g.n, tiles, g.c))
    if grad.numel():
        grid = (g.n, tiles, triton.cdiv(g.c, _BLOCK_C[grad.dtype]))
        tensors = (grad, up_taps, down_taps, mask, dx, partials)
        sides = (g.h, g.w, g.rows, g.columns, g.height, g.width, g.above, g.left)
        wide = _sizes(grad.dtype, g.down_taps, g.up_taps, g.down, g.up)
        _filtered_lrelu_bwd_kernel[grid](*tensors, g.c, *sides, **_constants(g, how), **wide)
    return dx, partials.sum((0, 1), dtype=torch.float64).to(grad.dtype)
