"""Which parameters a matching objective compares: PAD's FIEM leaves the shallow ones out.

Symbols: P parameters, in the order shallow to deep that every student keeps; k = floor(P * ratio)
    of them are left out.

Paper: Li et al., "Prioritize Alignment in Dataset Distillation", section 3.3.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kdistill.errors import ConfigError


def check_ratio(ratio: float) -> None:
    """Raise ConfigError unless something is left to compare."""
    if not 0.0 <= ratio < 1.0:
        raise ConfigError(
            f"mask_ratio: expected a share in [0, 1), got {ratio:g}; 0 compares everything"
        )


def depth_mask(num_params: int, ratio: float) -> Tensor:
    """Return the paper's mask ``[P]``, 0 or 1, which leaves the first k parameters out."""
    check_ratio(ratio)
    mask = torch.ones(num_params)
    mask[: math.floor(num_params * ratio)] = 0.0
    return mask


def loss_mask(ratio: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``(final, target) -> mask [P]`` without the k smallest errors (final - target)^2.

    What the released code does in the place of ``depth_mask``, and what the paper finds worse.
    """
    check_ratio(ratio)

    def mask(final: Tensor, target: Tensor) -> Tensor:
        smallest = (final - target).abs().argsort(stable=True)[: math.floor(len(final) * ratio)]
        return torch.ones_like(final).index_fill_(0, smallest, 0.0)

    return mask


def deepest(layers: int, ratio: float) -> range:
    """Return the numbers of the layers that are compared: all but ``layers * ratio``, rounded.

    One always is.  For ConvNet-3 a quarter leaves out block 1, a half blocks 1 and 2: those whose
    parameters ``depth_mask`` leaves out whole.
    """
    check_ratio(ratio)
    return range(min(math.floor(layers * ratio + 0.5), layers - 1), layers)
