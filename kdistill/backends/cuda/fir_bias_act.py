"""fir_bias_act through csrc/cuda/fir_bias_act.cu."""

from torch import Tensor

from kdistill.backends.arguments import Activation, empty_channels_last, fir_gradients, fir_sizes
from kdistill.backends.cuda import launch

_PIXELS, _LANES = 256, 32  # kPixels and kLanes of the kernel


def fir_bias_act(
    x: Tensor, scale: Tensor, bias: Tensor | None, noise: Tensor | None, taps: Tensor | None,
    act: Activation,
) -> Tensor:  # fmt: skip
    sizes = fir_sizes(x.shape, taps)
    out, noise_rows = empty_channels_last(x, *sizes), 0 if noise is None else noise.shape[0]
    launch("fir_bias_act", (x, scale, bias, noise, taps, out), *sizes, noise_rows, *act)
    return out


def fir_bias_act_bwd(
    grad: Tensor, out: Tensor, x: Tensor, scale: Tensor, taps: Tensor | None, act: Activation,
    noise_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (n, c, height, width), size = x.shape, out.shape[2:]
    grads = fir_gradients(out, x, scale, noise_rows)
    of_tiles = x.new_empty((n if noise_rows else 0, -(-c // _LANES), *size))
    partials = x.new_empty((2, n, -(-height * width // _PIXELS), c))
    tensors = (grad, out, x, scale, taps, *grads, of_tiles, partials)
    launch("fir_bias_act_bwd", tensors, n, c, *size, noise_rows, *act)
    return grads
