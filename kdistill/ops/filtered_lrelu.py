"""The alias-free nonlinearity of a StyleGAN3 layer in one pass: bias, raise by an FIR, leaky ReLU, gain, clamp, lower by an FIR.

Symbols: N images, C channels, H x W the map that comes in, R x S the raised one, h x w the one that
    goes out, T taps.
Derivation and traffic: docs/ops/filtered_lrelu.md.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from kdistill.backends.reference.filtered_lrelu import filtered_lrelu_bwd as _differentiable_bwd
from kdistill.errors import ConfigError, NotDifferentiableError, ShapeError
from kdistill.ops._layout import Layout, array, maps, require, sizes_of
from kdistill.ops._registry import check_same_dtype_and_device, fast_apply, register

GRAD_ORDER = 2


def _empty(like: Tensor, *sizes: int) -> Tensor:
    return torch.empty(
        sizes, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _sides(
    h: int,
    w: int,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
) -> tuple[int, int, int, int]:
    """Return R, S, h and w for a map of H x W; a raised side below the taps gives no more than 0."""
    t, s = (1 if taps is None else taps.shape[0] for taps in (up_taps, down_taps))
    raised = h * up + padding[2] + padding[3] - t + 1, w * up + padding[0] + padding[1] - t + 1
    return *raised, (raised[0] - s) // down + 1, (raised[1] - s) // down + 1


def _fake_fwd(
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
    n, c, height, width = x.shape
    rows, columns, h, w = _sides(height, width, up_taps, down_taps, up, down, padding)
    mask = x.new_empty((n, rows, (columns + 3) // 4, c) if keep else (0,), dtype=torch.uint8)
    return _empty(x, n, c, h, w), mask


def _fake_bwd(
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
    n, c = grad.shape[:2]
    return _empty(grad, n, c, height, width), grad.new_empty(c)


def _fits(
    height: int,
    width: int,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
) -> bool:
    """Say whether the raised map holds the taps and something is left of a map that is cropped."""
    _, _, h, w = _sides(height, width, up_taps, down_taps, up, down, padding)
    cropped = [
        side * up + sum(min(p, 0) for p in of)
        for side, of in ((height, padding[2:]), (width, padding[:2]))
    ]
    return min(height, width, h, w) >= 1 and min(cropped) >= 0


def _checked_sides(
    height: int,
    width: int,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    up: int,
    down: int,
    padding: list[int],
) -> tuple[int, ...]:
    """Return R, S, h, w and both numbers of taps."""
    require(
        up >= 1 and down >= 1 and len(padding) == 4,
        "up and down from 1 on and four paddings",
        f"{up}, {down}, {padding}",
    )
    taps = [1 if t is None else sizes_of(t, "taps [T]")[0] for t in (up_taps, down_taps)]
    numbers = (up_taps, down_taps, up, down, padding)
    fits = min(taps) >= 1 and _fits(height, width, *numbers)
    require(
        fits,
        "a raised map that holds the taps",
        f"{height} x {width}, {taps} taps and padding {padding}",
    )
    return *_sides(height, width, *numbers), *taps


def _layouts_fwd(
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
) -> tuple[Layout, ...]:
    n, c, height, width = sizes_of(x, "x [N, C, H, W]")
    *_, t, s = _checked_sides(height, width, up_taps, down_taps, up, down, padding)
    return maps(n, c, height, width), array(c), array(t), array(s)


def _layouts_bwd(
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
) -> tuple[Layout, ...]:
    n, c, *_ = sizes_of(grad, "grad [N, C, h, w]")
    rows, columns, h, w, t, s = _checked_sides(height, width, up_taps, down_taps, up, down, padding)
    return (
        maps(n, c, h, w),
        array(n, rows, (columns + 3) // 4, c, dtype=torch.uint8),
        array(t),
        array(s),
    )


# x, grad, out: channels-last; padding: left, right, above, below; limit: infinity for none; height,
# width: of x mask [N, R, ceil(S / 4), C]: two bits of every raised value (1: positive, 2: clamped),
# or empty, [0], where keep is false
_fwd = register(
    "filtered_lrelu",
    "(Tensor x, Tensor? bias, Tensor? up_taps, Tensor? down_taps, int up, int down, int[] padding, "
    "float slope, float gain, "
    "float limit, bool keep) -> (Tensor, Tensor)",
    fake=_fake_fwd,
    layouts=_layouts_fwd,
)
_bwd = register(
    "filtered_lrelu_bwd",
    "(Tensor grad, Tensor mask, Tensor? up_taps, Tensor? down_taps, int height, int width, int up, "
    "int down, int[] padding, "
    "float slope, float gain) -> (Tensor, Tensor)",
    fake=_fake_bwd,
    layouts=_layouts_bwd,
)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _FilteredLrelu(torch.autograd.Function):
    @staticmethod
    def forward(
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
    ) -> tuple[Tensor, Tensor]:
        out, mask = _fwd(x, bias, up_taps, down_taps, up, down, padding, slope, gain, limit, True)
        return out, mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, _, up_taps, down_taps, up, down, padding, slope, gain, _ = inputs
        ctx.numbers = *x.shape[2:], up, down, padding, slope, gain
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], up_taps, down_taps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # being differentiated again: the same formula, linear in the gradient; the mask has no
        # derivative
        bwd: Any = _differentiable_bwd if torch.is_grad_enabled() else _bwd
        dx, dbias = bwd(_channels_last(grad), *ctx.saved_tensors, *ctx.numbers)
        return dx, dbias if ctx.needs_input_grad[1] else None, *[None] * 8


_apply = fast_apply(_FilteredLrelu)


def filtered_lrelu(
    x: Tensor,
    bias: Tensor | None = None,
    up_taps: Tensor | None = None,
    down_taps: Tensor | None = None,
    *,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """Return ``lower(clamp(gain * leaky_relu(raise(x + bias))))``; the raised map is never in memory as a whole.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.  Channels-last memory is read as it is, anything
            else is converted first.
        bias: ``[C]``, or None.
        up_taps: ``[T]``, the filter of the raise: after each sample come ``up - 1`` zeros, the
            raised map is padded and filtered along both axes, a true convolution, times ``up^2``.
            A constant.  None filters nothing.
        down_taps: ``[T]``, the filter of the lowering; then every ``down``-th sample is kept, the
            first one included.
        up: Factor of the raise.
        down: Factor of the lowering.
        padding: Zeros left, right, above and below, on the raised map; negative numbers crop.
        slope: Factor of negative values, 0 to 1; 1 is no nonlinearity.
        gain: Factor after the nonlinearity, positive.
        clamp: Largest magnitude between the filters, positive, or None.

    Returns:
        ``[N, C, h, w]``, channels-last.  Differentiable twice in ``x`` and ``bias``; the derivative
        of the nonlinearity at 0 is ``gain * slope``, at the clamp and beyond 0.

    Raises:
        ShapeError: A shape, dtype or device does not fit, or the raised map is smaller than the
            filter that follows.
        ConfigError: A factor, ``padding``, ``slope``, ``gain`` or ``clamp`` is out of range.
        NotDifferentiableError: Taps require grad.

    Cost: per raised value ``2 * T_up / up * (1 + 1 / up) + 2 * T_down / down * (1 + 1 / down) + 6``
        flops or so, forward and again backward; reads ``x`` and writes the result (backward: reads
        the gradient and writes the gradient of ``x``); saves two bits of every raised value.

    References: Karras et al., Alias-Free Generative Adversarial Networks, NeurIPS 2021, section 3
        and appendix D.
    """
    padding = [int(p) for p in padding]
    _check_numbers(up, down, padding, slope, gain, clamp)
    _check_tensors(x, bias, up_taps, down_taps, up, down, padding)
    numbers = (float(slope), float(gain), math.inf if clamp is None else float(clamp))
    tensors = (
        _channels_last(x),
        *(None if t is None else t.contiguous() for t in (bias, up_taps, down_taps)),
    )
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return cast("Tensor", _apply(*tensors, up, down, padding, *numbers)[0])
    return cast("Tensor", _fwd(*tensors, up, down, padding, *numbers, False)[0])


def _check_tensors(
    x: Tensor,
    bias: Tensor | None,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    up: int,
    down: int,
    padding: list[int],
) -> None:
    if x.ndim != 4 or (bias is not None and bias.shape != x.shape[1:2]):
        got = f"{list(x.shape)} and {'none' if bias is None else list(bias.shape)}"
        raise ShapeError(
            f"filtered_lrelu: expected x [N, C, H, W] and bias [C], got {got}; add the dimensions "
            "that miss"
        )
    for taps in (up_taps, down_taps):
        if taps is not None and (taps.ndim != 1 or len(taps) == 0):
            raise ShapeError(
                f"filtered_lrelu: expected taps [T], got {list(taps.shape)}; filter outside the op"
            )
        if taps is not None and taps.requires_grad:
            raise NotDifferentiableError(
                "filtered_lrelu: expected constant taps, got taps that require grad; use "
                "taps.detach()"
            )
    given = {"bias": bias, "up_taps": up_taps, "down_taps": down_taps}
    check_same_dtype_and_device(
        "filtered_lrelu", x=x, **{k: v for k, v in given.items() if v is not None}
    )
    height, width = x.shape[2:]
    if not _fits(height, width, up_taps, down_taps, up, down, padding):
        rows, columns, *_ = _sides(height, width, up_taps, down_taps, up, down, padding)
        raise ShapeError(
            f"filtered_lrelu: expected a raised map that holds the taps, got {rows} x {columns} "
            f"from x {list(x.shape)} and "
            f"padding {padding}; pad more or crop less"
        )


def _check_numbers(
    up: int, down: int, padding: list[int], slope: float, gain: float, clamp: float | None
) -> None:
    if up < 1 or down < 1 or len(padding) != 4:
        raise ConfigError(
            "filtered_lrelu: expected up and down from 1 on and padding (left, right, above, "
            f"below), got {up}, {down} and "
            f"{padding}; give whole factors and four numbers"
        )
    if not (0.0 <= slope <= 1.0 and 0.0 < gain < math.inf and (clamp is None or clamp > 0.0)):
        raise ConfigError(
            "filtered_lrelu: expected slope in 0 to 1, gain > 0 and clamp > 0 or None, got "
            f"{slope}, {gain} and {clamp}; "
            "change the sign of what comes in"
        )
