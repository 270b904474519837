"""ConvNet-D without an autograd graph: explicit passes, in chunks of images that fit the cache.

A bias before an instance norm cancels: the fused block leaves it out, and its gradient is exactly
zero.  When a batch takes several chunks, the first convolution is not saved but repeated in the
backward pass: it has by far the largest feature map and the fewest flops, and writing 4/3 of the
memory of all the rest costs more than the GEMM.

Symbols: B images of a chunk, C channels, S their side, W width, N classes, F features, P
    parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students.base import unflatten
from kdistill.engine.students.convnet.blocks import Block, Parameters, block_layers
from kdistill.engine.students.convnet.conv_products import Convolution, Pair, convolution_for
from kdistill.engine.students.convnet.spec import ConvNetSpec


class Layer(NamedTuple):
    """A convolution and the block after it, with their parameters.

    Attributes:
        conv: The convolution.
        block: Bias, norm, activation and pooling.
        weight: Operand of the convolution's weight.
        affine: Parameters of the block.
    """

    conv: Convolution
    block: Block
    weight: Tensor
    affine: Parameters


class PreparedNet(NamedTuple):
    """A parameter vector or a direction in the layout of the passes.

    Weight and bias are the classifier's.
    """

    spec: ConvNetSpec
    layers: list[Layer]
    weight: Tensor
    bias: Tensor

    def features_shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape of the last feature map of ``batch`` images."""
        pooled = self.spec.blocks[-1].pooled
        return batch, self.spec.width, pooled, pooled


@dataclass
class SavedBlock:
    """What one block keeps of one chunk; None was not kept, or belongs to a later pass.

    Attributes:
        source: Input of the convolution.
        operand: ``source`` as an operand.
        x: Output of the convolution.
        saved: What the block's forward pass left for its backward pass.
        operand_dot: Tangent of ``operand``; None: zero.
        x_dot: Tangent of ``x``.
        grad: Gradient of the block's output.
        grad_operand: Operand of the gradient of ``x``.
    """

    source: Tensor
    operand: Tensor | None
    x: Tensor | None
    saved: Any
    operand_dot: Tensor | None = None
    x_dot: Tensor | None = None
    grad: Tensor | None = None
    grad_operand: Tensor | None = None


@dataclass
class SavedChunk:
    """One chunk of images after a forward pass; the tangent of its features may be absent."""

    blocks: list[SavedBlock]
    features: Tensor
    features_dot: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)


SavedPass = tuple[PreparedNet, list[SavedChunk], str]  # the last: where the forward pass ended


class GradAccumulator:
    """Sum of dL/dtheta over chunks.

    Gradients of convolutions are operands, the others views of one flat vector.
    """

    def __init__(self, net: PreparedNet, like: Tensor):
        self.net = net
        self.flat = like.new_zeros(net.spec.num_params)
        self.parts = unflatten(self.flat, net.spec.slots)
        self.weight, self.bias = self.parts[-2:]
        self.convs: list[Tensor | None] = [None] * net.spec.depth

    def add(self, level: int, affine: list[Tensor], *pairs: Pair) -> None:
        """Add gradients of a block's parameters, and pairs (input, grad) of its convolution."""
        for slot, grad in zip(self.net.spec.affine_slots[level], affine, strict=True):
            self.parts[slot] += grad.view(-1)
        self.convs[level] = self.net.layers[level].conv.weight_grad(self.convs[level], *pairs)

    def total(self) -> Tensor:
        """Return dL/dtheta ``[P]``."""
        for level, (layer, weight) in enumerate(zip(self.net.layers, self.convs, strict=True)):
            if weight is not None:
                slot = self.net.spec.conv_slots[level]
                self.parts[slot].copy_(layer.conv.from_weight(weight))
        return self.flat


def prepare(spec: ConvNetSpec, theta: Tensor) -> PreparedNet:
    """Return ``theta [P]`` in the layout of the passes."""
    parts, prepared = unflatten(theta, spec.slots), []
    for level, (shape, block) in enumerate(zip(spec.blocks, block_layers(spec), strict=True)):
        conv = convolution_for(shape.channels, spec.width, shape.padding, shape.in_side, theta)
        weight = conv.weight(parts[spec.conv_slots[level]])
        affine = tuple(parts[slot] for slot in spec.affine_slots[level])
        prepared.append(Layer(conv, block, weight, affine))
    return PreparedNet(spec, prepared, parts[-2], parts[-1])


def chunks_of(spec: ConvNetSpec, images: Tensor, maps: int = 1) -> list[Tensor]:
    """Return ``images`` in chunks of which ``maps`` times the largest feature map fit the cache."""
    if spec.is_joint:  # statistics of the whole batch
        return [images]
    pixels = max(block.side for block in spec.blocks) ** 2
    largest = maps * pixels * spec.width * images.element_size()
    return list(images.split(layers.chunk_rows(images, largest)))


def labelled_chunks(
    spec: ConvNetSpec, images: Tensor, labels: Tensor, maps: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the pairs (images, labels) of ``chunks_of``."""
    chunks = chunks_of(spec, images, maps)
    return zip(chunks, labels.split([len(chunk) for chunk in chunks]), strict=True)


def forward(
    spec: ConvNetSpec, theta: Tensor, images: Tensor, to: str, *, keep: bool
) -> tuple[Tensor, SavedPass]:
    """Return (logits or features, saved); saved is empty unless ``keep``."""
    net, outs, saved = prepare(spec, theta), [], []
    chunks = chunks_of(spec, images)
    for part in chunks:
        chunk = forward_chunk(net, part, keep=keep, keep_first=len(chunks) == 1)
        outs.append(logits_of(net, chunk) if to == "logits" else chunk.features)
        if keep:
            saved.append(chunk)
    return outs[0] if len(outs) == 1 else torch.cat(outs), (net, saved, to)


def backward(
    saved: SavedPass, grad_out: Tensor, want_theta: bool, want_images: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return (dL/dtheta or None, dL/dimages or None)."""
    net, chunks, to = saved
    acc, rows = GradAccumulator(net, grad_out) if want_theta else None, [*map(len, chunks)]
    grads = [
        backward_chunk(net, chunk, grad, to, acc, want_images=want_images)
        for chunk, grad in zip(chunks, grad_out.split(rows), strict=True)
    ]
    grad_theta = acc.total() if acc is not None else None
    return grad_theta, torch.cat(grads) if want_images else None


def loss_and_grad(
    spec: ConvNetSpec, theta: Tensor, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (mean cross-entropy, dL/dtheta [P]).

    Every chunk goes forward and backward while it is in cache.
    """
    net, loss = prepare(spec, theta), theta.new_zeros(())
    acc = GradAccumulator(net, theta)
    for part, part_labels in labelled_chunks(spec, images, labels):
        loss += loss_and_grad_of_chunk(net, part, part_labels, len(images), acc)[0]
    return loss, acc.total()


def loss_and_grad_of_chunk(
    net: PreparedNet,
    images: Tensor,
    labels: Tensor,
    batch: int,
    acc: GradAccumulator,
    *,
    keep_gradients: bool = False,
) -> tuple[Tensor, SavedChunk]:
    """Return a chunk's share of the mean loss over ``batch`` images, and the chunk.

    Its dL/dtheta is added to ``acc``.
    """
    chunk = forward_chunk(net, images, keep_operands=True)
    loss, grad = layers.softmax_cross_entropy(logits_of(net, chunk), labels, batch)
    backward_chunk(net, chunk, grad, "logits", acc, keep_gradients=keep_gradients)
    return loss, chunk


def forward_chunk(
    net: PreparedNet,
    images: Tensor,
    *,
    keep: bool = True,
    keep_first: bool = True,
    keep_operands: bool = False,
) -> SavedChunk:
    """Return features of a chunk and, where ``keep``, what its backward pass needs."""
    saved, source = [], images
    for level, layer in enumerate(net.layers):
        operand = layer.conv.input(source)
        x = layer.conv.output(len(images), (operand, layer.weight))
        out, of_block = layer.block.forward(x, layer.affine)
        if keep:
            kept_x = x if level > 0 or keep_first else None
            saved.append(SavedBlock(source, operand if keep_operands else None, kept_x, of_block))
        source = out
    return SavedChunk(saved, source.flatten(1))


def logits_of(net: PreparedNet, chunk: SavedChunk) -> Tensor:
    """Return the logits ``[B, N]`` of a chunk."""
    return layers.linear_fwd(chunk.features, net.weight, net.bias)


def backward_chunk(
    net: PreparedNet,
    chunk: SavedChunk,
    grad: Tensor,
    to: str,
    acc: GradAccumulator | None,
    *,
    want_images: bool = False,
    keep_gradients: bool = False,
) -> Tensor | None:
    """Return dL/dimages of a chunk or None, and add its dL/dtheta to ``acc``.

    Args:
        net: The network.
        chunk: The chunk after its forward pass.
        grad: Gradient of its logits or features.
        to: Which of the two.
        acc: What dL/dtheta is added to, or None.
        want_images: Whether dL/dimages is asked for.
        keep_gradients: Keep the gradients of the blocks in ``chunk``.
    """
    if to == "logits":
        grad, weight, bias = layers.linear_bwd(grad, chunk.features, net.weight)
        if acc is not None:
            acc.weight += weight
            acc.bias += bias
    grad = grad.reshape(net.features_shape(len(chunk)))
    for level in reversed(range(net.spec.depth)):
        block, layer = chunk.blocks[level], net.layers[level]
        operand, x = block.operand, block.x
        if operand is None and (acc is not None or x is None):
            operand = layer.conv.input(block.source)
        if x is None:
            x = layer.conv.output(len(chunk), (operand, layer.weight))
        dx, *affine = layer.block.backward(grad, x, layer.affine, block.saved)
        grad_operand = layer.conv.grad(dx)
        if keep_gradients:
            block.grad, block.grad_operand = grad, grad_operand
        if acc is not None:
            acc.add(level, affine, (operand, grad_operand))
        if level > 0 or want_images:
            grad = layer.conv.input_grad(len(chunk), (grad_operand, layer.weight))
    return grad if want_images else None
