"""Networks of diffusers by their configurations: which are understood, and how they are made."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdistill.errors import DataError
from kdistill.priors.diffusion.diffusers_library import diffusers_class
from kdistill.priors.diffusion.pretrained.weights import check_shapes, read_weights

# classes by the subfolder that holds them; the second of a pair is a former name of the first
CLASSES: dict[str, dict[str, str]] = {
    "unet": {"UNet2DConditionModel": "UNet2DConditionModel"},
    "transformer": {
        "DiTTransformer2DModel": "DiTTransformer2DModel",
        "Transformer2DModel": "DiTTransformer2DModel",
    },
    "vae": {"AutoencoderKL": "AutoencoderKL", "VQModel": "VQModel"},
    "vqvae": {"VQModel": "VQModel"},
}
MAJOR = "0"  # of the versions of diffusers whose configurations are understood
MAX_NUMBER, MAX_LAYERS = 1 << 16, 200  # a configuration may ask for no more
# what a network raises when it is made or run with numbers and words that do not fit
UNFIT = (
    *(RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(NameError, AssertionError),
)
# inputs that nobody gives here
ABSENT = (
    *("addition_embed_type", "class_embed_type", "encoder_hid_dim", "encoder_hid_dim_type"),
    *("time_cond_proj_dim", "latents_mean", "latents_std", "quantization_config"),
)


@dataclass(frozen=True)
class Component:
    """A network of diffusers that is not made yet.

    Attributes:
        name: Its subfolder.
        network: Name of its class.
        config: Arguments of the class, defaults included.
    """

    name: str
    network: str
    config: dict[str, Any]

    @classmethod
    def read(cls, name: str, config: Mapping[str, Any], where: Path) -> "Component":
        """Return the network that a ``config.json`` describes.

        Raises:
            DataError: A class, a version or an option that is not understood.
        """
        written, version = config.get("_class_name"), str(config.get("_diffusers_version", "0"))
        if not isinstance(written, str) or written not in CLASSES[name]:
            raise DataError(
                f"{where}: expected a network of class {' or '.join(CLASSES[name])}, got "
                f"{written!r:.60}; such a model is not supported"
            )
        if version.partition(".")[0] != MAJOR:
            raise DataError(
                f"{where}: expected a network of diffusers {MAJOR}.x, got one of {version:.40}; "
                "a newer kdistill may read it"
            )
        network = CLASSES[name][written]
        parameters = inspect.signature(diffusers_class(network).__init__).parameters
        values = {key: p.default for key, p in parameters.items() if key != "self"}
        for key, value in config.items():
            if key in values:
                values[key] = value
            elif not key.startswith("_") and value not in (None, False):
                raise DataError(
                    f"{where}: expected the options of {network} of the installed diffusers, got "
                    f"{key:.60}; install the version that wrote it ({version:.40}) or a newer one"
                )
        component = cls(name, network, values)
        component._check(where)
        return component

    @property
    def is_transformer(self) -> bool:
        """Whether this is a DiT."""
        return self.network == "DiTTransformer2DModel"

    @property
    def is_quantised(self) -> bool:
        """Whether this is an autoencoder with a codebook."""
        return self.network == "VQModel"

    @property
    def factor(self) -> int:
        """Side of an image over that of its latents."""
        return 2 ** (len(self.config["block_out_channels"]) - 1)

    @property
    def latents(self) -> Any:
        """Channels of an autoencoder's latents."""
        dim = self.config.get("vq_embed_dim")
        return self.config["latent_channels"] if dim is None else dim

    @property
    def decode_options(self) -> dict[str, Any]:
        """Arguments of ``decode`` for latents that are codes already."""
        options: dict[str, Any] = {"return_dict": False}
        return {**options, "force_not_quantize": True} if self.is_quantised else options

    def _check(self, where: Path) -> None:
        for key in ABSENT:
            if self.config.get(key) is not None:
                raise DataError(
                    f"{where}: expected a network of noise, timestep and class alone, got {key}="
                    f"{self.config[key]!r:.60}; such a model is not supported"
                )
        for key, value in self.config.items():
            limit = MAX_LAYERS if "layers" in key else MAX_NUMBER
            numbers = value if isinstance(value, (list, tuple)) else [value]
            if any(isinstance(x, int) and abs(x) > limit for x in numbers) or len(numbers) > 64:
                raise DataError(
                    f"{where}: expected numbers up to {limit:,}, got {key} {value!s:.60}; "
                    "restore the file from its source"
                )
        scale = self.config.get("scaling_factor", 1.0)
        is_number = isinstance(scale, (int, float)) and math.isfinite(scale)
        if not is_number or scale <= 0:
            raise DataError(
                f"{where}: expected a positive scaling_factor, got {scale!r:.60}; restore the file "
                "from its source"
            )
        if self.config.get("lookup_from_codebook"):
            raise DataError(
                f"{where}: expected an autoencoder that decodes codes, got "
                "lookup_from_codebook=true; such a model is not supported"
            )


def new_on_meta(component: Component) -> nn.Module:
    """Return the network without numbers, in evaluation mode and frozen.

    Raises:
        DataError: There is no such network.
    """
    with torch.device("meta"):
        return _new(component)


def _new(component: Component) -> nn.Module:
    network = diffusers_class(component.network)
    try:
        return network(**component.config).eval().requires_grad_(False)
    except UNFIT as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{component.name}/config.json: expected a network that {component.network} can be, "
            f"got: {reason}; copy the model from its source again"
        ) from error


def build(component: Component, folder: Path) -> nn.Module:
    """Return the network with the weights of its folder, in evaluation mode and frozen.

    Raises:
        DataError: The weights are missing, damaged, or not those of the network.
    """
    tensors = read_weights(folder)
    check_shapes(new_on_meta(component).state_dict(), tensors, folder)
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and replaced
        network = _new(component)
    network.load_state_dict(tensors)
    return network
