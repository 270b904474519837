"""The 3×3 convolution of a block as sums of products of operands, without an autograd graph.

A convolution has three operands (input x, weight w, gradient ȳ of the output) and three products:

    y = x ∗ w        x̄ = ȳ ∗ᵀ w        w̄ = x ⋆ ȳ

``input``, ``weight`` and ``grad`` bring an operand into the form that the products want, once;
every product takes one pair of
operands or two and returns the sum: ẏ is ``output((ẋ, w), (x, ẇ))``.

Symbols: B images, C channels in, K channels out, H×W the map that comes in, h×w the one that goes
    out.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as functional
from torch import Tensor

from kdistill.engine.precision import asked_precision
from kdistill.engine.winograd_rule import PATCH_CHANNELS, asked_convolution, uses_winograd
from kdistill.errors import ShapeError
from kdistill.ops.winograd_conv import (
    winograd_conv_input_grad,
    winograd_conv_output,
    winograd_conv_weight_grad,
)

Pair = tuple[Tensor, Tensor]


class Convolution(ABC):
    """A 3×3 convolution with stride 1 and without bias, of maps ``[B, C, side, side]``; see the module.

    ``operands`` is the dtype of operands where that is not the maps'; sums of products are float32
    then.
    """

    def __init__(self, padding: int, side: int, operands: torch.dtype | None = None):
        self.padding, self.side, self.out_side, self.operands = (
            padding,
            side,
            side + 2 * padding - 2,
            operands,
        )

    def _operand(self, x: Tensor) -> Tensor:
        return x if self.operands is None else x.to(self.operands)

    @abstractmethod
    def input(self, x: Tensor) -> Tensor:
        """Return the operand of ``x [B, C, H, W]``."""

    @abstractmethod
    def weight(self, weight: Tensor) -> Tensor:
        """Return the operand of ``weight [K, C, 3, 3]``."""

    @abstractmethod
    def grad(self, grad: Tensor) -> Tensor:
        """Return the operand of a gradient ``[B, K, h, w]``."""

    @abstractmethod
    def output(self, batch: int, *pairs: Pair) -> Tensor:
        """Return the sum over (input, weight) of their convolutions, ``[B, K, h, w]``, channels-last."""

    @abstractmethod
    def input_grad(self, batch: int, *pairs: Pair) -> Tensor:
        """Return the sum over (grad, weight) of the gradients in the input, ``[B, C, H, W]``."""

    @abstractmethod
    def weight_grad(self, total: Tensor | None, *pairs: Pair) -> Tensor:
        """Return ``total`` plus the sum over (input, grad) of the weight gradients, as an operand; ``total`` may change."""

    @abstractmethod
    def from_weight(self, total: Tensor) -> Tensor:
        """Return what ``weight_grad`` summed, as ``[K, C, 3, 3]``."""


class _Patches(Convolution):
    """One GEMM on the 3×3 neighbourhoods, for few channels."""

    def input(self, x: Tensor) -> Tensor:
        return patches(self._operand(x), self.padding)  # [9*C, B*h*w]

    def weight(self, weight: Tensor) -> Tensor:
        return self._operand(weight).reshape(weight.shape[0], -1).t()  # [9*C, K]

    def grad(self, grad: Tensor) -> Tensor:
        return (
            self._operand(grad).permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
        )  # [B*h*w, K], a view when channels are last

    def output(self, batch: int, *pairs: Pair) -> Tensor:
        rows = _sum_of_products([(x.t(), w) for x, w in pairs])
        return rows.view(batch, self.out_side, self.out_side, rows.shape[1]).permute(0, 3, 1, 2)

    def input_grad(self, batch: int, *pairs: Pair) -> Tensor:
        columns = _sum_of_products([(w, y.t()) for y, w in pairs])
        return unpatch(columns, (batch, columns.shape[0] // 9, self.side, self.side), self.padding)

    def weight_grad(self, total: Tensor | None, *pairs: Pair) -> Tensor:
        return _sum_of_products(list(pairs), total)

    def from_weight(self, total: Tensor) -> Tensor:
        return total.t().reshape(total.shape[1], -1, 3, 3)


class _Winograd(Convolution):
    """A quarter of the multiplications on maps whose sides are multiples of 4; docs/ops/winograd_conv.md."""

    def input(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    grad = input

    def weight(self, weight: Tensor) -> Tensor:
        return weight.contiguous()

    def output(self, batch: int, *pairs: Pair) -> Tensor:
        return winograd_conv_output(*pairs, padding=self.padding)

    def input_grad(self, batch: int, *pairs: Pair) -> Tensor:
        return winograd_conv_input_grad(*pairs, padding=self.padding)

    def weight_grad(self, total: Tensor | None, *pairs: Pair) -> Tensor:
        found = winograd_conv_weight_grad(*pairs, padding=self.padding)
        return found if total is None else total.add_(found)

    def from_weight(self, total: Tensor) -> Tensor:
        return total


class _Direct(Convolution):
    """The library's convolution."""

    def input(self, x: Tensor) -> Tensor:
        return self._operand(x.contiguous(memory_format=torch.channels_last))

    weight = grad = input

    def output(self, batch: int, *pairs: Pair) -> Tensor:
        return _sum([functional.conv2d(x, w, padding=self.padding) for x, w in pairs])

    def input_grad(self, batch: int, *pairs: Pair) -> Tensor:
        return _sum([self._backward(y, None, w, batch)[0] for y, w in pairs])

    def weight_grad(self, total: Tensor | None, *pairs: Pair) -> Tensor:
        found = _sum([self._backward(y, x, None, x.shape[0])[1] for x, y in pairs])
        return found if total is None else total.add_(found)

    def from_weight(self, total: Tensor) -> Tensor:
        return total

    def _backward(self, grad: Tensor, x: Tensor | None, weight: Tensor | None, batch: int) -> Pair:
        wanted = [weight is not None, x is not None, False]
        channels = (weight if weight is not None else x).shape[1]  # type: ignore[union-attr]
        # of an operand that its product does not need only shape and strides are looked at; with
        # others it would be copied, and cuDNN would turn the gradient around
        if x is None:
            x = _channels_last_like(grad, batch, channels, self.side, self.side)
        if weight is None:
            weight = _channels_last_like(grad, grad.shape[1], channels, 3, 3)
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], [self.padding] * 2, [1, 1], False, [0, 0], 1, wanted
        )
        return dx, dweight


def convolution_for(
    channels: int, width: int, padding: int, side: int, like: Tensor
) -> Convolution:
    """Return the fastest convolution for these sizes on the device of ``like``; ``KDISTILL_CONVOLUTION`` chooses another one.

    Raises:
        ConfigError: ``KDISTILL_CONVOLUTION`` is unknown.
        ShapeError: The precision that is asked for does not fit the dtype of ``like``.
    """
    asked_convolution()
    operands = _operands(like)
    if channels <= PATCH_CHANNELS:
        return _Patches(padding, side, operands)
    return (
        _Winograd(padding, side)
        if uses_winograd(channels, width, side + 2 * padding - 2, like)
        else _Direct(padding, side, operands)
    )


def convolution(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """Return the convolution of ``x`` plus ``bias [K]``, differentiable, in the precision that is asked for."""
    operands = _operands(x)
    if operands is None:
        return functional.conv2d(x, weight, bias, padding=padding)
    return (
        functional.conv2d(x.to(operands), weight.to(operands), padding=padding).to(x.dtype)
        + bias[:, None, None]
    )


def _operands(like: Tensor) -> torch.dtype | None:
    """Return the dtype that operands are rounded to, or None."""
    if asked_precision() != "bf16":
        return None
    if like.dtype != torch.float32:
        raise ShapeError(
            f"precision: expected float32 tensors under bf16, got {like.dtype}; use fp32 for others"
        )
    return torch.bfloat16


def patches(images: Tensor, padding: int) -> Tensor:
    """Return the 3×3 neighbourhoods of ``images [B, C, H, W]`` as columns, ``[9*C, B*h*w]`` with rows in the order (c, dy, dx).

    Cost: writes ``9*B*C*h*w`` elements in runs of ``w``.
    """
    batch, channels, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    out = (batch, height + 2 * padding - 2, width + 2 * padding - 2)
    row, column = padded.stride()[2:]
    windows = padded.as_strided(
        (channels, 3, 3, *out), (padded.stride(1), row, column, padded.stride(0), row, column)
    )
    return windows.reshape(9 * channels, -1)


def unpatch(columns: Tensor, shape: tuple[int, int, int, int], padding: int) -> Tensor:
    """Return the transpose of ``patches`` applied to ``columns``: images of the given ``shape [B, C, H, W]``."""
    batch, channels, height, width = shape
    h, w = height + 2 * padding - 2, width + 2 * padding - 2
    windows = columns.view(channels, 3, 3, batch, h, w)
    out = columns.new_zeros((channels, batch, height + 2 * padding, width + 2 * padding))
    for dy in range(3):
        for dx in range(3):
            out[:, :, dy : dy + h, dx : dx + w] += windows[:, dy, dx]
    return (
        out[:, :, padding : padding + height, padding : padding + width]
        .transpose(0, 1)
        .contiguous()
    )


def _sum_of_products(pairs: list[Pair], total: Tensor | None = None) -> Tensor:
    """Return ``total + sum a @ b``."""
    for a, b in pairs:
        if a.dtype == torch.bfloat16:
            product = torch.mm(a, b).float()
            total = product if total is None else total.add_(product)
        else:
            total = torch.mm(a, b) if total is None else torch.addmm(total, a, b, out=total)
    assert total is not None
    return total


def _sum(terms: list[Tensor]) -> Tensor:
    total, *others = (x.float() if x.dtype == torch.bfloat16 else x for x in terms)
    for term in others:
        total = total.add_(term)
    return total


def _channels_last_like(like: Tensor, *sizes: int) -> Tensor:
    return torch.empty(
        sizes, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
