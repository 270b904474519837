"""Reference of step_with_dots: any floating dtype and device."""

import torch
from torch import Tensor


def step_with_dots(y: Tensor, x: Tensor, step: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = x.double()
    dots = torch.stack([(wide * y.double()).sum(-1), wide.square().sum(-1)], -1)  # [2] or [G, 2]
    stepped = y - step[..., None] * x  # a step [] meets every row, a step [G] its own
    return stepped if out is None else out.copy_(stepped), dots
