"""A diffusion model that ``kdistill prior train`` made: its configuration and its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import torch
from torch import Tensor, nn

from kdistill.config import to_mapping
from kdistill.errors import ConfigError, DataError
from kdistill.options import COUNT, NOT_NEGATIVE, Range, check_options
from kdistill.priors.diffusion.denoiser import Prediction
from kdistill.priors.diffusion.model import Autoencoder, DiffusionModel, PixelAutoencoder
from kdistill.priors.diffusion.networks import ClassConditionalDenoiser, UNet, UViT
from kdistill.priors.diffusion.noise_schedule import NoiseSchedule
from kdistill.priors.diffusion.sampler import SamplerOptions, Solver
from kdistill.priors.diffusion.trained_autoencoder import AutoencoderConfig

# groups of the U-Net's norms have eight channels
WIDTH = Range("multiples of 8", lambda x: x > 0 and x % 8 == 0, "such as 32,64")
# beyond them a small file would be a large job
SIDE = Range("1 to 1024", lambda x: 1 <= x <= 1024, "256 is large")
LAYERS = Range("1 to 64", lambda x: 1 <= x <= 64, "lower it")
STEPS = Range("1 to 1000", lambda x: 1 <= x <= 1000, "10 to 50 are usual")
MOST_LEVELS = 8
AUTOENCODER = "autoencoder."  # what the names of its tensors begin with
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """A denoiser, and the sampler that it is made for.

    Attributes:
        network: ``"unet"``, or the transformer ``"uvit"``.
        patch: Side of the patches that the network works on.
        widths: Channels of each level of the U-Net, multiples of 8.
        blocks: Residual blocks of each level of the U-Net.
        embedding: Length of the embeddings of time and class; of the tokens of the U-ViT.
        depth: Blocks of the U-ViT.
        heads: Heads of the attention of the U-ViT.
        prediction: What the network predicts: ``"v"``, ``"epsilon"`` or ``"x0"``.
        steps: Steps of the sampler, where nothing else is said.
        solver: Solver of the sampler: ``"ddim"``, or ``"dpm++"`` of second order.
    """

    network: Literal["unet", "uvit"] = "unet"
    patch: Annotated[int, COUNT] = 2
    widths: Annotated[tuple[int, ...], WIDTH] = (32, 64)
    blocks: Annotated[int, LAYERS] = 1
    embedding: Annotated[int, COUNT] = 128
    depth: Annotated[int, LAYERS] = 6
    heads: Annotated[int, COUNT] = 4
    prediction: Prediction = "v"
    steps: Annotated[int, STEPS] = 10
    solver: Solver = "dpm++"


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(DenoiserConfig):
    """Architecture, noise schedule and sampler of a trained diffusion model.

    Attributes:
        classes: Number of classes.
        channels: Channels of the images.
        size: Side of the images.
        guidance: Scale of classifier-free guidance.
        autoencoder: Architecture of the autoencoder; None works on pixels.
    """

    classes: Annotated[int, COUNT]
    channels: Annotated[int, COUNT]
    size: Annotated[int, SIDE]
    guidance: Annotated[float, NOT_NEGATIVE] = 1.0
    autoencoder: AutoencoderConfig | None = None

    def __post_init__(self) -> None:
        check_options(self, "diffusion model")
        factor = 1 if self.autoencoder is None else self.autoencoder.factor
        if self.size % factor:
            raise ConfigError(
                f"autoencoder_widths: expected levels that halve the side {self.size} evenly, got "
                f"{len(self.autoencoder.widths) if self.autoencoder else 0}; name fewer"
            )
        side = self.latent_shape[1]
        if side % self.patch:
            raise ConfigError(
                f"patch: expected a divisor of the side {side} of the "
                f"{'images' if factor == 1 else 'latents'}, got {self.patch}; 2 or 4 are usual, "
                "and 1 for latents"
            )
        if self.network == "uvit" and self.embedding % self.heads:
            raise ConfigError(
                f"embedding: expected a multiple of the {self.heads} heads, got "
                f"{self.embedding}; such as {64 * self.heads}"
            )
        if self.network == "unet" and not 1 <= len(self.widths) <= MOST_LEVELS:
            raise ConfigError(
                f"widths: expected 1 to {MOST_LEVELS} levels, got {len(self.widths)}; such as 32,64"
            )
        if self.network == "unet" and (side // self.patch) % 2 ** (len(self.widths) - 1):
            raise ConfigError(
                f"widths: expected levels that halve {side // self.patch} positions evenly, "
                f"got {len(self.widths)} levels; name fewer widths or another patch"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels and sides of the latents."""
        if self.autoencoder is None:
            return self.channels, self.size, self.size
        side = self.size // self.autoencoder.factor
        return self.autoencoder.latent_channels, side, side

    def new_network(self, seed: int = 0) -> ClassConditionalDenoiser:
        """Return the network with first weights that are a function of ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            return self.network_of_latents()

    def network_of_latents(self) -> ClassConditionalDenoiser:
        """Return the network with weights that are not decided."""
        channels, side, _ = self.latent_shape
        if self.network == "unet":
            return UNet(
                channels,
                self.classes,
                patch=self.patch,
                widths=self.widths,
                blocks=self.blocks,
                embedding=self.embedding,
                prediction=self.prediction,
            )
        return UViT(
            channels,
            self.classes,
            size=side,
            patch=self.patch,
            width=self.embedding,
            depth=self.depth,
            heads=self.heads,
            prediction=self.prediction,
        )

    def schedule(self) -> NoiseSchedule:
        """Return the noise schedule: a cosine, whose sampler begins at noise alone."""
        return NoiseSchedule.cosine(spacing="trailing")


def trained_model(config: DiffusionConfig, tensors: Mapping[str, Tensor]) -> DiffusionModel:
    """Return the model with these weights, frozen, on their device.

    Raises:
        DataError: The tensors are not those of the architecture.
    """
    own = {name: x for name, x in tensors.items() if not name.startswith(AUTOENCODER)}
    with torch.device("meta"):
        network = config.network_of_latents()
    autoencoder: Autoencoder = PixelAutoencoder()
    if config.autoencoder is not None:
        with torch.device("meta"):
            coder = config.autoencoder.network()
        others = {
            name.removeprefix(AUTOENCODER): x
            for name, x in tensors.items()
            if name.startswith(AUTOENCODER)
        }
        autoencoder = config.autoencoder.adapter(_loaded(coder, others))
    return DiffusionModel(
        denoiser=_loaded(network, own),
        autoencoder=autoencoder,
        schedule=config.schedule(),
        latent_shape=config.latent_shape,
        classes=config.classes,
        channels=config.channels,
        size=config.size,
        sampler=SamplerOptions(config.steps, config.guidance, config.solver),
        tensors=dict(tensors),
        config=to_mapping(config),
    )


def _loaded(network: N, tensors: Mapping[str, Tensor]) -> N:
    """Return the network with these tensors, in evaluation mode and frozen."""
    expected = {name: x.shape for name, x in network.state_dict().items()}
    actual = {name: x.shape for name, x in tensors.items()}
    if expected != actual:
        wrong = sorted(
            name
            for name in expected.keys() | actual.keys()
            if expected.get(name) != actual.get(name)
        )
        raise DataError(
            f"prior: expected the tensors of its architecture, got others ({wrong[0]}); train the "
            "model again"
        )
    network.load_state_dict(dict(tensors), assign=True)
    return network.eval().requires_grad_(False)
