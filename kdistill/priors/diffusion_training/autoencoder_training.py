"""The training of an autoencoder, before that of the denoiser on its latents.

Symbols: N images, B images of a batch, Q parameters.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdistill.keys import generator as keyed
from kdistill.keys import make_key, uniforms
from kdistill.optim import Adam, State
from kdistill.priors.diffusion.trained_autoencoder import AutoencoderConfig
from kdistill.priors.diffusion_training.diffusion_spec import DiffusionSpec
from kdistill.priors.stylegan.parameters import FlatLayout

BETAS = (0.9, 0.99)  # of Adam
SCALED_BY = 512  # most images whose latents decide the scale


class _Loss(nn.Module):
    """The loss as a module, so that it can be called with other parameters."""

    def __init__(self, config: AutoencoderConfig, network: nn.Module, kl_weight: float):
        super().__init__()
        self.config, self.network, self.kl_weight = config, network, kl_weight

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        return self.config.loss(self.network, images, noise, self.kl_weight)


@dataclass(frozen=True, eq=False)
class AutoencoderTraining:
    """The first part of a ``DenoisingTraining``.

    Attributes:
        spec: Settings.
        config: Architecture of the autoencoder.
        network: The network; its own weights are not used.
        layout: Layout of its parameters.
        optimizer: Adam.
    """

    spec: DiffusionSpec
    config: AutoencoderConfig
    network: nn.Module
    layout: FlatLayout
    optimizer: Adam

    @property
    def iterations(self) -> int:
        """Steps of the autoencoder."""
        return self.spec.autoencoder_iterations

    def start(self, device: torch.device) -> State:
        """Return its tensors before the first step."""
        networks = {"autoencoder": self.layout.flatten(self.network.state_dict()).to(device)}
        scale = torch.ones((), dtype=torch.float64)
        return networks | self.optimizer.init(networks) | {"scale": scale}

    def step(self, state: State, iteration: int, images: Tensor) -> tuple[State, Tensor]:
        """Return the state after one more step on images from -1 to 1, and the loss.

        The last step decides the scale of the latents.
        """
        key = make_key(self.spec.seed, "autoencoder", iteration)
        draws = torch.from_numpy(uniforms(make_key(key, "rows"), self.spec.batch_size))
        batch = images[(draws * len(images)).long().to(images.device)]
        side = images.shape[-1] // self.config.factor
        shape = (len(batch), self.config.latent_channels, side, side)
        noise = torch.randn(shape, generator=keyed(make_key(key, "noise"))).to(images)
        theta = state["autoencoder"].detach().requires_grad_()
        module = _Loss(self.config, self.network, self.spec.kl_weight)
        names = {f"network.{name}": x for name, x in self.layout.named(theta).items()}
        with torch.enable_grad():
            loss = functional_call(module, names, (batch, noise))
            (grad,) = torch.autograd.grad(loss, theta)
        grad = shortened(grad, self.spec.clip)
        after, moments = self.optimizer.update({"autoencoder": grad}, state, state, iteration)
        state = {**moments, "autoencoder": after["autoencoder"]}
        if iteration == self.iterations - 1:
            some = images[:: -(-len(images) // SCALED_BY)]  # of every class, in whatever order
            latents = self.latents(state, some)
            state["scale"] = 1.0 / latents.double().std().clamp(min=1e-6).cpu()
        return state, loss.detach()

    @torch.no_grad()
    def latents(self, state: State, images: Tensor) -> Tensor:
        """Return the latents of images, scaled."""
        config, tensors = self.finished(state)
        self.network.load_state_dict(tensors)
        return config.adapter(self.network).encode(images)

    def finished(self, state: State) -> tuple[AutoencoderConfig, State]:
        """Return the architecture with its scale, and the tensors by name."""
        config = replace(self.config, scale=float(state["scale"]))
        return config, {
            name: x.clone() for name, x in self.layout.named(state["autoencoder"].detach()).items()
        }


def new_autoencoder_training(spec: DiffusionSpec, config: AutoencoderConfig) -> AutoencoderTraining:
    """Return the training of an autoencoder.

    Raises:
        MissingExtraError: diffusers is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(make_key(spec.seed, "autoencoder") % 2**63)
        network = config.network().requires_grad_(False)
    layout = FlatLayout(network.state_dict())
    return AutoencoderTraining(spec, config, network, layout, Adam(spec.lr, BETAS))


def shortened(grad: Tensor, longest: float) -> Tensor:
    """Return the gradient, scaled down where its norm is larger than ``longest``."""
    return grad * (longest / (torch.linalg.vector_norm(grad) + 1e-6)).clamp(max=1.0)
