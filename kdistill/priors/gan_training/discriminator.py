"""The discriminator of StyleGAN2 and the batches of real images that it needs.

It is residual, with a projection of the class and a classifier.

Papers: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020; Miyato
    and Koyama, "cGANs with Projection Discriminator", ICLR 2018; Odena et al., "Conditional Image
    Synthesis with Auxiliary Classifier GANs", ICML 2017.

A mean over 2x2 stands in for the published FIR before a stride of 2: at these widths the FIR costs
a CPU as much as the convolution.

Symbols: N images, C channels, S their side, K classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.data.splits import ClassSampler
from kdistill.keys import make_key, uniforms
from kdistill.priors.stylegan.operators import equalized_linear, scaled_lrelu
from kdistill.priors.stylegan.parameters import InitialWeights, num_features

GROUP = 4  # most images over which the standard deviation is taken


@dataclass(frozen=True)
class DiscriminatorOutput:
    """Outputs of the discriminator for a batch.

    Attributes:
        logits: ``[N]``, positive for "real".
        class_logits: Logits of the classes, ``[N, K]``.
        spread: Standard deviation within each group of images in the last feature map, ``[N/G]``.
    """

    logits: Tensor
    class_logits: Tensor
    spread: Tensor


@dataclass(frozen=True, kw_only=True)
class Discriminator:
    """The discriminator as a function of its tensors, images and classes.

    Attributes:
        size: S, a power of two.
        channels: Channels of the images, C.
        classes: Number of classes, K.
        channel_base: A block of side s has ``min(channel_base // s, channel_max)`` features.
        channel_max: The largest number of features of a block.
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
        return num_features(side, self.channel_base, self.channel_max)

    def new(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return untrained tensors: weights standard normal, biases and class embeddings 0."""
        weights = InitialWeights(generator)
        weights.add_layer("from_image", self.width(self.size), self.channels, 1, 1)
        for side in self.sides:
            width, after = self.width(side), self.width(side // 2)
            weights.add_layer(f"b{side}.conv0", width, width, 3, 3)
            weights.add_layer(f"b{side}.conv1", after, width, 3, 3)
            weights.tensors[f"b{side}.skip.weight"] = weights.normal(after, width, 1, 1)
        width = self.width(4)
        weights.add_layer("b4.conv", width, width + 1, 3, 3)
        weights.add_layer("b4.fc", width, 16 * width)
        weights.add_layer("out", 1, width)
        weights.add_layer("label", self.classes, width)
        return {**weights.tensors, "classes": torch.zeros(self.classes, width)}

    def apply(
        self, tensors: Mapping[str, Tensor], images: Tensor, labels: Tensor
    ) -> DiscriminatorOutput:
        """Return the outputs for a batch; differentiable twice in tensors and images.

        Args:
            tensors: Tensors shaped like those of ``new``.
            images: ``[N, C, S, S]``, -1 to 1.  The last block gets the spread over groups of up to
                four images as a further feature, so the images of a batch are coupled.
            labels: int64 ``[N]``.
        """
        x = scaled_lrelu(_conv(tensors, "from_image", images))
        for side in self.sides:
            skip = _conv(tensors, f"b{side}.skip", F.avg_pool2d(x, 2))
            x = F.avg_pool2d(scaled_lrelu(_conv(tensors, f"b{side}.conv0", x, padding=1)), 2)
            x = (scaled_lrelu(_conv(tensors, f"b{side}.conv1", x, padding=1)) + skip) * math.sqrt(
                0.5
            )
        spread = _spread(x)
        spread_map = spread.repeat(len(x) // len(spread))[:, None, None, None]
        x = torch.cat([x, spread_map.expand(-1, 1, *x.shape[2:])], 1)
        x = scaled_lrelu(_conv(tensors, "b4.conv", x, padding=1))
        x = scaled_lrelu(equalized_linear(tensors, "b4.fc", x.flatten(1)))
        projection = (x * tensors["classes"][labels]).sum(1) / math.sqrt(x.shape[1])
        logits = equalized_linear(tensors, "out", x)[:, 0] + projection
        return DiscriminatorOutput(logits, equalized_linear(tensors, "label", x), spread)


def group_size(count: int) -> int:
    """Return how many images of a batch of ``count`` form a group.

    Images whose numbers are equal modulo ``count / group`` belong together.
    """
    return math.gcd(count, GROUP)


class GroupedSampler:
    """Draws batches whose groups, as ``group_size`` says, are of one class.

    Args:
        labels: Classes of the real images, int64 ``[N]``.
        num_classes: Number of classes.
    """

    def __init__(self, labels: Tensor, num_classes: int):
        sampler = ClassSampler(labels.cpu(), num_classes)
        self.rows_by_class, self.class_starts = sampler.order, torch.tensor(sampler.starts)

    def draw(self, count: int, key: int) -> Tensor:
        """Return ``count`` row numbers, drawn with replacement; pure in ``key``.

        Classes come as often as they are in the data.
        """
        size = group_size(count)
        firsts = uniforms(make_key(key, "first"), count // size) * len(self.rows_by_class)
        firsts = torch.from_numpy(firsts).long()
        classes = torch.searchsorted(self.class_starts, firsts, right=True).sub(1).repeat(size)
        starts, stops = self.class_starts[classes], self.class_starts[classes + 1]
        ranks = (torch.from_numpy(uniforms(key, count)) * (stops - starts)).long()
        return self.rows_by_class[starts + ranks]


def _conv(tensors: Mapping[str, Tensor], name: str, x: Tensor, padding: int = 0) -> Tensor:
    weight = tensors[f"{name}.weight"]
    scaled = weight / math.sqrt(weight[0].numel())
    # with few channels, channels-last halves the time of large feature maps on a CPU
    x, scaled = (t.contiguous(memory_format=torch.channels_last) for t in (x, scaled))
    return F.conv2d(x, scaled, tensors.get(f"{name}.bias"), padding=padding)


def _spread(x: Tensor) -> Tensor:
    """Return the standard deviation within each group, averaged over features and pixels."""
    group = group_size(len(x))
    grouped = x.reshape(group, -1, *x.shape[1:])  # [G, N/G, C, H, W]
    return (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
