"""The synthesis network of StyleGAN3 and StyleGAN-XL in plain PyTorch.

Papers: Karras et al., "Alias-Free Generative Adversarial Networks", NeurIPS 2021; Sauer et al.,
    "StyleGAN-XL", SIGGRAPH 2022.

A layer is a modulated convolution (full padding), a bias, upsampling by an FIR, leaky ReLU, and
downsampling by an FIR.  Factors, padding and filters are those of the network file.  One thing
differs from the published code: styles are divided by their root mean square per image, not over
the batch, so that an image does not depend on its neighbours.  The demodulation takes the factor
out again, but for its 1e-8: a relative difference of less than 1e-6, none for a batch of one.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.priors.base import Noise
from kdistill.priors.stylegan.base import Generator, MappingConfig
from kdistill.priors.stylegan.operators import (
    EPS,
    GAIN,
    SLOPE,
    equalized_linear,
    filtered_lrelu,
    modulated_conv,
)


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Configuration of the Fourier features, the input of the synthesis.

    Attributes:
        size: Width and height.
        sampling_rate: Samples per unit of length.
        bandwidth: Frequency from which features fade out, down to zero at half the sampling rate.
    """

    size: tuple[int, int]
    sampling_rate: float
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Configuration of one layer.

    Attributes:
        name: Name of the layer in the file.
        is_torgb: Whether it is the last layer, without demodulation and nonlinearity.
        up: Upsampling factor.
        down: Downsampling factor.
        padding: Left, right, above and below, on the upsampled grid.
        clamp: Largest magnitude after the nonlinearity, or None.
    """

    name: str
    is_torgb: bool
    up: int
    down: int
    padding: tuple[int, int, int, int]
    clamp: float | None


@dataclass(frozen=True, kw_only=True)
class StyleGAN3Config:
    """Configuration of a generator.

    Attributes:
        mapping: Configuration of the mapping network.
        size: Side of the images.
        channels: Channels of the images.
        output_scale: Factor of the last layer's output.
        input: Configuration of the Fourier features.
        layers: Configurations of the layers, in order.
    """

    mapping: MappingConfig
    size: int
    channels: int
    output_scale: float
    input: InputConfig
    layers: tuple[LayerConfig, ...]


@dataclass(frozen=True, eq=False)
class StyleGAN3(Generator):
    """StyleGAN3 or StyleGAN-XL; f_n is the feature map after n layers, f_0 the Fourier features."""

    config: StyleGAN3Config

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers; the number in a StyleGAN-XL name is not the position."""
        return tuple(layer.name for layer in self.config.layers)

    def synthesis_input(self, ws: Tensor) -> Tensor:
        """Return the Fourier features, rotated and translated as ``ws[:, 0]`` says."""
        config, names = self.config.input, ("weight", "transform", "freqs", "phases")
        weight, transform, freqs, phases = (self.tensors[f"synthesis.input.{n}"] for n in names)
        t = equalized_linear(self.tensors, "synthesis.input.affine", ws[:, 0])
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        transform = _rotation_translation(t) @ transform  # [N, 3, 3]
        freqs = freqs.expand(len(ws), -1, -1)  # [N, I, 2]
        phases = phases + (freqs @ transform[:, :2, 2:]).squeeze(2)
        freqs = freqs @ transform[:, :2, :2]
        nyquist = config.sampling_rate / 2
        fade = (freqs.norm(dim=2) - config.bandwidth) / (nyquist - config.bandwidth)
        amplitudes = (1.0 - fade).clamp(0.0, 1.0)  # [N, I]
        width, height = config.size
        theta = torch.zeros(1, 2, 3, dtype=ws.dtype, device=ws.device)
        theta[0, 0, 0] = 0.5 * width / config.sampling_rate
        theta[0, 1, 1] = 0.5 * height / config.sampling_rate
        grid = F.affine_grid(theta, [1, 1, height, width], align_corners=False)  # [1, H, W, 2]
        x = torch.einsum("hwd,nid->nhwi", grid[0], freqs) + phases[:, None, None, :]
        x = torch.sin(2.0 * math.pi * x) * amplitudes[:, None, None, :]
        return (x @ (weight / math.sqrt(weight.shape[1])).T).permute(0, 3, 1, 2).contiguous()

    def apply_layer(self, f: Tensor, ws: Tensor, position: int, noise: Noise | None) -> Tensor:
        """Return the feature map after one more layer.

        It takes ``ws[:, position + 1]``, for the Fourier features take the first one, and no noise.
        """
        config = self.config.layers[position]
        name = f"synthesis.{config.name}"
        weight = self.tensors[f"{name}.weight"]
        styles = equalized_linear(self.tensors, f"{name}.affine", ws[:, position + 1])
        if config.is_torgb:
            styles = styles / math.sqrt(weight[0].numel())
        else:
            weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
            styles = styles * (styles.square().mean(1, keepdim=True) + EPS**2).rsqrt()
        y = modulated_conv(
            f,
            weight,
            styles,
            demodulate=not config.is_torgb,
            padding=weight.shape[-1] - 1,
            gain=self.tensors[f"{name}.magnitude_ema"].rsqrt(),
        )
        return filtered_lrelu(
            y,
            self.tensors[f"{name}.bias"],
            up_taps=self.tensors.get(f"{name}.up_filter"),
            down_taps=self.tensors.get(f"{name}.down_filter"),
            up=config.up,
            down=config.down,
            padding=config.padding,
            slope=1.0 if config.is_torgb else SLOPE,
            gain=1.0 if config.is_torgb else GAIN,
            clamp=config.clamp,
        )

    def to_image(self, f: Tensor) -> Tensor:
        """Return ``output_scale * f_L``."""
        return self.config.output_scale * f


def _rotation_translation(t: Tensor) -> Tensor:
    """Return the rotation by (t0, t1) times the translation by -(t2, t3), ``[N, 3, 3]``."""
    cosine, sine, x, y = t.unbind(1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rotation = (cosine, -sine, zero, sine, cosine, zero, zero, zero, one)
    translation = (one, zero, -x, zero, one, -y, zero, zero, one)
    return torch.stack(rotation, 1).view(-1, 3, 3) @ torch.stack(translation, 1).view(-1, 3, 3)
