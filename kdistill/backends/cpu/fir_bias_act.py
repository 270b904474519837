"""fir_bias_act through csrc/cpu/fir_bias_act.cpp."""

from torch import Tensor

from kdistill.backends.arguments import Activation, empty_channels_last, fir_gradients, fir_sizes
from kdistill.backends.cpu import launch

_ROWS = 20  # of a band, the unit of work, at most; its sums are added up in the order of the bands


def _rows(height: int) -> int:
    return max(1, -(-height // -(-height // _ROWS)) if height else 1)


def fir_bias_act(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    taps: Tensor | None,
    act: Activation,
) -> Tensor:
    n, c, h, w = fir_sizes(x.shape, taps)
    out, noise_rows = empty_channels_last(x, n, c, h, w), 0 if noise is None else noise.shape[0]
    tensors = (x, scale, bias, noise, taps, out)
    launch("fir_bias_act", tensors, n, c, h, w, noise_rows, *act, _rows(h))
    return out


def fir_bias_act_bwd(
    grad: Tensor,
    out: Tensor,
    x: Tensor,
    scale: Tensor,
    taps: Tensor | None,
    act: Activation,
    noise_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (n, c, height, _), size = x.shape, out.shape[2:]
    grads, rows = fir_gradients(out, x, scale, noise_rows), _rows(height)
    of_images = grads[3] if noise_rows in (0, n) else x.new_empty((n, *size))
    partials = x.new_empty((2, n, -(-height // rows), c))
    tensors = (grad, out, x, scale, taps, *grads, of_images, partials)
    launch("fir_bias_act_bwd", tensors, n, c, *size, noise_rows, *act, rows)
    return grads
