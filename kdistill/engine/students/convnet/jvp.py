"""ConvNet-D and its derivative in a direction of the weights: one forward and one backward pass of dual layers.

Every feature map x goes with ẋ = d/dε x(θ + εv).  Images do not move with θ, so the first
convolution has no tangent of its input.  Symbols as in ``passes``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students.convnet.blocks import Dual
from kdistill.engine.students.convnet.conv_products import Pair
from kdistill.engine.students.convnet.passes import (
    GradAccumulator,
    PreparedNet,
    labelled_chunks,
    prepare,
)
from kdistill.engine.students.convnet.spec import ConvNetSpec
from kdistill.engine.students.results import GradJvp

# a dual pass keeps this many feature maps where a plain pass keeps one: its chunks are smaller
MAPS = 2


@dataclass
class DualBlock:
    """One block of one chunk after the forward pass of value and tangent.

    Attributes:
        operand: Operand of the convolution's input.
        operand_dot: Operand of that input's tangent; None: zero.
        x: Output of the convolution and its tangent.
        saved: What the block's forward pass left for its backward pass.
        grad: Gradient of the block's output where another pass has found it.
        grad_operand: Operand of the gradient of ``x`` where another pass has found it.
    """

    operand: Tensor
    operand_dot: Tensor | None
    x: Dual
    saved: Any
    grad: Tensor | None = None
    grad_operand: Tensor | None = None


@dataclass
class DualChunk:
    """One chunk of images after the forward pass."""

    blocks: list[DualBlock]
    features: Tensor
    features_dot: Tensor


@dataclass(frozen=True)
class DualPass:
    """A network, its direction in the same layout, and the gradients that chunks are added to.

    Attributes:
        net: The network.
        dot: The direction.
        acc: Sums of dL/dtheta; None where it is not asked for.
        acc_dot: Sums of H v; None where it is not asked for.
        want_images: Whether the tangent of dL/dimages is asked for.
    """

    net: PreparedNet
    dot: PreparedNet
    acc: GradAccumulator | None
    acc_dot: GradAccumulator | None
    want_images: bool

    def logits_dot(self, chunk: DualChunk) -> Tensor:
        """Return the tangent of the logits."""
        moved = layers.linear_fwd(chunk.features_dot, self.net.weight, self.dot.bias)
        return moved.addmm_(chunk.features, self.dot.weight.t())

    def backward(self, chunk: DualChunk, grad: Tensor, grad_dot: Tensor) -> Tensor | None:
        """Return the tangent of dL/dimages if it is asked for, and add the gradients of all parameters.

        Args:
            chunk: The chunk after its forward pass.
            grad: Gradient of the logits.
            grad_dot: Tangent of ``grad``.
        """
        shape = self.net.features_shape(len(grad))
        dual = [part.reshape(shape) for part in self._backward_classifier(chunk, grad, grad_dot)]
        return self._backward_blocks(chunk, *dual)

    def _backward_classifier(self, chunk: DualChunk, grad: Tensor, grad_dot: Tensor) -> Dual:
        acc, acc_dot = self.acc, self.acc_dot
        if acc is not None:
            acc.weight.addmm_(grad.t(), chunk.features)
            acc.bias.add_(grad.sum(0))
        if acc_dot is not None:
            acc_dot.weight.addmm_(grad_dot.t(), chunk.features)
            acc_dot.weight.addmm_(grad.t(), chunk.features_dot)
            acc_dot.bias.add_(grad_dot.sum(0))
        weight = self.net.weight
        return grad @ weight, torch.addmm(grad_dot @ weight, grad, self.dot.weight)

    def _backward_blocks(self, chunk: DualChunk, grad: Tensor, grad_dot: Tensor) -> Tensor | None:
        batch = len(grad)
        for level in reversed(range(self.net.spec.depth)):
            block, layer, dot = chunk.blocks[level], self.net.layers[level], self.dot.layers[level]
            conv, grad = layer.conv, grad if block.grad is None else block.grad
            (dx, *affine), (dx_dot, *affine_dot) = layer.block.backward_tangent(
                (grad, grad_dot), block.x, layer.affine, dot.affine, block.saved
            )
            up = conv.grad(dx) if block.grad_operand is None else block.grad_operand
            up_dot = conv.grad(dx_dot)
            if self.acc_dot is not None:
                pairs = product_rule(block.operand, block.operand_dot, up, up_dot)
                self.acc_dot.add(level, affine_dot, *pairs)
            if self.acc is not None:
                self.acc.add(level, affine, (block.operand, up))
            if level > 0 or self.want_images:
                grad_dot = conv.input_grad(batch, (up_dot, layer.weight), (up, dot.weight))
            if level > 0 and chunk.blocks[level - 1].grad is None:
                grad = conv.input_grad(batch, (up, layer.weight))
        return grad_dot if self.want_images else None


def grad_jvp(
    spec: ConvNetSpec,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    v: Tensor,
    want: Sequence[str],
) -> GradJvp:
    """Return what ``Student.grad_jvp`` promises; every chunk goes forward and backward while it is in cache."""
    net, dot = prepare(spec, theta), prepare(spec, v)
    acc, acc_dot = (
        GradAccumulator(net, theta) if name in want else None for name in ("grad", "hvp")
    )
    run = DualPass(net, dot, acc, acc_dot, "images" in want)
    losses, images_dot, labels_dot = [], [], []
    for part, part_labels in labelled_chunks(spec, images, labels, MAPS):
        chunk = _forward(net, dot, part)
        logits = layers.linear_fwd(chunk.features, net.weight, net.bias)
        loss, loss_dot, grad, grad_dot, label_dot = layers.softmax_cross_entropy_tangent(
            logits, run.logits_dot(chunk), part_labels, len(images)
        )
        losses.append(torch.stack([loss, loss_dot]))
        labels_dot.append(label_dot)
        images_dot.append(run.backward(chunk, grad, grad_dot))
    loss, loss_dot = torch.stack(losses).sum(0)
    return GradJvp(
        loss=loss,
        loss_tangent=loss_dot,
        grad=acc.total() if acc is not None else None,
        hvp=acc_dot.total() if acc_dot is not None else None,
        images_tangent=_joined(images_dot),
        labels_tangent=_joined(labels_dot),
    )


def product_rule(a: Tensor, a_dot: Tensor | None, b: Tensor, b_dot: Tensor) -> list[Pair]:
    """Return the pairs whose products sum to the tangent of a product of operands."""
    return [(a, b_dot)] if a_dot is None else [(a_dot, b), (a, b_dot)]


def _forward(net: PreparedNet, dot: PreparedNet, images: Tensor) -> DualChunk:
    blocks: list[DualBlock] = []
    source, source_dot = images, None
    for layer, layer_dot in zip(net.layers, dot.layers, strict=True):
        operand = layer.conv.input(source)
        operand_dot = None if source_dot is None else layer.conv.input(source_dot)
        pairs = product_rule(operand, operand_dot, layer.weight, layer_dot.weight)
        x = layer.conv.output(len(images), (operand, layer.weight))
        x_dot = layer.conv.output(len(images), *pairs)
        (source, source_dot), saved = layer.block.forward_tangent(
            (x, x_dot), layer.affine, layer_dot.affine
        )
        blocks.append(DualBlock(operand, operand_dot, (x, x_dot), saved))
    assert source_dot is not None  # there is at least one block
    return DualChunk(blocks, source.flatten(1), source_dot.flatten(1))


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None
