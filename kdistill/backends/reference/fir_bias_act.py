"""Reference of fir_bias_act: any dtype and device, twice differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.arguments import Activation


def fir(x: Tensor, taps: Tensor | None) -> Tensor:
    """Return ``x`` with one zero around it, filtered along both axes, a true convolution."""
    if taps is None:
        return x
    c = x.shape[1]
    return F.conv2d(
        F.pad(x, (1, 1, 1, 1)), torch.outer(taps, taps).flip(0, 1).expand(c, 1, -1, -1), groups=c
    )


def _fir_transposed(g: Tensor, taps: Tensor | None) -> Tensor:
    if taps is None:
        return g
    c = g.shape[1]
    return F.conv2d(F.pad(g, (2, 2, 2, 2)), torch.outer(taps, taps).expand(c, 1, -1, -1), groups=c)


def fir_bias_act(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    taps: Tensor | None,
    act: Activation,
) -> Tensor:
    y = fir(x * scale[:, :, None, None], taps)
    if noise is not None:
        y = y + noise[:, None]
    if bias is not None:
        y = y + bias[:, None, None]
    y = (F.leaky_relu(y, act.slope) * act.gain).clamp(-act.limit, act.limit)
    return y.contiguous(memory_format=torch.channels_last)


def fir_bias_act_bwd(
    grad: Tensor,
    out: Tensor,
    x: Tensor,
    scale: Tensor,
    taps: Tensor | None,
    act: Activation,
    noise_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    slopes = torch.full_like(out, act.gain * act.slope).masked_fill(out > 0, act.gain)
    g = grad * slopes.masked_fill(out.abs() >= act.limit, 0.0)
    raw = _fir_transposed(g, taps)
    dx = (raw * scale[:, :, None, None]).contiguous(memory_format=torch.channels_last)
    of_noise = g.sum(1)  # [N, h, w]
    if noise_rows == 0:
        of_noise = of_noise[:0]
    elif noise_rows == 1:
        of_noise = of_noise.sum(0, keepdim=True)
    return dx, (raw * x).sum((2, 3)), g.sum((0, 2, 3)), of_noise
