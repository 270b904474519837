"""ConvNet-D's per-sample gradient norms, without making a per-sample gradient.

The gradient of a sum of losses in a feature map is, image by image, that of the image's own loss.
So an ordinary backward pass without weight gradients has all that is needed: a layer's input and
the gradient of its output give the squared norm of each image's weight gradient
(``conv_grad_sqnorm``), while both are in cache; a block's scale and shift get one row per image.
Symbols as in ``passes``.
"""

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students.convnet.passes import (
    PreparedNet,
    forward_chunk,
    labelled_chunks,
    logits_of,
    prepare,
)
from kdistill.engine.students.convnet.spec import ConvNetSpec
from kdistill.engine.students.results import SampleGrads
from kdistill.ops.conv_grad_sqnorm import conv_grad_sqnorm


def sample_grads(spec: ConvNetSpec, theta: Tensor, images: Tensor, labels: Tensor) -> SampleGrads:
    """Return all of ``Student.sample_grads``, chunk by chunk."""
    net = prepare(spec, theta)
    parts = [_chunk(net, *pair) for pair in labelled_chunks(spec, images, labels)]
    return SampleGrads(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _chunk(net: PreparedNet, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, and squared norms over all parameters and over the last layer."""
    chunk, batch = forward_chunk(net, images), len(images)
    logits = logits_of(net, chunk)
    _, grad_logits = layers.softmax_cross_entropy(logits, labels, 1)
    last = layers.linear_grad_sqnorm(grad_logits, chunk.features)
    squares = last.clone()
    grad = (grad_logits @ net.weight).reshape(net.features_shape(batch))
    for level in reversed(range(net.spec.depth)):
        layer, block = net.layers[level], chunk.blocks.pop()
        dx, *affine = layer.block.sample_backward(grad, block.x, layer.affine, block.saved)
        squares += conv_grad_sqnorm(block.source, dx, layer.conv.padding)
        for rows in affine:
            squares += rows.double().square().sum(1)
        if level > 0:
            grad = layer.conv.input_grad(batch, (layer.conv.grad(dx), layer.weight))
    return logits, squares, last
