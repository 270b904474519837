"""Layers as explicit forward and backward functions on plain tensors: nothing here builds an autograd graph.

Symbols: B images, C channels in, K channels out, H×W the map that comes in, h×w the one that goes out, F features, N classes.
Maps are channels-last in memory wherever a function makes them.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from kdistill.errors import ShapeError

EPS = 1e-5  # of every normalisation layer, as in torch.nn
PATCH_CHANNELS = 4  # up to here a 3×3 convolution is one GEMM on its patches: the library is slow on so few channels
CHUNK_BYTES = 4 << 20  # per thread: a chunk's largest map stays in cache, and below the size where every malloc is a page fault


def chunk_rows(images: Tensor, bytes_per_image: int) -> int:
    """Return how many images to take through a network at a time.

    On the CPU a batch runs in near-equal chunks whose largest map fits the cache; elsewhere it runs whole.
    """
    batch = images.shape[0]
    if images.device.type != "cpu" or batch == 0:
        return max(batch, 1)
    most = max(CHUNK_BYTES * torch.get_num_threads() // bytes_per_image, 1)
    return -(-batch // -(-batch // most))


def patches(images: Tensor, padding: int) -> Tensor:
    """Return the 3×3 neighbourhoods of ``images [B, C, H, W]`` as columns, ``[9*C, B*h*w]`` with rows in the order (c, dy, dx).

    Cost: writes ``9*B*C*h*w`` elements in runs of ``w``.
    """
    batch, channels, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    out = (batch, height + 2 * padding - 2, width + 2 * padding - 2)
    row, column = padded.stride()[2:]
    windows = padded.as_strided((channels, 3, 3, *out), (padded.stride(1), row, column, padded.stride(0), row, column))
    return windows.reshape(9 * channels, -1)


def unpatch(columns: Tensor, shape: torch.Size, padding: int) -> Tensor:
    """Return the transpose of ``patches`` applied to ``columns``: images of the given ``shape [B, C, H, W]``."""
    batch, channels, height, width = shape
    h, w = height + 2 * padding - 2, width + 2 * padding - 2
    windows = columns.view(channels, 3, 3, batch, h, w)
    out = columns.new_zeros((channels, batch, height + 2 * padding, width + 2 * padding))
    for dy in range(3):
        for dx in range(3):
            out[:, :, dy : dy + h, dx : dx + w] += windows[:, dy, dx]
    return out[:, :, padding : padding + height, padding : padding + width].transpose(0, 1).contiguous()


def patch_conv_fwd(columns: Tensor, weight: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the convolution of patches with ``weight [K, C, 3, 3]``, ``[B, K, h, w]``; ``shape`` is (B, h, w)."""
    rows = columns.t() @ weight.reshape(weight.shape[0], -1).t()  # [B*h*w, K]
    return rows.view(*shape, weight.shape[0]).permute(0, 3, 1, 2)


def patch_conv_bwd_weight(grad: Tensor, columns: Tensor, weight: Tensor) -> Tensor:
    """Return dL/dweight of ``patch_conv_fwd`` from ``grad [B, K, h, w]``."""
    return (columns @ _rows(grad)).t().reshape(weight.shape)


def patch_conv_bwd_images(grad: Tensor, weight: Tensor, shape: torch.Size, padding: int) -> Tensor:
    """Return dL/dimages of a convolution on patches of images of ``shape``."""
    return unpatch(weight.reshape(weight.shape[0], -1).t() @ _rows(grad).t(), shape, padding)


def _rows(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])  # a view when channels are last


def conv_fwd(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Return the 3×3 convolution of ``x [B, C, H, W]`` with ``weight [K, C, 3, 3]``, without bias."""
    return functional.conv2d(x, weight, padding=padding)


def conv_bwd(grad: Tensor, x: Tensor, weight: Tensor, padding: int, want_x: bool, want_weight: bool) -> tuple[Tensor | None, ...]:
    """Return (dL/dx or None, dL/dweight or None) of ``conv_fwd``."""
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, [want_x, want_weight, False]
    )
    return dx, dweight


def linear_fwd(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x [B, F] @ weight [N, F].T + bias [N]``."""
    return torch.addmm(bias, x, weight.t())


def linear_bwd(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dx, dweight, dbias) of ``linear_fwd`` from ``grad [B, N]``."""
    return grad @ weight, grad.t() @ x, grad.sum(0)


def softmax_cross_entropy(logits: Tensor, labels: Tensor, batch: int | None = None) -> tuple[Tensor, Tensor]:
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


def check_labels(where: str, labels: Tensor, leading: tuple[int, ...], classes: int) -> None:
    """Raise ShapeError unless ``labels`` are int64 ``leading`` or float ``[*leading, classes]``."""
    wanted = (*leading, classes) if labels.is_floating_point() else leading
    if tuple(labels.shape) != wanted or not (labels.is_floating_point() or labels.dtype == torch.int64):
        raise ShapeError(
            f"{where}: expected labels int64 {list(leading)} (hard) or float {[*leading, classes]} (logits of soft labels), "
            f"got {labels.dtype} {list(labels.shape)}; pass one label per image"
        )
