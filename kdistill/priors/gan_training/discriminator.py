"""The discriminator of StyleGAN2, residual, with a projection of the class and a classifier.

Papers: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020; Miyato
    and Koyama, "cGANs with
Projection Discriminator", ICLR 2018; Odena et al., "Conditional Image Synthesis with Auxiliary
Classifier GANs", ICML 2017.  A mean over 2x2 stands in for the published FIR before a stride of 2:
at these widths the FIR costs a CPU as much as the convolution.

Symbols: N images, C channels, S their side, K classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.priors.stylegan.operators import dense, lrelu

GROUP = 4  # images over which the standard deviation is taken


@dataclass(frozen=True)
class Judgement:
    """What a discriminator thinks of a batch.

    Attributes:
        logits: ``[N]``, positive for "real".
        scores: Of the classes, ``[N, K]``.
        spread: How much the images of a group differ in its last map, ``[N/G]``.
    """

    logits: Tensor
    scores: Tensor
    spread: Tensor


@dataclass(frozen=True, kw_only=True)
class Discriminator:
    """A function from tensors, images and classes to logits, of which a positive one says "real", and scores of the classes.

    Attributes:
        size: S, a power of two.
        channels: C.
        classes: K.
        channel_base: A layer of side s has ``min(channel_base // s, channel_max)`` features.
        channel_max: The largest number of features of a layer.
    """

    size: int
    channels: int
    classes: int
    channel_base: int
    channel_max: int

    @property
    def sides(self) -> list[int]:
        """Sides of the blocks, from S down to 8."""
        return [2**k for k in range(self.size.bit_length() - 1, 2, -1)]

    def width(self, side: int) -> int:
        """Return the features of a block."""
        return max(1, min(self.channel_base // side, self.channel_max))

    def new(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return untrained tensors: weights standard normal (the equations scale them), biases and classes 0."""
        tensors: dict[str, Tensor] = {}

        def add(name: str, *shape: int) -> None:
            tensors[f"{name}.weight"] = torch.randn(shape, generator=generator)
            tensors[f"{name}.bias"] = torch.zeros(shape[0])

        add("from_picture", self.width(self.size), self.channels, 1, 1)
        for side in self.sides:
            width, after = self.width(side), self.width(side // 2)
            add(f"b{side}.conv0", width, width, 3, 3)
            add(f"b{side}.conv1", after, width, 3, 3)
            tensors[f"b{side}.skip.weight"] = torch.randn((after, width, 1, 1), generator=generator)
        width = self.width(4)
        add("b4.conv", width, width + 1, 3, 3)
        add("b4.fc", width, 16 * width)
        add("out", 1, width)
        add("label", self.classes, width)
        tensors["classes"] = torch.zeros(self.classes, width)
        return tensors

    def judge(self, tensors: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> Judgement:
        """Return what is thought of the images; differentiable twice in tensors and images.

        Args:
            tensors: Shaped like those of ``new``.
            images: ``[N, C, S, S]``, -1 to 1.  The last block sees the spread over groups of four:
                images of a batch are coupled.
            labels: int64 ``[N]``.
        """
        x = lrelu(_conv(tensors, "from_picture", images))
        for side in self.sides:
            skip = _conv(tensors, f"b{side}.skip", F.avg_pool2d(x, 2))
            x = F.avg_pool2d(lrelu(_conv(tensors, f"b{side}.conv0", x, padding=1)), 2)
            x = (lrelu(_conv(tensors, f"b{side}.conv1", x, padding=1)) + skip) * math.sqrt(0.5)
        spread = _spread(x)
        of_image = spread.repeat(len(x) // len(spread))[:, None, None, None].expand(
            -1, 1, *x.shape[2:]
        )
        x = lrelu(_conv(tensors, "b4.conv", torch.cat([x, of_image], 1), padding=1))
        x = lrelu(dense(tensors, "b4.fc", x.flatten(1)))
        of_class = (x * tensors["classes"][labels]).sum(1) / math.sqrt(x.shape[1])
        return Judgement(
            dense(tensors, "out", x)[:, 0] + of_class, dense(tensors, "label", x), spread
        )


def group_of(count: int) -> int:
    """Return how many of ``count`` images form a group: image i is with those of numbers i modulo ``count / group``."""
    return math.gcd(count, GROUP)


def _conv(tensors: Mapping[str, Tensor], name: str, x: Tensor, padding: int = 0) -> Tensor:
    weight = tensors[f"{name}.weight"]
    scaled = weight / math.sqrt(weight[0].numel())
    # few channels: on a CPU channels-last halves the time of the wide maps
    x, scaled = (t.contiguous(memory_format=torch.channels_last) for t in (x, scaled))
    return F.conv2d(x, scaled, tensors.get(f"{name}.bias"), padding=padding)


def _spread(x: Tensor) -> Tensor:
    """Return ``[N/G]``: the standard deviation over every group of images, averaged over features and places."""
    group = group_of(len(x))
    grouped = x.reshape(group, -1, *x.shape[1:])  # [G, N/G, C, H, W]
    return (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
