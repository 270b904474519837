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


def norm_act_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    out = _channels_last_output(x, h // 2, w // 2)
    mean, rstd = x.new_empty((n, c)), x.new_empty((n, c))
    run = _native.kernel("_cpu", "norm_act_pool", x.dtype)
    run(
        *(x.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr(), mean.data_ptr(), rstd.data_ptr()),
        *(n, c, h, w, weight.shape[0], eps, torch.get_num_threads()),
    )
    return out, mean, rstd


def norm_act_pool_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    dx = _channels_last_output(x, h, w)
    dweight, dbias, partials = torch.empty_like(weight), torch.empty_like(bias), x.new_empty((2, n, c))
    run = _native.kernel("_cpu", "norm_act_pool_bwd", x.dtype)
    run(
        *(grad.data_ptr(), x.data_ptr(), weight.data_ptr(), bias.data_ptr(), mean.data_ptr(), rstd.data_ptr()),
        *(dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr(), partials.data_ptr()),
        *(n, c, h, w, weight.shape[0], torch.get_num_threads()),
    )
    return dx, dweight, dbias
