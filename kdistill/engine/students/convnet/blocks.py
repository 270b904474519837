"""What stands between two convolutions of a ConvNet (bias, norm, activation, pooling), as one layer with four passes.

``forward`` and ``backward``, and both with their derivatives in a direction (``*_tangent``).  The
standard block is the fused op; any other is composed from PyTorch and differentiated on its own by
``torch.func``: no graph spans more than one block.

Symbols: B images, K channels, h×w the map of the convolution, p the block's parameters (a tuple),
    ``x_dot`` the tangent of x.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdistill.engine.layers import EPS
from kdistill.ops.norm_act_pool import (
    norm_act_pool_bwd,
    norm_act_pool_bwd_tangent,
    norm_act_pool_fwd,
    norm_act_pool_tangent,
)

Parameters = tuple[Tensor, ...]


class Block(ABC):
    """One block; ``kept`` is what a forward pass leaves for the backward pass, beside its arguments."""

    @abstractmethod
    def forward(self, x: Tensor, p: Parameters) -> tuple[Tensor, Any]:
        """Return (out, kept) for the convolution's result ``x [B, K, h, w]``."""

    @abstractmethod
    def backward(
        self, grad: Tensor, x: Tensor, p: Parameters, kept: Any
    ) -> tuple[Tensor, Parameters]:
        """Return (dx, dp) from the gradient of ``out``."""

    @abstractmethod
    def sample_backward(
        self, grad: Tensor, x: Tensor, p: Parameters, kept: Any
    ) -> tuple[Tensor, Parameters]:
        """Return (dx, dp) like ``backward``, but dp of every image by itself: each ``[B, K]``."""

    @abstractmethod
    def forward_tangent(
        self, x: Tensor, x_dot: Tensor, p: Parameters, p_dot: Parameters
    ) -> tuple[Tensor, Tensor, Any]:
        """Return (out, out_dot, kept)."""

    @abstractmethod
    def backward_tangent(
        self,
        grad: Tensor,
        grad_dot: Tensor,
        x: Tensor,
        x_dot: Tensor,
        p: Parameters,
        p_dot: Parameters,
        kept: Any,
    ) -> tuple[Tensor, Tensor, Parameters, Parameters]:
        """Return (dx, dx_dot, dp, dp_dot)."""


class _FusedBlock(Block):
    """Instance norm, ReLU, 2×2 average pooling; p is (scale, shift).  The convolution's bias cancels and is not among them."""

    def forward(self, x: Tensor, p: Parameters) -> tuple[Tensor, Any]:
        out, *kept = norm_act_pool_fwd(x, *p, EPS)
        return out, kept

    def backward(
        self, grad: Tensor, x: Tensor, p: Parameters, kept: Any
    ) -> tuple[Tensor, Parameters]:
        dx, *dp = norm_act_pool_bwd(grad, x, *p, *kept)
        return dx, tuple(dp)

    def sample_backward(
        self, grad: Tensor, x: Tensor, p: Parameters, kept: Any
    ) -> tuple[Tensor, Parameters]:
        dx, *dp = norm_act_pool_bwd(
            grad, x, *(row.expand(len(x), -1) for row in p), *kept
        )  # a group of one image each
        return dx, tuple(dp)

    def forward_tangent(
        self, x: Tensor, x_dot: Tensor, p: Parameters, p_dot: Parameters
    ) -> tuple[Tensor, Tensor, Any]:
        out, out_dot, *kept = norm_act_pool_tangent(x, x_dot, p[0], p_dot[0], p[1], p_dot[1], EPS)
        return out, out_dot, kept

    def backward_tangent(
        self,
        grad: Tensor,
        grad_dot: Tensor,
        x: Tensor,
        x_dot: Tensor,
        p: Parameters,
        p_dot: Parameters,
        kept: Any,
    ) -> tuple[Tensor, Tensor, Parameters, Parameters]:
        found = norm_act_pool_bwd_tangent(grad, grad_dot, x, x_dot, p[0], p_dot[0], p[1], *kept)
        dx, dx_dot, dscale, dscale_dot, dshift, dshift_dot = found
        return dx, dx_dot, (dscale, dshift), (dscale_dot, dshift_dot)


class _ComposedBlock(Block):
    """Any differentiable ``function(x, *p) -> out``."""

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function

    def forward(self, x: Tensor, p: Parameters) -> tuple[Tensor, Any]:
        return self.function(x, *p), None

    def backward(
        self, grad: Tensor, x: Tensor, p: Parameters, kept: Any
    ) -> tuple[Tensor, Parameters]:
        dx, *dp = self._pull_back(grad, x, *p)
        return dx, tuple(dp)

    def sample_backward(
        self, grad: Tensor, x: Tensor, p: Parameters, kept: Any
    ) -> tuple[Tensor, Parameters]:
        def one(grad: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            return self._pull_back(grad[None], x[None], *p)

        dx, *dp = torch.func.vmap(one)(grad, x)
        return dx[:, 0], tuple(dp)

    def forward_tangent(
        self, x: Tensor, x_dot: Tensor, p: Parameters, p_dot: Parameters
    ) -> tuple[Tensor, Tensor, Any]:
        out, out_dot = torch.func.jvp(self.function, (x, *p), (x_dot, *p_dot))
        return out, out_dot, None

    def backward_tangent(
        self,
        grad: Tensor,
        grad_dot: Tensor,
        x: Tensor,
        x_dot: Tensor,
        p: Parameters,
        p_dot: Parameters,
        kept: Any,
    ) -> tuple[Tensor, Tensor, Parameters, Parameters]:
        values, tangents = torch.func.jvp(self._pull_back, (grad, x, *p), (grad_dot, x_dot, *p_dot))
        (dx, *dp), (dx_dot, *dp_dot) = values, tangents
        return dx, dx_dot, tuple(dp), tuple(dp_dot)

    def _pull_back(self, grad: Tensor, x: Tensor, *p: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.func.vjp(self.function, x, *p)[1](grad)
        return found


def fused() -> Block:
    """Return the standard block."""
    return _FusedBlock()


def composed(function: Callable[..., Tensor]) -> Block:
    """Return the block of ``function(x, *p) -> out``, twice differentiable in all arguments."""
    return _ComposedBlock(function)
