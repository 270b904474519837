"""Reference of trajectory_loss: any floating dtype and device."""

from torch import Tensor


def trajectory_loss(
    final: Tensor, target: Tensor, start: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    left, whole = final - target, start - target  # [P] or [G, P]
    if mask is not None:
        left, whole = mask * left, mask * whole
    denominator = whole.double().square().sum(-1)  # [] or [G]
    loss = left.double().square().sum(-1) / denominator
    return loss, left * (2.0 / denominator)[..., None].to(left.dtype), denominator
