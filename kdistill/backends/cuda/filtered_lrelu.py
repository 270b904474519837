"""filtered_lrelu through csrc/cuda/filtered_lrelu.cu."""

from torch import Tensor

from kdistill.backends.arguments import Resampling, empty_channels_last
from kdistill.backends.cuda import launch

_TILE = 16  # kTile of the kernel


def filtered_lrelu(
    x: Tensor,
    bias: Tensor | None,
    up_taps: Tensor | None,
    down_taps: Tensor | None,
    how: Resampling,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    g, out, mask = how.outputs(x, up_taps, down_taps, keep)
    tensors = (x, bias, up_taps, down_taps, out, mask if keep else None)
    launch("filtered_lrelu", tensors, *g, how.slope, how.gain, how.limit)
    return out, mask


def filtered_lrelu_bwd(
    grad: Tensor, mask: Tensor, up_taps: Tensor | None, down_taps: Tensor | None, size: list[int],
    how: Resampling,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    g = how.geometry((*grad.shape[:2], *size), up_taps, down_taps)
    dx, dbias = empty_channels_last(grad, *g[:4]), grad.new_empty(g.c)
    partials = grad.new_empty((g.n, -(-g.height // _TILE) * -(-g.width // _TILE), g.c))
    tensors = (grad, mask, up_taps, down_taps, dx, dbias, partials)
    launch("filtered_lrelu_bwd", tensors, *g, how.slope, how.gain)
    return dx, dbias
