"""A small vision transformer: patches, a class token, pre-norm blocks of attention and MLP, no dropout.

Variant of our own for small images (the field has no fixed one): 4-pixel patches at 32 pixels, 64
tokens at most, 6 blocks.
"""

import torch
import torch.nn.functional as functional
from torch import Generator, Tensor, nn

from kdistill.engine.layers import EPS
from kdistill.engine.students.zoo.base import ZooModule
from kdistill.errors import ConfigError

HEAD = 32  # width of one attention head


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); plain matrix products, so that it can be differentiated twice."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv = nn.LayerNorm(width, EPS), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2, self.up = nn.LayerNorm(width, EPS), nn.Linear(width, 2 * width)
        self.act, self.down = nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, width]`` from the same."""
        batch, tokens, width = x.shape
        q, k, v = (
            self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        weights = (q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(self.act(self.up(self.norm2(x))))


class Vit(ZooModule):
    """The vision transformer; images are padded with zeros at the right and bottom to a multiple of the patch."""

    options = ("depth",)

    def __init__(self, channels: int, size: int, classes: int, width: int = 192, depth: int = 6):
        super().__init__()
        heads = max(1, width // HEAD)
        if width % heads:
            raise ConfigError(
                f"vit: expected a width that {heads} heads divide, got {width}; use a multiple of "
                f"{HEAD}"
            )
        self.patch = 2 if size < 24 else 4 * max(1, size // 32)
        side = -(-size // self.patch)
        self.pad = side * self.patch - size
        self.embed = nn.Conv2d(channels, width, self.patch, self.patch)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, side * side + 1, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, EPS)
        self.classifier = nn.Linear(width, classes)
        self.taps = tuple(f"blocks.{level}" for level in range(depth))

    def draw_parameters(self, generator: Generator) -> list[Tensor]:
        """Return initial values; the class token and the positions are N(0, 0.02²)."""
        names = [name for name, _ in self.named_parameters()]
        values = dict(zip(names, super().draw_parameters(generator), strict=True))
        for name in ("token", "position"):
            shape = values[name].shape
            values[name] = 0.02 * torch.randn(shape, generator=generator, device=generator.device)
        return list(values.values())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        padded = functional.pad(images, (0, self.pad, 0, self.pad))
        x = self.embed(padded).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.norm(x)[:, 0])
