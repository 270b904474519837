"""norm_act_pool through its C++ kernels: csrc/cpu and csrc/cuda take the same arguments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class NormActPool(NamedTuple):
    """The functions of the op for one module of kernels.

    Attributes:
        launch: Runs a kernel.
        new: Allocates feature maps like a tensor, of the sizes ``[N, C, H, W]``.
    """

    launch: Callable[..., None]
    new: Callable[..., Tensor]

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result and its statistics."""
        n, c, h, w = x.shape
        out, mean, rstd = (
            self.new(x, n, c, h // 2, w // 2),
            x.new_empty((n, c)),
            x.new_empty((n, c)),
        )
        tensors = (x, weight, bias, out, mean, rstd)
        self.launch("norm_act_pool", tensors, n, c, h, w, weight.shape[0], eps)
        return out, mean, rstd

    def backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients."""
        n, c, h, w = x.shape
        dx, dweight, dbias = (
            self.new(x, n, c, h, w),
            torch.empty_like(weight),
            torch.empty_like(bias),
        )
        inputs, partials = (grad, x, weight, bias, mean, rstd), x.new_empty((2, n, c))
        tensors = (*inputs, dx, dweight, dbias, partials)
        self.launch("norm_act_pool_bwd", tensors, n, c, h, w, weight.shape[0])
        return dx, dweight, dbias

    def tangent(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        """Return result, statistics and their derivatives."""
        (n, c, h, w), (*directions, eps) = x.shape, others
        feature_maps = [self.new(x, n, c, h // 2, w // 2) for _ in range(2)]
        outputs = (*feature_maps, *(x.new_empty((n, c)) for _ in range(4)))
        groups = directions[1].shape[0]
        tensors = (x, *directions, *outputs)
        self.launch("norm_act_pool_tangent", tensors, n, c, h, w, groups, eps)
        return outputs

    def backward_tangent(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients, each before its derivative."""
        x, weight = inputs[2], inputs[4]
        n, c, h, w = x.shape
        gradients = [self.new(x, n, c, h, w) for _ in range(2)]
        outputs = (*gradients, *(torch.empty_like(weight) for _ in range(4)))
        tensors = (*inputs, *outputs, x.new_empty((4, n, c)))
        self.launch("norm_act_pool_bwd_tangent", tensors, n, c, h, w, weight.shape[0])
        return outputs
