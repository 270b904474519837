"""The synthesis network of StyleGAN2, skip architecture.

Paper: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020; files of
    StyleGAN2-ADA (2020).

Layers are the convolutions b4.conv1, b8.conv0, b8.conv1, ...; a block's conv1 is followed by its
ToRGB within the same layer.  The state after n layers must hold the image so far beside the
features.  Both have the same side, because the image is upsampled together with the features
(upsampling and adding are linear, the order of operations is the published one), so f_n is one
tensor ``[N, features + channels, H, W]``; f_0 is the learned constant without an image, f_L the
image alone.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.priors.base import Noise
from kdistill.priors.stylegan.base import MAPPING_LR, Generator, MappingConfig
from kdistill.priors.stylegan.operators import (
    clamped,
    equalized_linear,
    modulated_conv,
    styled_conv,
    upsampled,
    upsampling_taps,
)
from kdistill.priors.stylegan.parameters import InitialWeights, num_features

FILTER = (1.0, 3.0, 3.0, 1.0)  # taps along an axis of the resampling FIR, before normalisation


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config:
    """Configuration of a generator.

    Attributes:
        mapping: Configuration of the mapping network.
        size: Side of the images, a power of two from 8 on.
        channels: Channels of the images.
        clamp: Largest magnitude after a layer, or None.
    """

    mapping: MappingConfig
    size: int
    channels: int
    clamp: float | None = None

    def __post_init__(self) -> None:
        if self.size < 8 or self.size & (self.size - 1):
            raise ConfigError(
                f"stylegan2: expected a size that is a power of two from 8 on, got {self.size}; "
                "resize the images"
            )


@dataclass(frozen=True, eq=False)
class StyleGAN2(Generator):
    """StyleGAN2 whose blocks add to the image (skip architecture)."""

    config: StyleGAN2Config

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the convolutions."""
        sides = [2**k for k in range(3, self.config.size.bit_length())]
        return ("b4.conv1", *(f"b{side}.conv{i}" for side in sides for i in (0, 1)))

    def layer_modules(self, name: str) -> tuple[str, ...]:
        """Return the convolution, and its ToRGB if it has one."""
        return (name, name.replace("conv1", "torgb")) if name.endswith("conv1") else (name,)

    def synthesis_input(self, ws: Tensor) -> Tensor:
        """Return the learned constant, once per image."""
        return self.tensors["synthesis.b4.const"].expand(len(ws), -1, -1, -1)

    def apply_layer(self, f: Tensor, ws: Tensor, position: int, noise: Noise | None) -> Tensor:
        """Return features and image after one more layer.

        The convolution takes ``ws[:, position]``, its ToRGB the next one.
        """
        name = f"synthesis.{self.layer_names[position]}"
        block, _, convolution = name.rpartition(".")
        num_in = self.tensors[f"{name}.weight"].shape[1]
        image = f[:, num_in:]
        features = self._convolved(name, f[:, :num_in], ws[:, position], noise)
        if convolution == "conv0":
            image = upsampled(image, self.tensors[f"{block}.resample_filter"])
            return torch.cat([features, image], 1)
        rgb = self._torgb(f"{block}.torgb", features, ws[:, position + 1])
        image = image + rgb if image.shape[1] else rgb
        return image if position + 1 == self.num_layers else torch.cat([features, image], 1)

    def to_image(self, f: Tensor) -> Tensor:
        """Return f_L, which is the image."""
        return f

    @cached_property
    def _upsampling_taps(self) -> dict[str, Tensor]:
        """The filters of the convolutions that double the size, by the names of these."""
        names = [f"synthesis.{name}" for name in self.layer_names if name.endswith("conv0")]
        return {name: upsampling_taps(self.tensors[f"{name}.resample_filter"]) for name in names}

    def _convolved(self, name: str, x: Tensor, w: Tensor, noise: Noise | None) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        noise_map = self.tensors[f"{name}.noise_const"][None]
        if noise is not None:
            noise_map = noise.normal(name, tuple(noise_map.shape), x)[:, 0]
        return styled_conv(
            x,
            weight,
            equalized_linear(self.tensors, f"{name}.affine", w),
            noise_map * self.tensors[f"{name}.noise_strength"],
            bias,
            taps=self._upsampling_taps.get(name),
            clamp=self.config.clamp,
        )

    def _torgb(self, name: str, x: Tensor, w: Tensor) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        styles = equalized_linear(self.tensors, f"{name}.affine", w)
        styles = styles / math.sqrt(weight[0].numel())
        y = modulated_conv(x, weight, styles, demodulate=False, padding=0)
        return clamped(y + self.tensors[f"{name}.bias"][None, :, None, None], self.config.clamp)


def new_stylegan2(
    *,
    size: int,
    channels: int,
    classes: int,
    generator: torch.Generator,
    z_dim: int = 64,
    w_dim: int = 64,
    mapping_layers: int = 2,
    channel_base: int = 1024,
    channel_max: int = 64,
    clamp: float | None = None,
) -> StyleGAN2:
    """Return an untrained generator: weights standard normal, styles 1, noise off.

    Args:
        size: Side of the images, a power of two.
        channels: Channels of the images.
        classes: Number of classes; 0 makes an unconditional generator.
        generator: Source of the random weights.
        z_dim: Length of z.
        w_dim: Length of w.
        mapping_layers: Hidden layers of the mapping.
        channel_base: A layer of side s has ``min(channel_base // s, channel_max)`` features.
        channel_max: The largest number of features of a layer.
        clamp: Largest magnitude after a layer, or None.
    """
    mapping = MappingConfig(
        z_dim=z_dim,
        w_dim=w_dim,
        classes=classes,
        num_layers=mapping_layers,
        embedding="linear" if classes else "none",
    )
    config = StyleGAN2Config(mapping=mapping, size=size, channels=channels, clamp=clamp)
    weights = InitialWeights(generator)
    tensors = weights.tensors
    tensors["mapping.w_avg"] = torch.zeros(w_dim)
    if classes:
        weights.add_layer("mapping.embed", w_dim, classes)
    fan_in = z_dim + w_dim if classes else z_dim
    for i in range(mapping_layers):
        weights.add_layer(f"mapping.fc{i}", w_dim, fan_in, lr=MAPPING_LR)
        fan_in = w_dim
    taps = torch.tensor(FILTER)
    taps = torch.outer(taps, taps) / taps.sum() ** 2
    num_in = num_features(4, channel_base, channel_max)
    tensors["synthesis.b4.const"] = weights.normal(num_in, 4, 4)
    for name in StyleGAN2(config, {}).layer_names:
        block, convolution = name.split(".")
        side = int(block[1:])
        num_out = num_features(side, channel_base, channel_max)
        path, torgb = f"synthesis.{name}", f"synthesis.{block}.torgb"
        weights.add_layer(path, num_out, num_in, 3, 3)
        tensors[f"{path}.resample_filter"] = taps
        tensors[f"{path}.noise_const"] = weights.normal(side, side)
        tensors[f"{path}.noise_strength"] = torch.zeros(())
        weights.add_layer(f"{path}.affine", num_in, w_dim, bias=1.0)
        if convolution == "conv1":
            weights.add_layer(torgb, channels, num_out, 1, 1)
            weights.add_layer(f"{torgb}.affine", num_out, w_dim, bias=1.0)
            tensors[f"synthesis.{block}.resample_filter"] = taps
        num_in = num_out
    return StyleGAN2(config, tensors)
