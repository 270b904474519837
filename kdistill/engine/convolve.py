"""Convolutions under autograd, and the rule that chooses Winograd's F(4×4, 3×3).

The graph-free passes of the students follow the same rule; their convolutions stand in
``students.convnet.conv_products``.
"""

import os
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from kdistill import _native
from kdistill.engine.precision import asked_precision
from kdistill.errors import ConfigError, did_you_mean
from kdistill.ops import fast_apply, fir_bias_act, requested_backend, winograd_conv
from kdistill.ops.winograd_conv import winograd_conv_input_grad, winograd_conv_weight_grad

CHOICES = ("auto", "winograd", "direct")
# up to here a 3×3 convolution is one GEMM on its patches: the library is slow on so few channels
PATCH_CHANNELS = 4
MIN_CHANNELS = 16  # below, the transforms cost more than the multiplications that they save
MIN_TILES = 8  # of 4×4 pixels; below, transforming the weights costs more


def convolve(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Return ``conv2d(x, weight, padding=padding)``, by Winograd's algorithm where that is faster.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.
        weight: ``[K, C, k, k]``; other kernels than 3×3, few channels and few pixels go to the
            library.
        padding: Zeros on every side.

    Returns:
        ``[N, K, h, w]``; differentiable as often as the library's convolution, which takes over
        where a gradient is itself being differentiated.

    Cost: forward, and gradients only in what requires them, with a quarter of the multiplications;
        the rounding error is about five times that of the plain sum (NUMERICS.md), and
        ``KDISTILL_CONVOLUTION=direct`` gives that sum.
    """
    if not takes_winograd(x, weight, padding):
        return functional.conv2d(x, weight, padding=padding)
    return cast("Tensor", _apply(x, weight, padding))


def takes_winograd(x: Tensor, weight: Tensor, padding: int) -> bool:
    """Say whether ``convolve`` runs these tensors by Winograd's algorithm."""
    (k, c, *taps), (n, _, h, w) = weight.shape, x.shape
    if taps != [3, 3] or x.dtype != weight.dtype:
        return False
    out_h, out_w = h + 2 * padding - 2, w + 2 * padding - 2
    return uses_winograd(c, k, min(out_h, out_w), x, n * -(-out_h // 4) * -(-out_w // 4))


def convolve_scaled(x: Tensor, scale: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Return ``convolve(x * scale[:, :, None, None], weight, padding)``.

    This is a modulated convolution before its demodulation.

    Args:
        x: ``[N, C, H, W]``, float32 or float64.
        scale: ``[N, C]``.
        weight: ``[K, C, k, k]``.
        padding: Zeros on every side.

    Returns:
        ``[N, K, h, w]``; differentiable twice.  Where kernels of one pixel have fewer outputs than
        inputs, the scale goes into the weights of every image, which are few; not with the
        reference backend.
    """
    n, c, h, w = x.shape
    if (
        requested_backend() == "reference"
        or tuple(weight.shape[2:]) != (1, 1)
        or padding
        or len(weight) >= c
    ):
        return convolve(fir_bias_act(x, scale), weight, padding)
    own = weight[:, :, 0, 0] * scale[:, None]  # [N, K, C]
    rows = x.permute(0, 2, 3, 1).reshape(n, h * w, c)  # a view where channels are last
    return (rows @ own.transpose(1, 2)).reshape(n, h, w, -1).permute(0, 3, 1, 2)


def uses_winograd(
    channels: int, width: int, out_side: int, like: Tensor, tiles: int = MIN_TILES
) -> bool:
    """Say whether a 3×3 convolution of these sizes runs by Winograd's algorithm.

    Args:
        channels: Channels of the input.
        width: Channels of the output.
        out_side: Shorter side of the output.
        like: A tensor of the dtype and on the device of the input.
        tiles: Number of 4×4 tiles in the output, where the batch is known.

    Raises:
        ConfigError: ``KDISTILL_CONVOLUTION`` is unknown.
    """
    choice = asked_convolution()
    # under bf16 the transforms would cost most of the 8 bits
    if choice == "direct" or channels <= PATCH_CHANNELS or asked_precision() == "bf16":
        return False
    is_native = (
        like.device.type == "cpu"
        and requested_backend() in (None, "cpu")
        and _native.why_missing("_cpu") is None
    )
    pays = min(channels, width) >= MIN_CHANNELS and out_side >= 4 and tiles >= MIN_TILES
    return choice == "winograd" or (is_native and pays)


def asked_convolution() -> str:
    """Return ``KDISTILL_CONVOLUTION``; ``"auto"`` if it is not set."""
    choice = os.environ.get("KDISTILL_CONVOLUTION") or "auto"
    if choice not in CHOICES:
        raise ConfigError(
            f"KDISTILL_CONVOLUTION: expected a known algorithm, got '{choice}'; "
            f"{did_you_mean(choice, list(CHOICES))}"
        )
    return choice


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, padding: int) -> Tensor:
        return winograd_conv(x, weight, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted, padding = ctx.needs_input_grad, ctx.padding
        if torch.is_grad_enabled():  # being differentiated again
            mask = [wanted[0], wanted[1], False]
            dx, dweight, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, mask
            )
            return dx, dweight, None
        dx = winograd_conv_input_grad((grad, weight), padding=padding) if wanted[0] else None
        return (
            dx,
            winograd_conv_weight_grad((x, grad), padding=padding) if wanted[1] else None,
            None,
        )


_apply = fast_apply(_Convolve)
