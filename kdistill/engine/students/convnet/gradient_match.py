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
from kdistill.engine.students.convnet import jvp
from kdistill.engine.students.convnet.passes import (
    GradAccumulator,
    PreparedNet,
    SavedChunk,
    labelled_chunks,
    logits_of,
    loss_and_grad_of_chunk,
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
    acc, chunks, tangents = GradAccumulator(net, theta), [], []
    for part, part_labels in labelled_chunks(spec, images, labels, MAPS):
        _, chunk = loss_and_grad_of_chunk(
            net, part, part_labels, len(images), acc, keep_gradients=True
        )
        chunks.append((chunk, part_labels))
    dot = prepare(spec, direction(acc.total()))
    for chunk, part_labels in chunks:
        _add_tangents(net, dot, chunk)
        _, _, *grads, _ = layers.softmax_cross_entropy_tangent(
            logits_of(net, chunk), jvp.logits_dot(net, dot, chunk), part_labels, len(images)
        )
        tangents.append(jvp.backward(net, dot, chunk, *grads))
    return tangents[0] if len(tangents) == 1 else torch.cat(tangents)


def _add_tangents(net: PreparedNet, dot: PreparedNet, chunk: SavedChunk) -> None:
    """Add the tangents in the direction ``dot`` to a chunk after its plain pass."""
    source_dot = None
    for layer, layer_dot, block in zip(net.layers, dot.layers, chunk.blocks, strict=True):
        pairs = [(block.operand, layer_dot.weight)]
        if source_dot is not None:
            pairs.append((layer.conv.input(source_dot), layer.weight))
        block.x_dot = layer.conv.output(len(chunk), *pairs)
        (_, source_dot), block.saved = layer.block.forward_tangent(
            (block.x, block.x_dot), layer.affine, layer_dot.affine
        )
    chunk.features_dot = source_dot.flatten(1)
