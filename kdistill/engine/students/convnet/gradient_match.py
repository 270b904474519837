"""ConvNet-D: its gradient g, and then the tangent of dL/dimages in a direction v that depends on g.

The direction is known only when the backward pass has ended, so tangents cannot ride along as in
``jvp``.  The operands of feature maps, weights and gradients of the plain pass are kept instead: a
convolution then costs three products for g and four for the tangent, where two independent passes
take nine.  Symbols as in ``passes``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students.convnet.jvp import DualBlock, DualChunk, DualPass
from kdistill.engine.students.convnet.passes import (
    GradAccumulator,
    PreparedNet,
    SavedChunk,
    backward_from_logits,
    forward_chunk,
    labelled_chunks,
    logits_of,
    prepare,
)
from kdistill.engine.students.convnet.spec import ConvNetSpec

MAPS = 3  # feature maps of a block that are kept: chunks are smaller by that


def grad_then_images_tangent(
    spec: ConvNetSpec,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    direction: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return what ``Student.grad_then_images_tangent`` promises for one network."""
    net = prepare(spec, theta)
    acc, chunks = GradAccumulator(net, theta), []
    for part, part_labels in labelled_chunks(spec, images, labels, MAPS):
        chunk = forward_chunk(net, part, keep_operands=True)
        logits = logits_of(net, chunk)
        _, grad = layers.softmax_cross_entropy(logits, part_labels, len(images))
        backward_from_logits(net, chunk, grad, acc, keep_gradients=True)
        chunks.append((chunk, logits, part_labels))
    run = DualPass(net, prepare(spec, direction(acc.total())), None, None, want_images=True)
    tangents = []
    for chunk, logits, part_labels in chunks:
        dual = _forward_tangent(net, run.dot, chunk)
        _, _, grad, grad_dot, _ = layers.softmax_cross_entropy_tangent(
            logits, run.logits_dot(dual), part_labels, len(images)
        )
        tangent = run.backward(dual, grad, grad_dot)
        assert tangent is not None  # it was asked for
        tangents.append(tangent)
    return tangents[0] if len(tangents) == 1 else torch.cat(tangents)


def _forward_tangent(net: PreparedNet, dot: PreparedNet, chunk: SavedChunk) -> DualChunk:
    """Return a chunk after its plain pass with the tangents in the direction ``dot``."""
    source_dot, blocks = None, []
    for layer, layer_dot, block in zip(net.layers, dot.layers, chunk.blocks, strict=True):
        assert block.operand is not None and block.x is not None  # the plain pass kept them
        pairs = [(block.operand, layer_dot.weight)]
        if source_dot is not None:
            pairs.append((layer.conv.input(source_dot), layer.weight))
        x = block.x, layer.conv.output(len(chunk.features), *pairs)
        (_, source_dot), saved = layer.block.forward_tangent(x, layer.affine, layer_dot.affine)
        blocks.append(DualBlock(block.operand, None, x, saved, block.grad, block.grad_operand))
    assert source_dot is not None  # there is at least one block
    return DualChunk(blocks, chunk.features, source_dot.flatten(1))
