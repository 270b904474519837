"""Reference of filtered_lrelu: any dtype and device, twice differentiable.

Between the filters every value has a code: 1 where it is positive, 2 where the clamp holds it.
Four neighbours in a row share a byte of the mask, the first one in its lowest bits.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.arguments import Resampling


def upfirdn(
    x: Tensor,
    taps: Tensor | None,
    *,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, ...] = (0, 0, 0, 0),
    gain: float = 1.0,
) -> Tensor:
    """Return ``x`` with zeros inserted, padded, filtered and decimated.

    Args:
        x: ``[N, C, H, W]``.
        taps: ``[T]`` (separable) or ``[T, T]``, a true convolution; None filters nothing.
        up: ``up - 1`` zeros come after each sample.
        down: Every ``down``-th sample remains, the first one included.
        padding: Zeros left, right, above and below, on the upsampled grid; negative numbers crop.
        gain: Factor of the result.
    """
    n, c, h, w = x.shape
    if up > 1:
        x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(
            n, c, h * up, w * up
        )
    if any(padding):
        x = F.pad(x, list(padding))
    if taps is None:
        return x[:, :, ::down, ::down] * gain
    if taps.ndim == 2:
        return F.conv2d(x, (taps.flip(0, 1) * gain).expand(c, 1, -1, -1), stride=down, groups=c)
    line = taps.flip(0) * math.sqrt(gain)
    x = F.conv2d(x, line[None, :].expand(c, 1, -1, -1), stride=(1, down), groups=c)
    return F.conv2d(x, line[:, None].expand(c, 1, -1, -1), stride=(down, 1), groups=c)


def _packed(codes: Tensor) -> Tensor:
    n, c, h, w = codes.shape
    quads = F.pad(codes, (0, -w % 4)).reshape(n, c, h, (w + 3) // 4, 4)
    weights = torch.tensor([1, 4, 16, 64], dtype=torch.uint8, device=codes.device)
    return (
        (quads * weights).sum(-1, dtype=torch.uint8).permute(0, 2, 3, 1).contiguous()
    )  # [N, h, ceil(w / 4), C]


def _unpacked(mask: Tensor, width: int) -> Tensor:
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=mask.device)
    codes = (mask.permute(0, 3, 1, 2)[..., None] >> shifts) & 3
    return codes.flatten(3)[..., :width]  # [N, C, h, w]


def filtered_lrelu(
    x: Tensor,
    bias: Tensor | None,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    how: Resampling,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    up, down, padding, slope, gain, limit = how
    y = x if bias is None else x + bias[:, None, None]
    y = upfirdn(y, up_taps, up=up, padding=tuple(padding), gain=float(up**2))
    z = (F.leaky_relu(y, slope) if slope != 1.0 else y) * gain
    out = upfirdn(z if math.isinf(limit) else z.clamp(-limit, limit), down_taps, down=down)
    out = out.contiguous(memory_format=torch.channels_last)
    if not keep:
        return out, x.new_empty(0, dtype=torch.uint8)
    return out, _packed((y > 0).to(torch.uint8) + 2 * (z.abs() >= limit).to(torch.uint8))


def filtered_lrelu_bwd(
    grad: Tensor,
    mask: Tensor,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    size: list[int],
    how: Resampling,
) -> tuple[Tensor, Tensor]:
    # a transposed filter is the turned one with the factors of upsampling and decimation exchanged
    g = how.geometry((*grad.shape[:2], *size), up_taps, down_taps)
    t, s, up, down = g.up_taps, g.down_taps, g.up, g.down
    around = (s - 1, g.columns - g.w * down, s - 1, g.rows - g.h * down)
    turned_up, turned_down = (None if f is None else f.flip(0) for f in (up_taps, down_taps))
    y = upfirdn(grad, turned_down, up=down, padding=around)
    codes = _unpacked(mask, g.columns)
    slopes = torch.full_like(y, how.gain * how.slope).masked_fill(codes & 1 > 0, how.gain)
    y = y * slopes.masked_fill(codes > 1, 0.0)
    low = (t - 1 - g.left, t - 1 - g.above)
    high = ((g.width - 1) * up + t - g.columns - low[0], (g.height - 1) * up + t - g.rows - low[1])
    around = (low[0], high[0], low[1], high[1])
    dx = upfirdn(y, turned_up, down=up, padding=around, gain=float(up**2))
    return dx.contiguous(memory_format=torch.channels_last), dx.sum((0, 2, 3))
