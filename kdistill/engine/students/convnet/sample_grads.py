"""ConvNet-D's per-sample gradient norms: one forward and one backward pass in which no per-sample gradient is made.

The gradient of a sum of losses in a map is, image by image, that of the image's own loss.  So an
ordinary backward pass without
weight gradients has all that is needed: a layer's input and the gradient of its output give the
    squared norm of each image's
weight gradient (``conv_grad_sqnorm``), while both are in cache; a block's scale and shift get one
row per image.
Symbols: see ``_convnet_fast``.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students.convnet import passes as fast
from kdistill.engine.students.convnet.passes import Net
from kdistill.engine.students.sample_grads import SampleGrads, last_layer
from kdistill.ops.conv_grad_sqnorm import conv_grad_sqnorm

if TYPE_CHECKING:
    from kdistill.engine.students.convnet.network import ConvNet


def sample_grads(student: "ConvNet", theta: Tensor, images: Tensor, labels: Tensor) -> SampleGrads:
    """Return what ``Student.sample_grads`` promises, of everything; each chunk goes forward and backward while it is in cache."""
    net, found = fast.prepare(student, theta), []
    parts = fast.chunks_of(student, images)
    for part, part_labels in zip(parts, labels.split([len(p) for p in parts]), strict=True):
        found.append(_chunk(net, part, part_labels))
    logits, squares, last = (torch.cat(column) for column in zip(*found, strict=True))
    return SampleGrads(logits, squares, last)


def _chunk(net: Net, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, squared norms over all parameters and over the last layer, for one chunk of images."""
    batch, student, source, kept = len(images), net.student, images, []
    for level, conv in enumerate(net.convs):
        x = conv.output(batch, (conv.input(source), net.weights[level]))
        out, saved = net.blocks[level].forward(x, net.affine[level])
        kept.append((source, x, saved))
        source = out
    features = source.flatten(1)
    logits = layers.linear_fwd(features, net.weight, net.bias)
    _, grad_logits = layers.softmax_cross_entropy(logits, labels, 1)
    last = last_layer(grad_logits, features, True)
    squares, pooled = last.clone(), student.blocks[-1].pooled
    grad = (grad_logits @ net.weight).reshape(batch, student.width, pooled, pooled)
    for level in reversed(range(student.depth)):
        conv = net.convs[level]
        source, x, saved = kept.pop()
        dx, daffine = net.blocks[level].sample_backward(grad, x, net.affine[level], saved)
        squares += conv_grad_sqnorm(source, dx, conv.padding)
        for rows in daffine:
            squares += rows.double().square().sum(1)
        if level > 0:
            grad = conv.input_grad(batch, (conv.grad(dx), net.weights[level]))
    return logits, squares, last
