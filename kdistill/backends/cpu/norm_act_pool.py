"""norm_act_pool through csrc/cpu/norm_act_pool.cpp."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.cpu import new_output

supports = partial(_native.refusal, "_cpu")


def _channels_last_output(x: Tensor, h: int, w: int) -> Tensor:
    n, c = x.shape[:2]
    return new_output(x, (n, h, w, c)).permute(0, 3, 1, 2)


def norm_act_pool(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    out = _channels_last_output(x, h // 2, w // 2)
    mean, rstd = x.new_empty((n, c)), x.new_empty((n, c))
    run = _native.kernel("_cpu", "norm_act_pool", x.dtype)
    run(
        *(
            x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            out.data_ptr(),
            mean.data_ptr(),
            rstd.data_ptr(),
        ),
        *(n, c, h, w, weight.shape[0], eps, torch.get_num_threads()),
    )
    return out, mean, rstd


def norm_act_pool_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    dx = _channels_last_output(x, h, w)
    dweight, dbias, partials = (
        torch.empty_like(weight),
        torch.empty_like(bias),
        x.new_empty((2, n, c)),
    )
    run = _native.kernel("_cpu", "norm_act_pool_bwd", x.dtype)
    run(
        *(
            grad.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            mean.data_ptr(),
            rstd.data_ptr(),
        ),
        *(dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr(), partials.data_ptr()),
        *(n, c, h, w, weight.shape[0], torch.get_num_threads()),
    )
    return dx, dweight, dbias


def norm_act_pool_tangent(
    x: Tensor,
    x_dot: Tensor,
    weight: Tensor,
    weight_dot: Tensor,
    bias: Tensor,
    bias_dot: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    outputs = [_channels_last_output(x, h // 2, w // 2) for _ in range(2)] + [
        x.new_empty((n, c)) for _ in range(4)
    ]
    run = _native.kernel("_cpu", "norm_act_pool_tangent", x.dtype)
    run(
        *(t.data_ptr() for t in (x, x_dot, weight, weight_dot, bias, bias_dot, *outputs)),
        *(n, c, h, w, weight.shape[0], eps, torch.get_num_threads()),
    )
    return tuple(outputs)


def norm_act_pool_bwd_tangent(
    grad: Tensor, grad_dot: Tensor, x: Tensor, x_dot: Tensor, weight: Tensor, weight_dot: Tensor, bias: Tensor,
    mean: Tensor, rstd: Tensor, x_dot_mean: Tensor, x_dot_proj: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    n, c, h, w = x.shape
    inputs = (
        grad,
        grad_dot,
        x,
        x_dot,
        weight,
        weight_dot,
        bias,
        mean,
        rstd,
        x_dot_mean,
        x_dot_proj,
    )
    outputs = [_channels_last_output(x, h, w) for _ in range(2)] + [
        torch.empty_like(weight) for _ in range(4)
    ]
    partials = x.new_empty((4, n, c))
    run = _native.kernel("_cpu", "norm_act_pool_bwd_tangent", x.dtype)
    run(
        *(t.data_ptr() for t in (*inputs, *outputs, partials)),
        *(n, c, h, w, weight.shape[0], torch.get_num_threads()),
    )
    return tuple(outputs)
