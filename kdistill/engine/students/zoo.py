"""Networks of the field's cross-architecture tables, for 32-pixel images and their neighbours.

AlexNet and VGG11 stand in these tables without normalisation (``norm="none"``) and, for batch-norm
pools, with batch norm; MLP and LeNet-5 have no norm.  The vision transformer is a variant of our
own, for the field has no fixed one: 4-pixel patches at 32 pixels, 64 tokens at most, 6 blocks.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as functional
from torch import Generator, Tensor, nn

from kdistill.engine.layers import EPS
from kdistill.engine.students.base import Slot
from kdistill.errors import ConfigError

ALEXNET_KERNELS = (5, 5, 3, 3, 3)
ALEXNET_POOLED = (0, 1, 4)  # the convolutions that a 2×2 max pooling follows
VGG_RATIOS = (1, 2, 4, 4, 8, 8, 8, 8)  # of the width, by convolution
VGG_POOLED = (0, 1, 3, 5, 7)  # the convolutions that a max pooling follows
HEAD = 32  # width of one attention head


class ZooModule(nn.Module):
    """A network of the zoo.

    ``options`` names the options of ``build_student`` that it follows beside ``width``, and
    ``taps`` the modules whose outputs are the feature maps of its blocks, before pooling.
    """

    options: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()

    def draw_parameters(self, generator: Generator) -> list[Tensor]:
        """Return initial values of ``named_parameters()``, all drawn from ``generator``."""
        drawn: dict[str, Tensor] = {}
        for prefix, part in self.named_modules():
            for name, value in part.named_parameters(prefix, recurse=False):
                slot = Slot(name, tuple(value.shape), None, float(name.endswith("weight")))
                if isinstance(part, (nn.Conv2d, nn.Linear)):
                    slot = Slot(name, slot.shape, part.weight[0].numel())
                drawn[name] = slot.draw(generator)
        return [drawn[name] for name, _ in self.named_parameters()]


def conv_block(conv: nn.Conv2d, norm: str, pool: int) -> nn.Module:
    """Return convolution, norm, ReLU and ``pool × pool`` max pooling as one module."""
    parts = {"conv": conv, "norm": norm_layer(norm, conv.out_channels), "act": nn.ReLU()}
    if pool > 1:
        parts["pool"] = nn.MaxPool2d(pool)
    return nn.Sequential(OrderedDict(parts))


def norm_layer(norm: str, width: int) -> nn.Module:
    """Return the normalisation of ``width`` channels; instance norm has one channel a group."""
    if norm == "instance":
        return nn.GroupNorm(width, width, EPS)
    if norm == "group":
        return nn.GroupNorm(4 if width % 4 == 0 else 1, width, EPS)
    return nn.BatchNorm2d(width, EPS) if norm == "batch" else nn.Identity()


class Mlp(ZooModule):
    """Flatten → (linear → ReLU) × depth → linear."""

    options = ("depth",)

    def __init__(self, channels: int, size: int, classes: int, width: int = 128, depth: int = 2):
        super().__init__()
        inputs, parts = channels * size * size, []
        for _ in range(depth):
            parts += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.body = nn.Sequential(*parts)
        self.classifier = nn.Linear(inputs, classes)
        self.taps = tuple(f"body.{2 * level + 1}" for level in range(depth))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.body(images.flatten(1)))


class LeNet(ZooModule):
    """LeNet-5 with ReLU and max pooling; its layers scale with ``width``."""

    def __init__(self, channels: int, size: int, classes: int, width: int = 6):
        super().__init__()
        stride = max(1, size // 32)
        padding = 2 if size < 32 or stride > 1 else 0  # 28 pixels are padded to 32
        side = ((size + 2 * padding - 5) // stride + 1) // 2
        inner = 2 if side < 6 else 0  # below 6×6 an unpadded 5×5 convolution leaves nothing to pool
        wide, hidden, last = (max(1, round(width * ratio)) for ratio in (16 / 6, 120 / 6, 84 / 6))
        self.conv1, self.relu1 = nn.Conv2d(channels, width, 5, stride, padding), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(width, wide, 5, padding=inner), nn.ReLU()
        side = (side + 2 * inner - 4) // 2
        self.linear1, self.relu3 = nn.Linear(wide * side * side, hidden), nn.ReLU()
        self.linear2, self.relu4 = nn.Linear(hidden, last), nn.ReLU()
        self.classifier = nn.Linear(last, classes)
        self.taps = ("relu1", "relu2")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        x = functional.max_pool2d(self.relu1(self.conv1(images)), 2)
        x = functional.max_pool2d(self.relu2(self.conv2(x)), 2)
        x = self.relu3(self.linear1(x.flatten(1)))
        return self.classifier(self.relu4(self.linear2(x)))


class AlexNet(ZooModule):
    """Convolutions of 1, 1.5, 2, 1.5 and 1.5 times ``width`` channels."""

    options = ("norm",)

    def __init__(
        self, channels: int, size: int, classes: int, width: int = 128, norm: str = "instance"
    ):
        super().__init__()
        widths = (width, width * 3 // 2, width * 2, width * 3 // 2, width * 3 // 2)
        first = 4 if size == 28 else 2  # 28 pixels are padded to 32
        stride = max(1, size // 32)
        side, inputs, blocks = (size + 2 * first - 5) // stride + 1, channels, []
        for level, (outputs, kernel) in enumerate(zip(widths, ALEXNET_KERNELS, strict=True)):
            placing = (stride, first) if level == 0 else (1, kernel // 2)
            conv = nn.Conv2d(inputs, outputs, kernel, *placing)
            pool = 2 if level in ALEXNET_POOLED else 1
            blocks.append(conv_block(conv, norm, pool))
            side, inputs = side // pool, outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs * side * side, classes)
        self.taps = tuple(f"blocks.{level}.act" for level in range(len(ALEXNET_KERNELS)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.blocks(images).flatten(1))


class Vgg11(ZooModule):
    """VGG11; small images skip poolings, large ones pool wider at the end."""

    options = ("norm",)

    def __init__(
        self, channels: int, size: int, classes: int, width: int = 64, norm: str = "instance"
    ):
        super().__init__()
        padding = 3 if size == 28 else 1
        side, inputs, blocks = size + 2 * padding - 2, channels, []
        for level, ratio in enumerate(VGG_RATIOS):
            conv = nn.Conv2d(inputs, width * ratio, 3, padding=padding if level == 0 else 1)
            pool = 2 if level in VGG_POOLED and side >= 4 else 1
            if level == VGG_POOLED[-1]:
                pool = side  # the rest goes to 1×1: 2 at 32 pixels
            blocks.append(conv_block(conv, norm, pool))
            side, inputs = side // pool, width * ratio
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, classes)
        self.taps = tuple(f"blocks.{level}.act" for level in range(len(VGG_RATIOS)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.blocks(images).flatten(1))


class BasicBlock(nn.Module):
    """conv → norm → ReLU → conv → norm, plus the shortcut, then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1, self.act1 = norm_layer(norm, outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2, self.act2 = norm_layer(norm, outputs), nn.ReLU()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm_layer(norm, outputs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's maps."""
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(y + self.shortcut(x))


class ResNet18(ZooModule):
    """ResNet-18 with a 3×3 stem without pooling; a stage halves the sides down to 2×2."""

    options = ("norm",)

    def __init__(
        self, channels: int, size: int, classes: int, width: int = 64, norm: str = "instance"
    ):
        super().__init__()
        padding, stride = (3 if size == 28 else 1), max(1, size // 32)
        self.conv = nn.Conv2d(channels, width, 3, stride, padding, bias=False)
        self.norm, self.act = norm_layer(norm, width), nn.ReLU()
        side, inputs, blocks = (size + 2 * padding - 3) // stride + 1, width, []
        for stage in range(4):
            halve = 2 if stage > 0 and side >= 3 else 1
            side = -(-side // halve)
            outputs = width * 2**stage
            blocks += [
                BasicBlock(inputs, outputs, halve, norm),
                BasicBlock(outputs, outputs, 1, norm),
            ]
            inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(inputs, classes)
        self.taps = ("act", *(f"blocks.{level}" for level in range(8)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        x = self.act(self.norm(self.conv(images)))
        for block in self.blocks:
            x = block(x)
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), twice differentiable."""

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
    """The vision transformer; images are padded with zeros to a multiple of the patch."""

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
