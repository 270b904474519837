"""A small class-conditional U-Net on patches of pixels.

Papers: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020 (the U-Net); Dhariwal
    and Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021 (group norm that is
    scaled and shifted by the embedding).

The first layer works on patches (space to depth), which makes a pass four times cheaper than one on
pixels at patches of 2x2.

Symbols: B rows of a batch, c channels of the latents, s their side, e length of the embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdistill.priors.diffusion.denoiser import Prediction
from kdistill.priors.diffusion.networks.base import (
    ClassConditionalDenoiser,
    Convolution,
    GroupNormSilu,
    zeroed,
)

CHANNELS_PER_GROUP = 8  # of group norm
HEADS = 4


class ResidualBlock(nn.Module):
    """Two convolutions, each behind group norm and SiLU; the second norm takes the embedding."""

    def __init__(self, channels_in: int, channels: int, embedding: int):
        super().__init__()
        self.norm_in = GroupNormSilu(*_groups_of(channels_in))
        self.conv_in = Convolution(channels_in, channels)
        self.modulation = zeroed(nn.Linear(embedding, 2 * channels))
        self.norm_out = GroupNormSilu(*_groups_of(channels))
        self.conv_out = zeroed(Convolution(channels, channels))
        is_same = channels_in == channels
        self.skip = nn.Identity() if is_same else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return features ``[B, channels, h, w]``."""
        h = self.conv_in(self.norm_in(x))
        h = self.conv_out(self.norm_out(h, self.modulation(embedding)))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, as a residual branch."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(*_groups_of(channels))
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return features of the shape of ``x``."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.query_key_value(tokens).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).reshape(x.shape)


class UNet(ClassConditionalDenoiser):
    """A U-Net of residual blocks, with one attention layer where the feature map is smallest.

    Args:
        channels: c.
        classes: Number of classes.
        patch: Side of the patches that are one position of the first feature map; divides s.
        widths: Channels of each level, multiples of 8; every level halves the side.
        blocks: Residual blocks of each level on the way down; one more on the way up.
        embedding: e.
        prediction: What it predicts.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        patch: int,
        widths: Sequence[int],
        blocks: int,
        embedding: int,
        prediction: Prediction,
    ):
        super().__init__(classes, embedding, prediction)
        self.patch = patch
        width, patch_channels = widths[0], channels * patch * patch
        self.conv_in = Convolution(patch_channels, width)
        skips = [width]
        self.down = nn.ModuleList()
        for level, channels_out in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
            for _ in range(blocks):
                self.down.append(ResidualBlock(width, channels_out, embedding))
                width = channels_out
                skips.append(width)
        self.middle = nn.ModuleList(
            [
                ResidualBlock(width, width, embedding),
                Attention(width),
                ResidualBlock(width, width, embedding),
            ]
        )
        self.up = nn.ModuleList()
        for level, channels_out in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(ResidualBlock(width + skips.pop(), channels_out, embedding))
                width = channels_out
            if level:
                self.up.append(Convolution(width, width))
        self.norm_out = GroupNormSilu(*_groups_of(width))
        self.conv_out = zeroed(Convolution(width, patch_channels))

    def predict(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction ``[B, c, s, s]``; as ``Denoiser.predict``."""
        embedding = F.silu(self.embedded_time(timesteps) + condition)
        h = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        h = self.conv_in(h)
        features = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, ResidualBlock) else layer(h)
            features.append(h)
        for layer in self.middle:
            h = layer(h, embedding)
        for layer in self.up:
            if isinstance(layer, ResidualBlock):
                h = layer(torch.cat([h, features.pop()], 1), embedding)
            else:
                h = layer(F.interpolate(h, size=features[-1].shape[2:], mode="nearest"))
        h = self.conv_out(self.norm_out(h))
        return F.pixel_shuffle(h, self.patch)


def _groups_of(channels: int) -> tuple[int, int]:
    """Return the arguments of group norm."""
    return max(channels // CHANNELS_PER_GROUP, 1), channels
