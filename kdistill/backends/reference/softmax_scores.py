"""Reference of softmax_scores: any floating dtype and device."""

import torch
from torch import Tensor


def softmax_scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``[5, N]``: loss, el2n, margin, entropy, correct."""
    is_soft, classes = labels.is_floating_point(), logits.shape[1]
    own = labels.argmax(1) if is_soft else labels  # [N]
    outside = (own < 0) | (own >= classes)
    own = own.clamp(0, classes - 1)
    log_p = torch.log_softmax(logits, 1)  # [N, K]
    p, is_own = log_p.exp(), torch.arange(classes, device=logits.device) == own[:, None]
    target = torch.softmax(labels, 1) if is_soft else is_own.to(p.dtype)
    others = torch.where(is_own, 0.0, p)
    # 1 - p[own] as the sum of the others: small numbers where the network is sure, not a difference
    # of two near 1
    distance = p - target if is_soft else torch.where(is_own, others.sum(1, keepdim=True), p)
    loss, entropy = -_weighted(target, log_p), -_weighted(p, log_p)
    el2n = distance.square().sum(1).sqrt()
    margin = others.amax(1) - p.gather(1, own[:, None])[:, 0]
    real = torch.stack([loss, el2n, margin, entropy])
    real = torch.where(outside, torch.nan, real)
    correct = (logits.argmax(1) == own) & ~torch.isnan(real[1])
    return torch.cat([real, correct.to(p.dtype)[None]])


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    return torch.where(weight == 0, 0.0, weight * value).sum(1)  # 0 * log 0 = 0
