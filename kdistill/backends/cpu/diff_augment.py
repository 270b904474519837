"""diff_augment through csrc/cpu/diff_augment.cpp."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cpu")


def diff_augment(
    images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool
) -> Tensor:
    out = torch.empty_like(images)
    run = _native.kernel("_cpu", "diff_augment", images.dtype)
    run(
        *(images.data_ptr(), params.data_ptr(), index.data_ptr(), out.data_ptr()),
        *(*images.shape, len(params), align_corners, linear, torch.get_num_threads()),
    )
    return out


def diff_augment_bwd(grad: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Tensor:
    out = torch.empty_like(grad)
    run = _native.kernel("_cpu", "diff_augment_bwd", grad.dtype)
    run(
        *(grad.data_ptr(), params.data_ptr(), index.data_ptr(), out.data_ptr()),
        *(*grad.shape, len(params), align_corners, torch.get_num_threads()),
    )
    return out
