"""ConvNet-D and its derivative in a direction of the weights, by passes of dual layers.

Every feature map x goes with ẋ = d/dε x(θ + εv).  Images do not move with θ, so the first
convolution has no tangent of its input.  Symbols as in ``passes``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students.convnet.blocks import Dual
from kdistill.engine.students.convnet.conv_products import Pair
from kdistill.engine.students.convnet.passes import (
    GradAccumulator,
    PreparedNet,
    SavedBlock,
    SavedChunk,
    labelled_chunks,
    logits_of,
    prepare,
)
from kdistill.engine.students.convnet.spec import ConvNetSpec
from kdistill.engine.students.results import GradJvp

# a dual pass keeps this many feature maps where a plain pass keeps one: its chunks are smaller
MAPS = 2


def grad_jvp(
    spec: ConvNetSpec,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    v: Tensor,
    want: Sequence[str],
) -> GradJvp:
    """Return ``Student.grad_jvp``; every chunk goes forward and backward while it is in cache."""
    net, dot = prepare(spec, theta), prepare(spec, v)
    acc = GradAccumulator(net, theta) if "grad" in want else None
    acc_dot = GradAccumulator(net, theta) if "hvp" in want else None
    losses, images_dot, labels_dot = [], [], []
    for part, part_labels in labelled_chunks(spec, images, labels, MAPS):
        chunk = _forward(net, dot, part)
        loss, loss_dot, *grads, label_dot = layers.softmax_cross_entropy_tangent(
            logits_of(net, chunk), logits_dot(net, dot, chunk), part_labels, len(images)
        )
        losses.append(torch.stack([loss, loss_dot]))
        labels_dot.append(label_dot)
        images_dot.append(backward(net, dot, chunk, *grads, acc, acc_dot, "images" in want))
    loss, loss_dot = torch.stack(losses).sum(0)
    return GradJvp(
        loss=loss,
        loss_tangent=loss_dot,
        grad=acc.total() if acc is not None else None,
        hvp=acc_dot.total() if acc_dot is not None else None,
        images_tangent=torch.cat(images_dot) if "images" in want else None,
        labels_tangent=torch.cat(labels_dot) if labels.is_floating_point() else None,
    )


def logits_dot(net: PreparedNet, dot: PreparedNet, chunk: SavedChunk) -> Tensor:
    """Return the tangent of the logits of a chunk."""
    moved = layers.linear_fwd(chunk.features_dot, net.weight, dot.bias)
    return moved.addmm_(chunk.features, dot.weight.t())


def backward(
    net: PreparedNet,
    dot: PreparedNet,
    chunk: SavedChunk,
    grad: Tensor,
    grad_dot: Tensor,
    acc: GradAccumulator | None = None,
    acc_dot: GradAccumulator | None = None,
    want_images: bool = True,
) -> Tensor | None:
    """Return the tangent of dL/dimages of a chunk, or None.

    Args:
        net: The network.
        dot: The direction.
        chunk: The chunk after its forward pass with tangents; gradients that a plain backward pass
            has kept in it are not computed again.
        grad: Gradient of the logits.
        grad_dot: Tangent of ``grad``.
        acc: What dL/dtheta is added to.
        acc_dot: What H v is added to.
        want_images: Whether the tangent of dL/dimages is asked for.
    """
    grad, grad_dot = _backward_classifier(net, dot, chunk, grad, grad_dot, acc, acc_dot)
    batch = len(grad)
    for level in reversed(range(net.spec.depth)):
        block, layer, layer_dot = chunk.blocks[level], net.layers[level], dot.layers[level]
        conv, grad = layer.conv, grad if block.grad is None else block.grad
        (dx, *affine), (dx_dot, *affine_dot) = layer.block.backward_tangent(
            (grad, grad_dot), (block.x, block.x_dot), layer.affine, layer_dot.affine, block.saved
        )
        up = conv.grad(dx) if block.grad_operand is None else block.grad_operand
        up_dot = conv.grad(dx_dot)
        if acc_dot is not None:
            pairs = _product_rule(block.operand, block.operand_dot, up, up_dot)
            acc_dot.add(level, affine_dot, *pairs)
        if acc is not None:
            acc.add(level, affine, (block.operand, up))
        if level > 0 or want_images:
            grad_dot = conv.input_grad(batch, (up_dot, layer.weight), (up, layer_dot.weight))
        if level > 0 and chunk.blocks[level - 1].grad is None:
            grad = conv.input_grad(batch, (up, layer.weight))
    return grad_dot if want_images else None


def _backward_classifier(
    net: PreparedNet,
    dot: PreparedNet,
    chunk: SavedChunk,
    grad: Tensor,
    grad_dot: Tensor,
    acc: GradAccumulator | None,
    acc_dot: GradAccumulator | None,
) -> Dual:
    """Return the gradient of the last feature map and its tangent."""
    if acc is not None:
        acc.weight.addmm_(grad.t(), chunk.features)
        acc.bias.add_(grad.sum(0))
    if acc_dot is not None:
        acc_dot.weight.addmm_(grad_dot.t(), chunk.features).addmm_(grad.t(), chunk.features_dot)
        acc_dot.bias.add_(grad_dot.sum(0))
    shape, out_dot = net.features_shape(len(grad)), grad_dot @ net.weight
    return (grad @ net.weight).view(shape), torch.addmm(out_dot, grad, dot.weight).view(shape)


def _forward(net: PreparedNet, dot: PreparedNet, images: Tensor) -> SavedChunk:
    blocks, source, source_dot = [], images, None
    for layer, layer_dot in zip(net.layers, dot.layers, strict=True):
        operand = layer.conv.input(source)
        operand_dot = None if source_dot is None else layer.conv.input(source_dot)
        pairs = _product_rule(operand, operand_dot, layer.weight, layer_dot.weight)
        x = layer.conv.output(len(images), (operand, layer.weight))
        x_dot = layer.conv.output(len(images), *pairs)
        out, saved = layer.block.forward_tangent((x, x_dot), layer.affine, layer_dot.affine)
        blocks.append(SavedBlock(source, operand, x, saved, operand_dot, x_dot))
        source, source_dot = out
    return SavedChunk(blocks, source.flatten(1), source_dot.flatten(1))


def _product_rule(a: Tensor, a_dot: Tensor | None, b: Tensor, b_dot: Tensor) -> list[Pair]:
    """Return the pairs whose products sum to the tangent of a product of operands."""
    return [(a, b_dot)] if a_dot is None else [(a_dot, b), (a, b_dot)]
