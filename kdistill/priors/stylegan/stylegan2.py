"""The synthesis network of StyleGAN2, skip architecture.

Paper: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020; files of
    StyleGAN2-ADA (2020).

Layers are the convolutions b4.conv1, b8.conv0, b8.conv1, ...; a block's conv1 is followed by its
ToRGB within the same layer. The state after n layers must hold the picture so far beside the
features.  Both have the same side, because the picture is raised together with the features
(raising and adding are linear, the order of operations is the published one), so f_n is one tensor
``[N, features + channels, H, W]``; f_0 is the learned constant without a picture, f_L the picture
alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.priors.base import Noise
from kdistill.priors.stylegan.base import MAPPING_LR, Generator, MappingConfig
from kdistill.priors.stylegan.operators import (
    dense,
    limited,
    line_of,
    lrelu,
    modulated_conv,
    modulated_conv_up,
    styled_conv,
    upfirdn,
)

FILTER = (1.0, 3.0, 3.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config:
    """A whole generator.

    Attributes:
        mapping: From z and class to w.
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
    """StyleGAN2 with skip connections to the picture."""

    config: StyleGAN2Config

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the convolutions."""
        sides = [2**k for k in range(3, self.config.size.bit_length())]
        return ("b4.conv1", *(f"b{side}.conv{i}" for side in sides for i in (0, 1)))

    def layer_tensors(self, position: int) -> list[str]:
        """Return weights, biases, affine maps and noise strength of the layer, and of its ToRGB."""
        name = self.layer_names[position]
        parts = ("weight", "bias", "affine.weight", "affine.bias")
        names = [f"synthesis.{name}.{part}" for part in (*parts, "noise_strength")]
        if name.endswith("conv1"):
            names += [f"synthesis.{name.removesuffix('conv1')}torgb.{part}" for part in parts]
        return names

    def start(self, ws: Tensor) -> Tensor:
        """Return the learned constant for every image."""
        return self.tensors["synthesis.b4.const"].expand(len(ws), -1, -1, -1)

    def layer(self, f: Tensor, ws: Tensor, position: int, noise: Noise | None) -> Tensor:
        """Return features and picture after one layer more; it takes ``ws[:, position]``, and its ToRGB the next one."""
        name = self.layer_names[position]
        weight = self.tensors[f"synthesis.{name}.weight"]
        x, picture = f[:, : weight.shape[1]], f[:, weight.shape[1] :]
        x = self._features(f"synthesis.{name}", x, weight, ws[:, position], noise)
        if name.endswith("conv0"):
            return torch.cat(
                [
                    x,
                    _doubled(
                        picture,
                        self.tensors[f"synthesis.{name.removesuffix('.conv0')}.resample_filter"],
                    ),
                ],
                1,
            )
        seen = self._torgb(f"synthesis.{name.removesuffix('conv1')}torgb", x, ws[:, position + 1])
        picture = picture + seen if picture.shape[1] else seen
        return picture if position + 1 == self.num_layers else torch.cat([x, picture], 1)

    def image(self, f: Tensor) -> Tensor:
        """Return f_L, which is the picture."""
        return f

    @cached_property
    def _lines(self) -> dict[str, Tensor | None]:
        """The FIR of every convolution that doubles the size, as taps of gain 2 along an axis; None where it is not separable."""
        names = [f"synthesis.{name}" for name in self.layer_names if name.endswith("conv0")]
        lines = {name: line_of(self.tensors[f"{name}.resample_filter"]) for name in names}
        return {name: None if line is None else 2.0 * line for name, line in lines.items()}

    def _features(
        self, name: str, x: Tensor, weight: Tensor, w: Tensor, noise: Noise | None
    ) -> Tensor:
        doubles = name.endswith("conv0")
        size = [(2 if doubles else 1) * side for side in x.shape[2:]]
        drawn = (
            self.tensors[f"{name}.noise_const"][None]
            if noise is None
            else noise.normal(name, (1, *size), x)[:, 0]
        )
        drawn = drawn * self.tensors[f"{name}.noise_strength"]
        styles, bias = dense(self.tensors, f"{name}.affine", w), self.tensors[f"{name}.bias"]
        line = self._lines[name] if doubles else None
        if line is not None or not doubles:
            return styled_conv(x, weight, styles, drawn, bias, line=line, clamp=self.config.clamp)
        y = modulated_conv_up(x, weight, styles, self.tensors[f"{name}.resample_filter"])
        return limited(lrelu(y + drawn[:, None] + bias[None, :, None, None]), self.config.clamp)

    def _torgb(self, name: str, x: Tensor, w: Tensor) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        styles = dense(self.tensors, f"{name}.affine", w) / math.sqrt(weight[0].numel())
        y = modulated_conv(x, weight, styles, demodulate=False, padding=0)
        return limited(y + self.tensors[f"{name}.bias"][None, :, None, None], self.config.clamp)


def _doubled(picture: Tensor, taps: Tensor) -> Tensor:
    """Return the picture at twice the side."""
    low, high = (taps.shape[0] + 1) // 2, (taps.shape[0] - 2) // 2
    return (
        upfirdn(picture, taps, up=2, padding=(low, high, low, high), gain=4.0)
        if picture.shape[1]
        else picture
    )


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
        classes: Number of classes; 0 is unconditional.
        generator: Of the draws.
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

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def linear(fan_in: int, fan_out: int, bias: float = 0.0, lr: float = 1.0) -> dict[str, Tensor]:
        return {"weight": randn(fan_out, fan_in) / lr, "bias": torch.full((fan_out,), bias)}

    tensors: dict[str, Tensor] = {"mapping.w_avg": torch.zeros(w_dim)}

    def add(name: str, part: Mapping[str, Tensor]) -> None:
        tensors.update({f"{name}.{key}": x for key, x in part.items()})

    if classes:
        add("mapping.embed", linear(classes, w_dim))
    for i in range(mapping_layers):
        add(
            f"mapping.fc{i}",
            linear(
                (z_dim + w_dim if classes else z_dim) if i == 0 else w_dim, w_dim, lr=MAPPING_LR
            ),
        )
    taps = torch.tensor(FILTER)
    taps = torch.outer(taps, taps) / taps.sum() ** 2
    width = min(channel_base // 4, channel_max)
    tensors["synthesis.b4.const"] = randn(width, 4, 4)
    for name in StyleGAN2(config, {}).layer_names:
        block, conv = name.split(".")
        side = int(block[1:])
        before, width = width, max(1, min(channel_base // side, channel_max))
        path = f"synthesis.{name}"
        add(
            path,
            {
                "weight": randn(width, before, 3, 3),
                "bias": torch.zeros(width),
                "resample_filter": taps,
            },
        )
        add(path, {"noise_const": randn(side, side), "noise_strength": torch.zeros(())})
        add(f"{path}.affine", linear(w_dim, before, bias=1.0))
        if conv == "conv1":
            rgb = f"synthesis.{block}.torgb"
            add(rgb, {"weight": randn(channels, width, 1, 1), "bias": torch.zeros(channels)})
            add(f"{rgb}.affine", linear(w_dim, width, bias=1.0))
            tensors[f"synthesis.{block}.resample_filter"] = taps
    return StyleGAN2(config, tensors)
