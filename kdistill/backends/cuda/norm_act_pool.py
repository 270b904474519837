"""norm_act_pool through csrc/cuda/norm_act_pool.cu."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cuda")


def norm_act_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    out = torch.empty((n, c, h // 2, w // 2), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    mean, rstd = x.new_empty((n, c)), x.new_empty((n, c))
    run = _native.kernel("_cuda", "norm_act_pool", x.dtype, x.device)
    with _native.stream_of(x) as stream:
        run(
            *(x.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr(), mean.data_ptr(), rstd.data_ptr()),
            *(n, c, h, w, weight.shape[0], eps, stream),
        )
    return out, mean, rstd


def norm_act_pool_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    dx = torch.empty((n, c, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    dweight, dbias, partials = torch.empty_like(weight), torch.empty_like(bias), x.new_empty((2, n, c))
    run = _native.kernel("_cuda", "norm_act_pool_bwd", x.dtype, x.device)
    with _native.stream_of(x) as stream:
        run(
            *(grad.data_ptr(), x.data_ptr(), weight.data_ptr(), bias.data_ptr(), mean.data_ptr(), rstd.data_ptr()),
            *(dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr(), partials.data_ptr()),
            *(n, c, h, w, weight.shape[0], stream),
        )
    return dx, dweight, dbias
