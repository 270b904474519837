"""Reference of styled_conv: any dtype and device, twice differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.reference.fir_bias_act import fir_bias_act, fir_bias_act_bwd


def styled_conv(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    scale: Tensor,
    bias: Tensor,
    noise: Tensor | None,
    slope: float,
    gain: float,
    limit: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    y = F.conv2d(x * styles[:, :, None, None], weight, padding=1).contiguous(memory_format=torch.channels_last)
    return fir_bias_act(y, scale, bias, noise, None, slope, gain, limit), y if keep else x.new_empty(0)


def styled_conv_bwd(
    grad: Tensor,
    out: Tensor,
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    scale: Tensor,
    slope: float,
    gain: float,
    limit: float,
    noise_rows: int,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dy, dscale, dbias, dnoise = fir_bias_act_bwd(grad, out, y, scale, None, slope, gain, limit, noise_rows)
    raw, dweight = F.conv_transpose2d(dy, weight, padding=1), weight.new_empty(0)
    if wants_weight:
        dweight = torch.nn.grad.conv2d_weight(x * styles[:, :, None, None], weight.shape, dy, padding=1)
    dx = (raw * styles[:, :, None, None]).contiguous(memory_format=torch.channels_last)
    return dx, dweight, (raw * x).sum((2, 3)), dscale, dbias, dnoise
