"""ConvNet-D: its gradient g, and then the tangent of dL/dimages in a direction v that depends on g.

The direction is known only when the backward pass has ended, so tangents cannot ride along as in
``_convnet_dual``.  What the plain pass found (operands of maps, weights and gradients) is kept
instead: a convolution then costs three products for g and four for the tangent, where two
independent passes take nine.  Symbols: see ``_convnet_fast``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students.convnet import passes as fast
from kdistill.engine.students.convnet.passes import Net, Sums

if TYPE_CHECKING:
    from kdistill.engine.students.convnet.network import ConvNet

MAPS = 3  # maps of a block that are kept: chunks are smaller by that


@dataclass
class MatchBlock:
    """One block of one chunk.

    The operand of its input and the convolution's result x; after the backward pass also the
    gradient of the block's result and the operand of the gradient of x.
    """

    operand: Tensor
    x: Tensor
    grad: Tensor | None = None
    up: Tensor | None = None


@dataclass
class MatchSaved:
    """One chunk of images after the plain pass."""

    blocks: list[MatchBlock]
    features: Tensor
    logits: Tensor
    grad: Tensor  # of the logits
    labels: Tensor


def grad_then_images_tangent(
    student: "ConvNet",
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    direction: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return what ``Student.grad_then_images_tangent`` promises for one network."""
    net, batch = fast.prepare(student, theta), images.shape[0]
    sums, parts = Sums(net, theta), fast.chunks_of(student, images, maps=MAPS)
    rows = [len(part) for part in parts]
    chunks = [
        _plain(net, part, y, sums, batch) for part, y in zip(parts, labels.split(rows), strict=True)
    ]
    dot = fast.prepare(student, direction(sums.finish()))
    found = [_tangent(net, dot, chunk, batch) for chunk in chunks]
    return found[0] if len(found) == 1 else torch.cat(found)


def _plain(net: Net, images: Tensor, labels: Tensor, sums: Sums, batch: int) -> MatchSaved:
    """Go forward and backward and add the gradients to ``sums``."""
    blocks, kept_by_block, source = [], [], images
    for level, conv in enumerate(net.convs):
        operand = conv.input(source)
        x = conv.output(len(images), (operand, net.weights[level]))
        source, kept = net.blocks[level].forward(x, net.affine[level])
        blocks.append(MatchBlock(operand, x))
        kept_by_block.append(kept)
    features = source.flatten(1)
    logits = layers.linear_fwd(features, net.weight, net.bias)
    _, grad_logits = layers.softmax_cross_entropy(logits, labels, batch)
    grad, weight, bias = layers.linear_bwd(grad_logits, features, net.weight)
    sums.parts[-2] += weight
    sums.parts[-1] += bias
    grad = grad.reshape(source.shape)
    for level in reversed(range(net.student.depth)):
        block, conv = blocks[level], net.convs[level]
        dx, daffine = net.blocks[level].backward(
            grad, block.x, net.affine[level], kept_by_block[level]
        )
        block.grad, block.up = grad, conv.grad(dx)
        sums.add_affine(level, daffine)
        sums.convs[level] = conv.weight_grad(sums.convs[level], (block.operand, block.up))
        if level > 0:
            grad = conv.input_grad(len(images), (block.up, net.weights[level]))
    return MatchSaved(blocks, features, logits, grad_logits, labels)


def _tangent(net: Net, dot: Net, saved: MatchSaved, batch: int) -> Tensor:
    """Return the tangent of dL/dimages of a chunk."""
    count, source_dot, kept_by_block, tangents = len(saved.features), None, [], []
    for level, (block, conv) in enumerate(zip(saved.blocks, net.convs, strict=True)):
        pairs = [(block.operand, dot.weights[level])]
        if source_dot is not None:
            pairs.append((conv.input(source_dot), net.weights[level]))
        x_dot = conv.output(count, *pairs)
        _, source_dot, kept = net.blocks[level].forward_tangent(
            block.x, x_dot, net.affine[level], dot.affine[level]
        )
        kept_by_block.append(kept)
        tangents.append(x_dot)
    assert source_dot is not None  # there is at least one block
    shape, features_dot = source_dot.shape, source_dot.flatten(1)
    logits_dot = layers.linear_fwd(features_dot, net.weight, dot.bias).addmm_(
        saved.features, dot.weight.t()
    )
    found = layers.softmax_cross_entropy_tangent(saved.logits, logits_dot, saved.labels, batch)
    grad_dot = torch.addmm(found[3] @ net.weight, saved.grad, dot.weight).reshape(shape)
    for level in reversed(range(net.student.depth)):
        block, conv = saved.blocks[level], net.convs[level]
        assert block.grad is not None and block.up is not None  # the plain pass has ended
        _, dx_dot, _, _ = net.blocks[level].backward_tangent(
            block.grad,
            grad_dot,
            block.x,
            tangents[level],
            net.affine[level],
            dot.affine[level],
            kept_by_block[level],
        )
        grad_dot = conv.input_grad(
            count, (conv.grad(dx_dot), net.weights[level]), (block.up, dot.weights[level])
        )
    return grad_dot
