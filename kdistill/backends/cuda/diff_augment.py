"""diff_augment through csrc/cuda/diff_augment.cu."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cuda")

_TILE = 1024  # kTile of the kernel: pixels behind one partial sum of the image mean


def _partials(images: Tensor) -> Tensor:
    n, _, h, w = images.shape
    return images.new_empty((n, -(-(h * w) // _TILE)), dtype=torch.float64)


def diff_augment(
    images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool
) -> Tensor:
    out, partials = torch.empty_like(images), _partials(images)
    run = _native.kernel("_cuda", "diff_augment", images.dtype, images.device)
    with _native.stream_of(images) as stream:
        run(
            *(
                images.data_ptr(),
                params.data_ptr(),
                index.data_ptr(),
                out.data_ptr(),
                partials.data_ptr(),
            ),
            *(*images.shape, len(params), align_corners, linear, stream),
        )
    return out


def diff_augment_bwd(grad: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Tensor:
    out, partials = torch.empty_like(grad), _partials(grad)
    run = _native.kernel("_cuda", "diff_augment_bwd", grad.dtype, grad.device)
    with _native.stream_of(grad) as stream:
        run(
            *(
                grad.data_ptr(),
                params.data_ptr(),
                index.data_ptr(),
                out.data_ptr(),
                partials.data_ptr(),
            ),
            *(*grad.shape, len(params), align_corners, stream),
        )
    return out
