"""The 3×3 convolution of a block as sums of products of operands, without an autograd graph.

A convolution has three operands (input x, weight w, gradient ȳ of the output) and three products:

    y = x ∗ w        x̄ = ȳ ∗ᵀ w        w̄ = x ⋆ ȳ

``input``, ``weight`` and ``grad`` bring an operand into the form that the products take, once;
every product takes one pair of operands or two and returns the sum: ẏ is
``output((ẋ, w), (x, ẇ))``.

Symbols: B images, C channels in, K channels out, H×W the input's sides, h×w the output's.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from kdistill.engine.convolve import PATCH_CHANNELS, asked_convolution, uses_winograd
from kdistill.engine.precision import asked_precision
from kdistill.errors import ShapeError
from kdistill.ops.winograd_conv import (
    winograd_conv_input_grad,
    winograd_conv_output,
    winograd_conv_weight_grad,
)

Pair = tuple[Tensor, Tensor]


class Convolution:
    """A 3×3 convolution of ``[B, C, side, side]`` by the library, with stride 1, without bias.

    ``operands`` is the dtype of operands where that is not the feature maps'; sums of products are
    float32 then.
    """

    def __init__(self, padding: int, side: int, operands: torch.dtype | None = None):
        self.padding, self.side, self.out_side = padding, side, side + 2 * padding - 2
        self.operands = operands

    def _operand(self, x: Tensor) -> Tensor:
        return x if self.operands is None else x.to(self.operands)

    def input(self, x: Tensor) -> Tensor:
        """Return the operand of ``x [B, C, H, W]``."""
        return self._operand(x.contiguous(memory_format=torch.channels_last))

    def weight(self, weight: Tensor) -> Tensor:
        """Return the operand of ``weight [K, C, 3, 3]``."""
        return self.input(weight)

    def grad(self, grad: Tensor) -> Tensor:
        """Return the operand of a gradient ``[B, K, h, w]``."""
        return self.input(grad)

    def output(self, batch: int, *pairs: Pair) -> Tensor:
        """Return the sum over (input, weight) of their convolutions, ``[B, K, h, w]``."""
        return _sum([functional.conv2d(x, w, padding=self.padding) for x, w in pairs])

    def input_grad(self, batch: int, *pairs: Pair) -> Tensor:
        """Return the sum over (grad, weight) of the gradients in the input, ``[B, C, H, W]``."""
        return _sum([self._backward(y, None, w, batch)[0] for y, w in pairs])

    def weight_grad(self, total: Tensor | None, *pairs: Pair) -> Tensor:
        """Return ``total`` plus the sum over (input, grad) of weight gradients, as an operand.

        ``total`` may change.
        """
        gradient = _sum([self._backward(y, x, None, x.shape[0])[1] for x, y in pairs])
        return gradient if total is None else total.add_(gradient)

    def from_weight(self, total: Tensor) -> Tensor:
        """Return the result of ``weight_grad`` as ``[K, C, 3, 3]``."""
        return total

    def _backward(self, grad: Tensor, x: Tensor | None, weight: Tensor | None, batch: int) -> Pair:
        mask = [weight is not None, x is not None, False]
        channels = (weight if weight is not None else x).shape[1]  # type: ignore[union-attr]
        # only shape and strides matter of an operand that its product does not need; with other
        # strides it would be copied, and cuDNN would transpose the gradient
        if x is None:
            x = _channels_last_like(grad, batch, channels, self.side, self.side)
        if weight is None:
            weight = _channels_last_like(grad, grad.shape[1], channels, 3, 3)
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], [self.padding] * 2, [1, 1], False, [0, 0], 1, mask
        )
        return dx, dweight


class _Patches(Convolution):
    """One GEMM on the 3×3 neighbourhoods, for few channels."""

    def input(self, x: Tensor) -> Tensor:
        return patches(self._operand(x), self.padding)  # [9*C, B*h*w]

    def weight(self, weight: Tensor) -> Tensor:
        return self._operand(weight).reshape(weight.shape[0], -1).t()  # [9*C, K]

    def grad(self, grad: Tensor) -> Tensor:
        rows = self._operand(grad).permute(0, 2, 3, 1)  # a view when channels are last
        return rows.reshape(-1, grad.shape[1])  # [B*h*w, K]

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
    """Winograd's algorithm, a quarter of the multiplications; docs/ops/winograd_conv.md."""

    def weight(self, weight: Tensor) -> Tensor:
        return weight.contiguous()

    def output(self, batch: int, *pairs: Pair) -> Tensor:
        return winograd_conv_output(*pairs, padding=self.padding)

    def input_grad(self, batch: int, *pairs: Pair) -> Tensor:
        return winograd_conv_input_grad(*pairs, padding=self.padding)

    def weight_grad(self, total: Tensor | None, *pairs: Pair) -> Tensor:
        gradient = winograd_conv_weight_grad(*pairs, padding=self.padding)
        return gradient if total is None else total.add_(gradient)


def convolution_for(
    channels: int, width: int, padding: int, side: int, like: Tensor
) -> Convolution:
    """Return the fastest convolution for these sizes on the device of ``like``.

    ``KDISTILL_CONVOLUTION`` overrides the choice.

    Raises:
        ConfigError: ``KDISTILL_CONVOLUTION`` is unknown.
        ShapeError: The precision that is asked for does not fit the dtype of ``like``.
    """
    asked_convolution()
    operands = _operands(like)
    if channels <= PATCH_CHANNELS:
        return _Patches(padding, side, operands)
    if uses_winograd(channels, width, side + 2 * padding - 2, like):
        return _Winograd(padding, side)
    return Convolution(padding, side, operands)


def convolution(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """Return the differentiable convolution of ``x`` plus ``bias [K]`` in the asked precision."""
    operands = _operands(x)
    if operands is None:
        return functional.conv2d(x, weight, bias, padding=padding)
    out = functional.conv2d(x.to(operands), weight.to(operands), padding=padding)
    return out.to(x.dtype) + bias[:, None, None]


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
    """Return the 3×3 neighbourhoods of ``images [B, C, H, W]`` as the columns of ``[9*C, B*h*w]``.

    The order of the rows is (c, dy, dx).

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
    """Return the transpose of ``patches`` applied to ``columns``, images of ``shape``."""
    batch, channels, height, width = shape
    h, w = height + 2 * padding - 2, width + 2 * padding - 2
    windows = columns.view(channels, 3, 3, batch, h, w)
    out = columns.new_zeros((channels, batch, height + 2 * padding, width + 2 * padding))
    for dy in range(3):
        for dx in range(3):
            out[:, :, dy : dy + h, dx : dx + w] += windows[:, dy, dx]
    inner = out[:, :, padding : padding + height, padding : padding + width]
    return inner.transpose(0, 1).contiguous()


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
