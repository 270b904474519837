"""Reference of styled_conv: any dtype and device, twice differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.arguments import Activation
from kdistill.backends.reference.fir_bias_act import fir_bias_act, fir_bias_act_bwd

EPS = 1e-8


def demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Return ``rsqrt(sum (weight * styles)^2 + 1e-8)``, ``[N, K]``."""
    return torch.rsqrt(styles.square() @ weight.square().sum((2, 3)).T + EPS)


def styled_conv(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor,
    noise: Tensor | None,
    taps: Tensor | None,
    act: Activation,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scale = demodulation(weight, styles)
    modulated = x * styles[:, :, None, None]
    if taps is None:
        y = F.conv2d(modulated, weight, padding=1)
    else:
        y = F.conv_transpose2d(modulated, weight.transpose(0, 1), stride=2)
    y = y.contiguous(memory_format=torch.channels_last)
    return (
        fir_bias_act(y, scale, bias, noise, taps, act),
        y if keep else x.new_empty(0),
        scale,
    )


def styled_conv_bwd(
    grad: Tensor,
    out: Tensor,
    y: Tensor,
    scale: Tensor,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    taps: Tensor | None,
    act: Activation,
    noise_rows: int,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dy, dscale, dbias, dnoise = fir_bias_act_bwd(grad, out, y, scale, taps, act, noise_rows)
    modulated, dweight = x * styles[:, :, None, None], weight.new_empty(0)
    if taps is None:
        raw = F.conv_transpose2d(dy, weight, padding=1)
        if wants_weight:
            dweight = torch.nn.grad.conv2d_weight(
                modulated, weight.shape, dy, padding=1
            ).contiguous()
    else:
        across = weight.transpose(0, 1)
        raw = F.conv2d(dy, across, stride=2)
        if wants_weight:
            dweight = (
                torch.nn.grad.conv2d_weight(dy, across.shape, modulated, stride=2)
                .transpose(0, 1)
                .contiguous()
            )
    dx = (raw * styles[:, :, None, None]).contiguous(memory_format=torch.channels_last)
    dsums = -0.5 * scale**3 * dscale  # of what is under the root
    if wants_weight:
        dweight = dweight + 2 * weight * (dsums.T @ styles.square())[:, :, None, None]
    dstyles = (raw * x).sum((2, 3)) + 2 * styles * (dsums @ weight.square().sum((2, 3)))
    return dx, dweight, dstyles, dbias, dnoise
