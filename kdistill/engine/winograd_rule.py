"""Where a 3×3 convolution runs by Winograd's F(4×4, 3×3): one rule for students and for networks under autograd."""

import os

from torch import Tensor

from kdistill import _native
from kdistill.engine.precision import asked_precision
from kdistill.errors import ConfigError, did_you_mean
from kdistill.ops import requested_backend

CHOICES = ("auto", "winograd", "direct")
# up to here a 3×3 convolution is one GEMM on its patches: the library is slow on so few channels
PATCH_CHANNELS = 4
MIN_CHANNELS = 16  # below, the transforms cost more than the multiplications that they save
MIN_TILES = 8  # of 4×4 pixels; below, transforming the weights costs more


def uses_winograd(
    channels: int, width: int, out_side: int, like: Tensor, tiles: int = MIN_TILES
) -> bool:
    """Say whether a 3×3 convolution from ``channels`` to ``width`` feature maps runs by Winograd's algorithm.

    Args:
        channels: Channels of the input.
        width: Channels of the output.
        out_side: Shorter side of the output.
        like: A tensor of the dtype and on the device of the input.
        tiles: Number of 4×4 tiles in the output, where the batch is known.

    Raises:
        ConfigError: ``KDISTILL_CONVOLUTION`` is unknown.
    """
    choice = asked_convolution()
    # under bf16 the transforms would cost most of the 8 bits
    if choice == "direct" or channels <= PATCH_CHANNELS or asked_precision() == "bf16":
        return False
    is_native = (
        like.device.type == "cpu"
        and requested_backend() in (None, "cpu")
        and _native.why_missing("_cpu") is None
    )
    pays = min(channels, width) >= MIN_CHANNELS and out_side >= 4 and tiles >= MIN_TILES
    return choice == "winograd" or (is_native and pays)


def asked_convolution() -> str:
    """Return ``KDISTILL_CONVOLUTION``; ``"auto"`` if it is not set."""
    choice = os.environ.get("KDISTILL_CONVOLUTION") or "auto"
    if choice not in CHOICES:
        raise ConfigError(
            f"KDISTILL_CONVOLUTION: expected a known algorithm, got '{choice}'; "
            f"{did_you_mean(choice, list(CHOICES))}"
        )
    return choice
