"""Bias, norm, activation and pooling of a ConvNet's block as one layer with four passes.

``forward`` and ``backward``, and both with their derivatives in a direction (``*_tangent``).  The
standard block is the fused op; any other is composed from PyTorch and differentiated on its own by
``torch.func``: no graph spans more than one block.

Symbols: B images, K channels, h×w the feature map of the convolution, p the block's parameters (a
    tuple); a pair (x, x_dot) is a value and its tangent.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from kdistill.engine.layers import EPS
from kdistill.engine.students.convnet.spec import ACTIVATIONS, ConvNetSpec
from kdistill.ops.norm_act_pool import (
    norm_act_pool,
    norm_act_pool_bwd,
    norm_act_pool_bwd_tangent,
    norm_act_pool_fwd,
    norm_act_pool_tangent,
)

Parameters = tuple[Tensor, ...]
Dual = tuple[Tensor, Tensor]  # a value and its tangent


class Block:
    """Any twice differentiable ``function(x, *p) -> out``.

    ``saved`` is what a forward pass leaves for the backward pass.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function

    def forward(self, x: Tensor, p: Parameters) -> tuple[Tensor, Any]:
        """Return (out, saved) for the convolution's result ``x [B, K, h, w]``."""
        return self.function(x, *p), None

    def backward(self, grad: Tensor, x: Tensor, p: Parameters, saved: Any) -> list[Tensor]:
        """Return [dx, *dp] from the gradient of ``out``."""
        return list(self._vjp(grad, x, *p))

    def sample_backward(self, grad: Tensor, x: Tensor, p: Parameters, saved: Any) -> list[Tensor]:
        """Return [dx, *dp] like ``backward``, but dp of every image by itself: each ``[B, K]``."""

        def of_one_image(grad: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            return self._vjp(grad[None], x[None], *p)

        dx, *dp = torch.func.vmap(of_one_image)(grad, x)
        return [dx[:, 0], *dp]

    def forward_tangent(self, x: Dual, p: Parameters, p_dot: Parameters) -> tuple[Dual, Any]:
        """Return ((out, out_dot), saved)."""
        return torch.func.jvp(self.function, (x[0], *p), (x[1], *p_dot)), None

    def backward_tangent(
        self, grad: Dual, x: Dual, p: Parameters, p_dot: Parameters, saved: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return [dx, *dp] and the tangents of all of them."""
        values = (grad[0], x[0], *p)
        out, out_dot = torch.func.jvp(self._vjp, values, (grad[1], x[1], *p_dot))
        return list(out), list(out_dot)

    def _vjp(self, grad: Tensor, x: Tensor, *p: Tensor) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = torch.func.vjp(self.function, x, *p)[1](grad)
        return gradients


class FusedBlock(Block):
    """Instance norm, ReLU, 2×2 average pooling; p is (scale, shift), for the bias cancels."""

    def __init__(self) -> None:
        super().__init__(norm_act_pool)

    def forward(self, x: Tensor, p: Parameters) -> tuple[Tensor, Any]:
        """Return (out, saved)."""
        out, *saved = norm_act_pool_fwd(x, *p, EPS)
        return out, saved

    def backward(self, grad: Tensor, x: Tensor, p: Parameters, saved: Any) -> list[Tensor]:
        """Return [dx, *dp]."""
        return list(norm_act_pool_bwd(grad, x, *p, *saved))

    def sample_backward(self, grad: Tensor, x: Tensor, p: Parameters, saved: Any) -> list[Tensor]:
        """Return [dx, *dp], dp of every image by itself: every image is a group of its own."""
        return self.backward(grad, x, tuple(row.expand(len(x), -1) for row in p), saved)

    def forward_tangent(self, x: Dual, p: Parameters, p_dot: Parameters) -> tuple[Dual, Any]:
        """Return ((out, out_dot), saved)."""
        out, out_dot, *saved = norm_act_pool_tangent(*x, p[0], p_dot[0], p[1], p_dot[1], EPS)
        return (out, out_dot), saved

    def backward_tangent(
        self, grad: Dual, x: Dual, p: Parameters, p_dot: Parameters, saved: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return [dx, *dp] and the tangents of all of them."""
        out = norm_act_pool_bwd_tangent(*grad, *x, p[0], p_dot[0], p[1], *saved)
        return list(out[::2]), list(out[1::2])


def block_layers(spec: ConvNetSpec) -> list[Block]:
    """Return the blocks of a ConvNet."""
    if spec.is_standard:
        return [FusedBlock()] * spec.depth
    return [Block(partial(_composed, spec, level)) for level in range(spec.depth)]


def pool(x: Tensor, pooling: str) -> Tensor:
    """Return 2×2 pooled feature maps; ``"none"`` returns ``x``."""
    if pooling == "none":
        return x
    return functional.avg_pool2d(x, 2) if pooling == "avg" else functional.max_pool2d(x, 2)


def _composed(spec: ConvNetSpec, level: int, x: Tensor, bias: Tensor, *affine: Tensor) -> Tensor:
    y = _normalised(spec, level, x + bias[:, None, None], affine)
    # torch's SiLU has no forward derivative of its backward pass
    active = y * torch.sigmoid(y) if spec.activation == "silu" else ACTIVATIONS[spec.activation](y)
    return pool(active, spec.pooling)


def _normalised(spec: ConvNetSpec, level: int, x: Tensor, affine: Parameters) -> Tensor:
    """Return normalised ``x``.

    Backward passes of torch's norms have no forward derivatives; those of these operations have.
    """
    if spec.norm == "none":
        return x
    over, axes = x, (0, 2, 3)
    if spec.norm != "batch":
        over, axes = x.unflatten(1, (spec.groups, -1)), (2, 3, 4)
    if spec.norm == "batch" and spec.statistics is not None:
        mean, variance = (s.to(x)[None, :, None, None] for s in spec.statistics[level])
    else:
        mean = over.mean(axes, keepdim=True)
        variance = (over - mean).square().mean(axes, keepdim=True)
    normal = ((over - mean) * torch.rsqrt(variance + EPS)).reshape(x.shape)
    return normal * affine[0][:, None, None] + affine[1][:, None, None]
