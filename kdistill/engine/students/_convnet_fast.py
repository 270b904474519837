"""The standard ConvNet-D without an autograd graph: explicit passes, in chunks of images that fit the cache.

A bias before an instance norm cancels: it is left out of the passes here, and its gradient is exactly zero.
When a batch takes several chunks, the first convolution is not saved but repeated in the backward pass: it has by far the largest
map and the fewest flops, and writing 4/3 of the memory of all the rest costs more than the GEMM.
Symbols: B images of a chunk, C channels, S their side, W width, N classes, F features, P parameters.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.ops.norm_act_pool import norm_act_pool_bwd, norm_act_pool_fwd

if TYPE_CHECKING:
    from kdistill.engine.students.convnet import ConvNet


@dataclass(frozen=True)
class Net:
    """A student's parameters as its passes want them."""

    student: "ConvNet"
    convs: list[Tensor]  # channels last, but for a first one on patches
    gammas: list[Tensor]
    betas: list[Tensor]
    weight: Tensor
    bias: Tensor
    on_patches: bool


@dataclass
class BlockSaved:
    """One block of one chunk; ``source`` is its input (or patches), ``x`` the convolution's result: None where repeated."""

    source: Tensor | None
    x: Tensor | None
    mean: Tensor
    rstd: Tensor


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


def prepare(student: "ConvNet", theta: Tensor) -> Net:
    """Return the parameters of ``theta [P]`` in working layout."""
    parts = student.unflatten(theta)
    convs, gammas, betas = parts[0:-2:4], parts[2:-2:4], parts[3:-2:4]
    on_patches = student.channels <= layers.PATCH_CHANNELS
    inner = [w.contiguous(memory_format=torch.channels_last) for w in convs[on_patches:]]
    return Net(student, convs[:on_patches] + inner, gammas, betas, parts[-2], parts[-1], on_patches)


def chunks_of(student: "ConvNet", images: Tensor) -> list[Tensor]:
    """Return ``images`` split so that the largest map of a chunk stays in cache."""
    largest = max(block.side for block in student.blocks) ** 2 * student.width * images.element_size()
    return list(images.split(layers.chunk_rows(images, largest)))


def forward(student: "ConvNet", theta: Tensor, images: Tensor, to: str, *, keep: bool) -> tuple[Tensor, FastSaved]:
    """Return (logits or features, saved); saved is empty unless ``keep``."""
    net, outs, saved = prepare(student, theta), [], []
    parts = chunks_of(student, images)
    for part in parts:
        chunk = _chunk_forward(net, part, keep=keep, keep_first=len(parts) == 1)
        outs.append(layers.linear_fwd(chunk.features, net.weight, net.bias) if to == "logits" else chunk.features)
        if keep:
            saved.append(chunk)
    return outs[0] if len(outs) == 1 else torch.cat(outs), FastSaved(net, saved, to)


def backward(saved: FastSaved, grad_out: Tensor, want_theta: bool, want_images: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return (dL/dtheta or None, dL/dimages or None)."""
    student, rows = saved.net.student, [chunk.features.shape[0] for chunk in saved.chunks]
    grad_theta = grad_out.new_zeros(student.num_params) if want_theta else None
    sums = student.unflatten(grad_theta) if grad_theta is not None else None
    grads = [
        _chunk_backward(saved.net, chunk, grad, saved.to, sums, want_images)
        for chunk, grad in zip(saved.chunks, grad_out.split(rows), strict=True)
    ]
    return grad_theta, torch.cat([g for g in grads if g is not None]) if want_images else None


def loss_and_grad(student: "ConvNet", theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean cross-entropy, dL/dtheta [P]); every chunk goes forward and backward while it is in cache."""
    net, grad, loss = prepare(student, theta), torch.zeros_like(theta), theta.new_zeros(())
    sums, parts = student.unflatten(grad), chunks_of(student, images)
    for part, part_labels in zip(parts, labels.split([len(p) for p in parts]), strict=True):
        chunk = _chunk_forward(net, part, keep=True, keep_first=True)
        logits = layers.linear_fwd(chunk.features, net.weight, net.bias)
        part_loss, grad_logits = layers.softmax_cross_entropy(logits, part_labels, images.shape[0])
        loss += part_loss
        _chunk_backward(net, chunk, grad_logits, "logits", sums, want_images=False)
    return loss, grad


def _conv(net: Net, level: int, source: Tensor, batch: int) -> Tensor:
    block = net.student.blocks[level]
    if level == 0 and net.on_patches:
        return layers.patch_conv_fwd(source, net.convs[0], (batch, block.side, block.side))
    return layers.conv_fwd(source, net.convs[level], block.padding)


def _source(net: Net, images: Tensor) -> Tensor:
    if net.on_patches:
        return layers.patches(images, net.student.blocks[0].padding)
    return images.contiguous(memory_format=torch.channels_last)


def _chunk_forward(net: Net, images: Tensor, *, keep: bool, keep_first: bool) -> ChunkSaved:
    saved, source = [], _source(net, images)
    for level in range(net.student.depth):
        x = _conv(net, level, source, images.shape[0])
        out, mean, rstd = norm_act_pool_fwd(x, net.gammas[level], net.betas[level], layers.EPS)
        if keep:
            repeated = level == 0 and not keep_first
            saved.append(BlockSaved(None if repeated else source, None if repeated else x, mean, rstd))
        source = out
    return ChunkSaved(images, saved, source.flatten(1))


def _chunk_backward(
    net: Net, chunk: ChunkSaved, grad: Tensor, to: str, sums: list[Tensor] | None, want_images: bool
) -> Tensor | None:
    """Return dL/dimages of a chunk or None, and add its dL/dtheta to ``sums``, views of the flat gradient."""
    student, last = net.student, net.student.blocks[-1]
    if to == "logits":
        grad, weight, bias = layers.linear_bwd(grad, chunk.features, net.weight)
        if sums is not None:
            sums[-2] += weight
            sums[-1] += bias
    grad = grad.reshape(-1, student.width, last.pooled, last.pooled)
    for level in reversed(range(student.depth)):
        kept, wanted = chunk.blocks[level], level > 0 or want_images
        source = _source(net, chunk.images) if kept.source is None else kept.source
        x = _conv(net, level, source, chunk.images.shape[0]) if kept.x is None else kept.x
        dx, dgamma, dbeta = norm_act_pool_bwd(grad, x, net.gammas[level], net.betas[level], kept.mean, kept.rstd)
        if sums is not None:
            sums[4 * level + 2] += dgamma.view(-1)
            sums[4 * level + 3] += dbeta.view(-1)
        grad = _conv_backward(net, level, dx, source, chunk.images, sums, wanted)
    return grad if want_images else None


def _conv_backward(
    net: Net, level: int, dx: Tensor, source: Tensor, images: Tensor, sums: list[Tensor] | None, wanted: bool
) -> Tensor:
    weight, padding = net.convs[level], net.student.blocks[level].padding
    if level == 0 and net.on_patches:
        if sums is not None:
            sums[0] += layers.patch_conv_bwd_weight(dx, source, weight)
        return layers.patch_conv_bwd_images(dx, weight, images.shape, padding) if wanted else dx
    grad, dweight = layers.conv_bwd(dx, source, weight, padding, wanted, sums is not None)
    if sums is not None:
        sums[4 * level] += dweight
    return grad if wanted else dx
