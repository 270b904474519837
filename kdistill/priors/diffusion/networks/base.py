"""What the trainable denoisers share: the class table with a null row, and the time embedding.

Symbols: B rows of a batch, K classes, e length of an embedding.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdistill.engine.convolve import convolve, takes_winograd
from kdistill.ops import group_norm_silu
from kdistill.priors.diffusion.denoiser import Prediction

FREQUENCIES = 32  # pairs of sine and cosine of a timestep
LONGEST_PERIOD = 10_000.0


class ClassConditionalDenoiser(nn.Module, ABC):
    """A denoiser whose conditioning is a row of a learned class table; row K stands for no class.

    A subclass writes ``predict``.

    Args:
        classes: K.
        embedding: e, the length of a conditioning vector and of the time embedding.
        prediction: What the network predicts.
    """

    def __init__(self, classes: int, embedding: int, prediction: Prediction):
        super().__init__()
        self.prediction: Prediction = prediction
        self.class_table = nn.Embedding(classes + 1, embedding)
        self.time = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )

    def condition(self, classes: Tensor) -> Tensor:
        """Return the rows of the class table ``[B, e]``; class K is the null class."""
        return self.class_table(classes)

    def null_condition(self) -> Tensor:
        """Return the row of the null class, ``[1, e]``."""
        return self.class_table.weight[-1:]

    @abstractmethod
    def predict(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction ``[B, c, s, s]``; as ``Denoiser.predict``."""

    def forward(self, x: Tensor, timesteps: Tensor, classes: Tensor) -> Tensor:
        """Return the prediction for rows of these classes, int64 ``[B]``; K is the null class."""
        return self.predict(x, timesteps, self.condition(classes))

    def embedded_time(self, timesteps: Tensor) -> Tensor:
        """Return the embedding ``[B, e]`` of timesteps int64 ``[B]``."""
        like = self.class_table.weight
        exponents = torch.arange(FREQUENCIES, dtype=like.dtype, device=like.device) / FREQUENCIES
        angles = timesteps[:, None].to(like) * torch.exp(-math.log(LONGEST_PERIOD) * exponents)
        return self.time(torch.cat([angles.sin(), angles.cos()], 1))


class GroupNormSilu(nn.GroupNorm):
    """Group norm, scale and shift by an embedding, and SiLU; one op on the CPU."""

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Return feature maps like ``x``; ``modulation [B, 2C]`` holds the scale, then the shift.

        On other devices the library's ops serve, until the kernels have been measured there.
        """
        if x.device.type == "cpu":
            return group_norm_silu(
                x, self.weight, self.bias, modulation, groups=self.num_groups, eps=self.eps
            )
        y = super().forward(x)
        if modulation is not None:
            scale, shift = modulation[:, :, None, None].chunk(2, 1)
            y = torch.addcmul(shift, y, 1.0 + scale)
        return F.silu(y)


class Convolution(nn.Conv2d):
    """A 3x3 convolution that keeps the size, by Winograd's algorithm where that is faster."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__(channels_in, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps ``[B, channels, h, w]``."""
        if not takes_winograd(x, self.weight, 1):
            return super().forward(x)
        assert self.bias is not None
        return convolve(x, self.weight, 1) + self.bias[:, None, None]


def zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Return the layer with weights and biases of zero, so that a residual branch begins silent."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
