"""ConvNet-D without an autograd graph: explicit passes, in chunks of images that fit the cache.

A bias before an instance norm cancels: the fused block leaves it out, and its gradient is exactly
    zero.
When a batch takes several chunks, the first convolution is not saved but repeated in the backward
pass: it has by far the largest map and the fewest flops, and writing 4/3 of the memory of all the
rest costs more than the GEMM.
Symbols: B images of a chunk, C channels, S their side, W width, N classes, F features, P
    parameters.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students.convnet.blocks import Block
from kdistill.engine.students.convnet.conv_products import Convolution

if TYPE_CHECKING:
    from kdistill.engine.students.convnet.network import ConvNet


@dataclass(frozen=True)
class Net:
    """A student's parameters as its passes want them."""

    student: "ConvNet"
    convs: list[Convolution]
    blocks: list[Block]
    weights: list[Tensor]  # operands of the convolutions
    affine: list[tuple[Tensor, ...]]  # parameters of the blocks
    weight: Tensor
    bias: Tensor


@dataclass
class BlockSaved:
    """One block of one chunk: its input, that as an operand, the convolution's result ``x``; None where it is made again."""

    source: Tensor
    operand: Tensor | None
    x: Tensor | None
    kept: Any


@dataclass
class ChunkSaved:
    """One chunk of images."""

    images: Tensor
    blocks: list[BlockSaved]
    features: Tensor


@dataclass
class FastSaved:
    """What ``backward`` needs."""

    net: Net
    chunks: list[ChunkSaved]
    to: str


class Sums:
    """dL/dtheta of all chunks: the convolutions' as operands, the others as views of one flat vector."""

    def __init__(self, net: Net, like: Tensor):
        self.net, self.flat = net, like.new_zeros(net.student.num_params)
        self.parts = net.student.unflatten(self.flat)
        self.convs: list[Tensor | None] = [None] * net.student.depth

    def add_affine(self, level: int, gradients: tuple[Tensor, ...]) -> None:
        """Add the gradients of a block's parameters."""
        for slot, grad in zip(self.net.student.affine_slots(level), gradients, strict=True):
            self.parts[slot] += grad.view(-1)

    def finish(self) -> Tensor:
        """Return dL/dtheta ``[P]``."""
        for level, total in enumerate(self.convs):
            if total is not None:
                self.parts[self.net.student.conv_slot(level)].copy_(
                    self.net.convs[level].from_weight(total)
                )
        return self.flat


def prepare(student: "ConvNet", theta: Tensor) -> Net:
    """Return the parameters of ``theta [P]`` in working layout."""
    parts, levels = student.unflatten(theta), range(student.depth)
    convs = student.convolutions(theta)
    weights = [convs[level].weight(parts[student.conv_slot(level)]) for level in levels]
    affine = [tuple(parts[slot] for slot in student.affine_slots(level)) for level in levels]
    return Net(student, convs, student.block_layers(), weights, affine, parts[-2], parts[-1])


def chunks_of(student: "ConvNet", images: Tensor, maps: int = 1) -> list[Tensor]:
    """Return ``images`` split so that ``maps`` times the largest map of a chunk stay in cache."""
    if student.is_joint:  # statistics of the whole batch
        return [images]
    largest = (
        maps
        * max(block.side for block in student.blocks) ** 2
        * student.width
        * images.element_size()
    )
    return list(images.split(layers.chunk_rows(images, largest)))


def forward(
    student: "ConvNet", theta: Tensor, images: Tensor, to: str, *, keep: bool
) -> tuple[Tensor, FastSaved]:
    """Return (logits or features, saved); saved is empty unless ``keep``."""
    net, outs, saved = prepare(student, theta), [], []
    parts = chunks_of(student, images)
    for part in parts:
        chunk = _chunk_forward(
            net, part, keep=keep, keep_first=len(parts) == 1, keep_operands=False
        )
        outs.append(
            layers.linear_fwd(chunk.features, net.weight, net.bias)
            if to == "logits"
            else chunk.features
        )
        if keep:
            saved.append(chunk)
    return outs[0] if len(outs) == 1 else torch.cat(outs), FastSaved(net, saved, to)


def backward(
    saved: FastSaved, grad_out: Tensor, want_theta: bool, want_images: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return (dL/dtheta or None, dL/dimages or None)."""
    rows = [chunk.features.shape[0] for chunk in saved.chunks]
    sums = Sums(saved.net, grad_out) if want_theta else None
    grads = [
        _chunk_backward(saved.net, chunk, grad, saved.to, sums, want_images)
        for chunk, grad in zip(saved.chunks, grad_out.split(rows), strict=True)
    ]
    grad_theta = sums.finish() if sums is not None else None
    return grad_theta, torch.cat([g for g in grads if g is not None]) if want_images else None


def loss_and_grad(
    student: "ConvNet", theta: Tensor, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (mean cross-entropy, dL/dtheta [P]); every chunk goes forward and backward while it is in cache."""
    net, loss = prepare(student, theta), theta.new_zeros(())
    sums, parts = Sums(net, theta), chunks_of(student, images)
    for part, part_labels in zip(parts, labels.split([len(p) for p in parts]), strict=True):
        chunk = _chunk_forward(net, part, keep=True, keep_first=True, keep_operands=True)
        logits = layers.linear_fwd(chunk.features, net.weight, net.bias)
        part_loss, grad_logits = layers.softmax_cross_entropy(logits, part_labels, images.shape[0])
        loss += part_loss
        _chunk_backward(net, chunk, grad_logits, "logits", sums, want_images=False)
    return loss, sums.finish()


def _chunk_forward(
    net: Net, images: Tensor, *, keep: bool, keep_first: bool, keep_operands: bool
) -> ChunkSaved:
    saved, source = [], images
    for level, conv in enumerate(net.convs):
        operand = conv.input(source)
        x = conv.output(len(images), (operand, net.weights[level]))
        out, kept = net.blocks[level].forward(x, net.affine[level])
        if keep:
            kept_x = x if level > 0 or keep_first else None
            saved.append(BlockSaved(source, operand if keep_operands else None, kept_x, kept))
        source = out
    return ChunkSaved(images, saved, source.flatten(1))


def _chunk_backward(
    net: Net, chunk: ChunkSaved, grad: Tensor, to: str, sums: Sums | None, want_images: bool
) -> Tensor | None:
    """Return dL/dimages of a chunk or None, and add its dL/dtheta to ``sums``."""
    student, last, batch = net.student, net.student.blocks[-1], len(chunk.images)
    if to == "logits":
        grad, weight, bias = layers.linear_bwd(grad, chunk.features, net.weight)
        if sums is not None:
            sums.parts[-2] += weight
            sums.parts[-1] += bias
    grad = grad.reshape(-1, student.width, last.pooled, last.pooled)
    for level in reversed(range(student.depth)):
        kept, conv = chunk.blocks[level], net.convs[level]
        operand = (
            conv.input(kept.source)
            if kept.operand is None and (sums is not None or kept.x is None)
            else kept.operand
        )
        x = conv.output(batch, (_there(operand), net.weights[level])) if kept.x is None else kept.x
        dx, daffine = net.blocks[level].backward(grad, x, net.affine[level], kept.kept)
        grad_operand = conv.grad(dx)
        if sums is not None:
            sums.add_affine(level, daffine)
            sums.convs[level] = conv.weight_grad(sums.convs[level], (_there(operand), grad_operand))
        if level > 0 or want_images:
            grad = conv.input_grad(batch, (grad_operand, net.weights[level]))
    return grad if want_images else None


def _there(operand: Tensor | None) -> Tensor:
    assert operand is not None  # made above wherever it is needed
    return operand
