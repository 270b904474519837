"""Layers as explicit forward and backward functions on tensors, without an autograd graph.

Convolutions stand in ``kdistill.engine.students.convnet.conv_products``.
Symbols: B images, F features, N classes.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from kdistill.errors import ShapeError

EPS = 1e-5  # of every normalisation layer, as in torch.nn
CHUNK_BYTES = (
    24 << 20
    # a chunk's largest map stays near the cores, and below the size where every malloc is a page
    # fault
)


def chunk_rows(images: Tensor, bytes_per_image: int) -> int:
    """Return how many images to take through a network at a time.

    On the CPU a batch runs in near-equal chunks whose largest map fits the cache; elsewhere it runs
    whole.
    """
    batch = images.shape[0]
    if images.device.type != "cpu" or batch == 0:
        return max(batch, 1)
    most = max(CHUNK_BYTES // bytes_per_image, 1)
    return -(-batch // -(-batch // most))


def linear_fwd(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x [B, F] @ weight [N, F].T + bias [N]``."""
    return torch.addmm(bias, x, weight.t())


def linear_bwd(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dx, dweight, dbias) of ``linear_fwd`` from ``grad [B, N]``."""
    return grad @ weight, grad.t() @ x, grad.sum(0)


def linear_grad_sqnorm(grad: Tensor, x: Tensor, has_bias: bool = True) -> Tensor:
    """Return the squared norm of the layer's gradients image by image, ``|g|^2 (|h|^2 + 1) [B]``.

    Args:
        grad: g, gradient of every image's own loss in the outputs, ``[B, N]``.
        x: h, inputs of the layer, ``[B, F]``.
        has_bias: Whether the layer has a bias, whose gradient is the 1.
    """
    inputs = x.double().square().sum(1)
    return grad.double().square().sum(1) * (inputs + 1.0 if has_bias else inputs)


def softmax_cross_entropy(
    logits: Tensor, labels: Tensor, batch: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and its gradient in the logits.

    Args:
        logits: ``[B, N]``.
        labels: int64 ``[B]`` (hard), or float LOGITS z ``[B, N]`` of soft labels softmax(z).
        batch: Divisor of the sum; ``B`` unless these rows are a part of a larger batch.

    Returns:
        (loss, a scalar in nats; ``(softmax(logits) - target)/batch [B, N]``).
    """
    batch = batch or logits.shape[0]
    log_p = functional.log_softmax(logits, 1)
    grad = log_p.exp()
    if labels.is_floating_point():
        target = functional.softmax(labels, 1)
        loss = -(target * log_p).sum()
        grad -= target
    else:
        loss = -log_p.gather(1, labels[:, None]).sum()
        grad.scatter_add_(1, labels[:, None], grad.new_full((), -1.0).expand(labels.shape[0], 1))
    return loss / batch, grad.div_(batch)


def softmax_cross_entropy_tangent(
    logits: Tensor, logits_dot: Tensor, labels: Tensor, batch: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return ``softmax_cross_entropy`` and its derivative in the direction ``logits_dot``.

    Returns:
        (loss, its tangent, gradient, its tangent, tangent of the gradient in the label logits or
        None for hard labels).  With p = softmax(logits) and t = softmax(z): the gradient's tangent
        is (diag p - p p')ȧ/B, the labels' -(diag t - t t')ȧ/B.
    """
    batch = batch or logits.shape[0]
    loss, grad = softmax_cross_entropy(logits, labels, batch)
    grad_dot = _softmax_jvp(functional.softmax(logits, 1), logits_dot) / batch
    labels_dot = (
        _softmax_jvp(functional.softmax(labels, 1), logits_dot) / -batch
        if labels.is_floating_point()
        else None
    )
    return loss, (grad * logits_dot).sum(), grad, grad_dot, labels_dot


def _softmax_jvp(p: Tensor, direction: Tensor) -> Tensor:
    return p * (direction - (p * direction).sum(1, keepdim=True))


def check_labels(where: str, labels: Tensor, leading: tuple[int, ...], classes: int) -> None:
    """Raise ShapeError unless ``labels`` are int64 ``leading`` or float ``[*leading, classes]``."""
    wanted = (*leading, classes) if labels.is_floating_point() else leading
    if tuple(labels.shape) != wanted or not (
        labels.is_floating_point() or labels.dtype == torch.int64
    ):
        raise ShapeError(
            f"{where}: expected labels int64 {list(leading)} (hard) or float {[*leading, classes]} "
            f"(logits of soft labels), got {labels.dtype} {list(labels.shape)}; pass one label per "
            "image"
        )
