"""U-ViT: a transformer on patches, time and class as tokens, with long skips.

Paper: Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", CVPR 2023.

Symbols: B rows of a batch, n tokens, d their length, c channels of the latents, s their side.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdistill.priors.diffusion.denoiser import Prediction
from kdistill.priors.diffusion.networks.base import ClassConditionalDenoiser

HIDDEN = 4  # hidden units of a block's perceptron over d
EXTRA = 2  # tokens of time and class


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each behind layer norm, as residual branches."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.norm_perceptron = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, HIDDEN * width), nn.GELU(), nn.Linear(HIDDEN * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens ``[B, n, d]``."""
        packed = self.query_key_value(self.norm_attention(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.perceptron(self.norm_perceptron(x))


class UViT(ClassConditionalDenoiser):
    """A transformer whose block ``l`` is joined to block ``depth - 1 - l`` by a long skip.

    Args:
        channels: c.
        classes: Number of classes.
        size: s.
        patch: Side of a patch; divides s.
        width: d, a multiple of ``heads``.
        depth: Blocks; odd, or one block in the middle is added.
        heads: Heads of the attention.
        prediction: What it predicts.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        prediction: Prediction,
    ):
        super().__init__(classes, width, prediction)
        self.patch, self.side = patch, size // patch
        patch_channels = channels * patch * patch
        self.embed = nn.Linear(patch_channels, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, EXTRA + self.side**2, width))
        half = depth // 2
        self.down = nn.ModuleList([TransformerBlock(width, heads) for _ in range(half)])
        self.middle = TransformerBlock(width, heads)
        self.joins = nn.ModuleList([nn.Linear(2 * width, width) for _ in range(half)])
        self.up = nn.ModuleList([TransformerBlock(width, heads) for _ in range(half)])
        self.norm_out = nn.LayerNorm(width)
        self.project = nn.Linear(width, patch_channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def predict(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction ``[B, c, s, s]``; as ``Denoiser.predict``."""
        patches = self.embed(F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2))
        extra = torch.stack([self.embedded_time(timesteps), condition], 1)
        h = torch.cat([extra, patches], 1) + self.position
        features = []
        for block in self.down:
            h = block(h)
            features.append(h)
        h = self.middle(h)
        for join, block in zip(self.joins, self.up, strict=True):
            h = block(join(torch.cat([h, features.pop()], 2)))
        patches = self.project(self.norm_out(h))[:, EXTRA:].transpose(1, 2)
        image = F.pixel_shuffle(patches.unflatten(2, (self.side, self.side)), self.patch)
        return self.conv_out(image)
