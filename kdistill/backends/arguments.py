"""What ops and their backends agree on: numbers that travel together, and the shapes they imply."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Activation(NamedTuple):
    """The numbers of ``clamp(gain * leaky_relu(x), -limit, limit)``.

    Attributes:
        slope: Factor of negative values, 0 to 1.
        gain: Factor of the result, positive.
        limit: Largest magnitude of the result; infinity for no clamp.
    """

    slope: float
    gain: float
    limit: float


# more than twelve fields: these are the integers that every kernel takes, in this order
class Geometry(NamedTuple):
    """Sizes and positions of one resampling.

    Attributes:
        n: Images.
        c: Channels.
        height: Rows of the input.
        width: Columns of the input.
        rows: Rows of the upsampled feature maps.
        columns: Columns of the upsampled feature maps.
        h: Rows of the result.
        w: Columns of the result.
        up_taps: Length of the filter of the upsampling, 1 without one.
        down_taps: Length of the filter of the downsampling, 1 without one.
        up: Factor of the upsampling.
        down: Factor of the downsampling.
        left: Columns of zeros on the left of the upsampled feature maps; negative numbers crop.
        above: Rows of zeros above them.
    """

    n: int
    c: int
    height: int
    width: int
    rows: int
    columns: int
    h: int
    w: int
    up_taps: int
    down_taps: int
    up: int
    down: int
    left: int
    above: int

    @property
    def mask(self) -> tuple[int, int, int, int]:
        """Sizes of the mask: two bits of every upsampled value, four neighbours in a byte."""
        return self.n, self.rows, (self.columns + 3) // 4, self.c


class Resampling(NamedTuple):
    """The numbers of ``filtered_lrelu``: upsampling, activation, downsampling.

    Attributes:
        up: Factor of the upsampling.
        down: Factor of the downsampling.
        padding: Zeros left, right, above and below, on the upsampled feature maps.
        slope: As in ``Activation``.
        gain: As in ``Activation``.
        limit: As in ``Activation``.
    """

    up: int
    down: int
    padding: list[int]
    slope: float
    gain: float
    limit: float

    def geometry(
        self, sizes: Sequence[int], up_taps: Tensor | None, down_taps: Tensor | None
    ) -> Geometry:
        """Return the shapes for an input ``[N, C, H, W]``; too long filters give sides below 1."""
        n, c, height, width = sizes
        t, s = (1 if taps is None else taps.shape[0] for taps in (up_taps, down_taps))
        left, right, above, below = self.padding
        rows = height * self.up + above + below - t + 1
        columns = width * self.up + left + right - t + 1
        h, w = ((side - s) // self.down + 1 for side in (rows, columns))
        return Geometry(
            n, c, height, width, rows, columns, h, w, t, s, self.up, self.down, left, above
        )

    def outputs(
        self, x: Tensor, up_taps: Tensor | None, down_taps: Tensor | None, keep: bool
    ) -> tuple[Geometry, Tensor, Tensor]:
        """Return the shapes, and memory for the result and the mask (``[0]`` unless kept)."""
        g = self.geometry(x.shape, up_taps, down_taps)
        mask = x.new_empty(g.mask if keep else (0,), dtype=torch.uint8)
        return g, empty_channels_last(x, g.n, g.c, g.h, g.w), mask


def fir_sizes(sizes: Sequence[int], taps: Tensor | None) -> tuple[int, int, int, int]:
    """Return the sizes of the result of ``fir_bias_act``: taps shorten both sides by 1."""
    n, c, h, w = sizes
    return (n, c, h, w) if taps is None else (n, c, h - 1, w - 1)


def fir_gradients(
    out: Tensor, x: Tensor, scale: Tensor, noise_rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return memory for the gradients of ``fir_bias_act`` in x, scale, bias and noise."""
    dnoise = x.new_empty((noise_rows, *out.shape[2:]))
    dx = empty_channels_last(x, *x.shape)
    return dx, torch.empty_like(scale), x.new_empty(x.shape[1]), dnoise


def empty_channels_last(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    """Return memory for ``[N, C, H, W]`` in channels-last order."""
    return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)


def rows_and_width(vectors: Tensor) -> tuple[int, int]:
    """Return G and P of ``[G, P]`` or ``[P]``, which is one row."""
    return (1, vectors.shape[0]) if vectors.ndim == 1 else (vectors.shape[0], vectors.shape[1])
