"""ConvNet-D and its derivative in a direction of the weights: one forward and one backward pass of dual layers.

Every map x goes with ẋ = d/dε x(θ + εv).  Images do not move with θ, so the first convolution has
no tangent of its input.
Symbols: see ``_convnet_fast``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.engine.students.convnet import passes as fast
from kdistill.engine.students.convnet.conv_products import Pair
from kdistill.engine.students.convnet.passes import Net, Sums
from kdistill.engine.students.results import GradJvp

if TYPE_CHECKING:
    from kdistill.engine.students.convnet.network import ConvNet

# a dual pass keeps this many maps where a plain pass keeps one: its chunks are smaller by that
MAPS = 2


@dataclass
class DualBlock:
    """One block of one chunk: operands of its input and of that one's tangent, the convolution's result and its tangent."""

    operand: Tensor
    operand_dot: Tensor | None  # None: zero
    x: Tensor
    x_dot: Tensor
    kept: Any


@dataclass
class DualSaved:
    """One chunk of images after the forward pass."""

    blocks: list[DualBlock]
    features: Tensor
    features_dot: Tensor


@dataclass(frozen=True)
class DualPass:
    """A network, its direction in the same layout, and what the chunks have summed so far."""

    net: Net
    dot: Net
    sums_dot: Sums | None  # None: H v is not asked for
    sums: Sums | None  # None: the gradient itself is not asked for
    want_images: bool


def grad_jvp(
    student: "ConvNet",
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    v: Tensor,
    want: Sequence[str],
) -> GradJvp:
    """Return what ``Student.grad_jvp`` promises; every chunk goes forward and backward while it is in cache."""
    net, dot = fast.prepare(student, theta), fast.prepare(student, v)
    sums_dot, sums = (Sums(net, theta) if name in want else None for name in ("hvp", "grad"))
    run = DualPass(net, dot, sums_dot, sums, "images" in want)
    parts = fast.chunks_of(student, images, maps=MAPS)
    losses, images_dot, labels_dot = [], [], []
    for part, part_labels in zip(parts, labels.split([len(p) for p in parts]), strict=True):
        saved = _forward(run, part)
        f, f_dot = saved.features, saved.features_dot
        logits = layers.linear_fwd(f, net.weight, net.bias)
        logits_dot = layers.linear_fwd(f_dot, net.weight, dot.bias).addmm_(f, dot.weight.t())
        loss, loss_dot, grad, grad_dot, label_dot = layers.softmax_cross_entropy_tangent(
            logits, logits_dot, part_labels, images.shape[0]
        )
        losses.append(torch.stack([loss, loss_dot]))
        labels_dot.append(label_dot)
        images_dot.append(_backward(run, saved, *_linear_backward(run, saved, grad, grad_dot)))
    loss, loss_dot = torch.stack(losses).sum(0)
    return GradJvp(
        loss=loss,
        loss_tangent=loss_dot,
        grad=run.sums.finish() if run.sums is not None else None,
        hvp=run.sums_dot.finish() if run.sums_dot is not None else None,
        images_tangent=torch.cat([x for x in images_dot if x is not None])
        if run.want_images
        else None,
        labels_tangent=torch.cat([x for x in labels_dot if x is not None])
        if labels.is_floating_point()
        else None,
    )


def _forward(run: DualPass, images: Tensor) -> DualSaved:
    net, dot, batch = run.net, run.dot, len(images)
    blocks: list[DualBlock] = []
    source, source_dot = images, None
    for level, conv in enumerate(net.convs):
        operand, operand_dot = (
            conv.input(source),
            None if source_dot is None else conv.input(source_dot),
        )
        weight, weight_dot = net.weights[level], dot.weights[level]
        x = conv.output(batch, (operand, weight))
        x_dot = conv.output(batch, *_product_rule(operand, operand_dot, weight, weight_dot))
        source, source_dot, kept = net.blocks[level].forward_tangent(
            x, x_dot, net.affine[level], dot.affine[level]
        )
        blocks.append(DualBlock(operand, operand_dot, x, x_dot, kept))
    return DualSaved(blocks, source.flatten(1), source_dot.flatten(1))


def _linear_backward(run: DualPass, saved: DualSaved, grad: Tensor, grad_dot: Tensor) -> Pair:
    """Add the classifier's gradients to the sums; return (f̄, its tangent)."""
    net, dot, sums, sums_dot = run.net, run.dot, run.sums, run.sums_dot
    if sums is not None:
        sums.parts[-2].addmm_(grad.t(), saved.features)
        sums.parts[-1].add_(grad.sum(0))
    if sums_dot is not None:
        sums_dot.parts[-2].addmm_(grad_dot.t(), saved.features).addmm_(grad.t(), saved.features_dot)
        sums_dot.parts[-1].add_(grad_dot.sum(0))
    return grad @ net.weight, torch.addmm(grad_dot @ net.weight, grad, dot.weight)


def _backward(run: DualPass, saved: DualSaved, grad: Tensor, grad_dot: Tensor) -> Tensor | None:
    """Add the blocks' gradients to the sums; return the tangent of dL/dimages if it is asked for."""
    net, dot, sums, sums_dot, batch = run.net, run.dot, run.sums, run.sums_dot, len(saved.features)
    last = net.student.blocks[-1]
    grad, grad_dot = (
        g.reshape(-1, net.student.width, last.pooled, last.pooled) for g in (grad, grad_dot)
    )
    for level in reversed(range(net.student.depth)):
        kept, conv = saved.blocks[level], net.convs[level]
        dx, dx_dot, daffine, daffine_dot = net.blocks[level].backward_tangent(
            grad, grad_dot, kept.x, kept.x_dot, net.affine[level], dot.affine[level], kept.kept
        )
        up, up_dot = conv.grad(dx), conv.grad(dx_dot)
        if sums_dot is not None:
            sums_dot.add_affine(level, daffine_dot)
            pairs = _product_rule(kept.operand, kept.operand_dot, up, up_dot)
            sums_dot.convs[level] = conv.weight_grad(sums_dot.convs[level], *pairs)
        if sums is not None:
            sums.add_affine(level, daffine)
            sums.convs[level] = conv.weight_grad(sums.convs[level], (kept.operand, up))
        if level > 0 or run.want_images:
            weight, weight_dot = net.weights[level], dot.weights[level]
            grad_dot = conv.input_grad(batch, (up_dot, weight), (up, weight_dot))
            grad = conv.input_grad(batch, (up, weight)) if level > 0 else grad
    return grad_dot if run.want_images else None


def _product_rule(a: Tensor, a_dot: Tensor | None, b: Tensor, b_dot: Tensor) -> list[Pair]:
    return [(a, b_dot)] if a_dot is None else [(a_dot, b), (a, b_dot)]
