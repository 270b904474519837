"""One iteration: a step of Adam on the denoising loss, and of the average of the network.

    L = mean | F(sqrt(a_t) x + sqrt(1 - a_t) eps, t, y) - target |^2

``target`` is what the network predicts: eps, x or ``v = sqrt(a_t) eps - sqrt(1 - a_t) x``.  The
timesteps of a batch are stratified, one in each of B equal parts, which makes the loss less noisy.
Some labels are replaced by the null class.

Papers: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020 (the loss); Salimans and
    Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022 (v); Ho and
    Salimans, "Classifier-Free Diffusion Guidance", 2022 (label dropout); Kingma et al.,
    "Variational Diffusion Models", NeurIPS 2021 (stratified timesteps).

Symbols: N images, B images of a batch, P parameters, T timesteps, K classes.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from kdistill.data import ImageDataset
from kdistill.errors import DataError, NonFiniteError
from kdistill.keys import generator as keyed
from kdistill.keys import make_key, uniforms
from kdistill.optim import Adam, State
from kdistill.priors.diffusion import DiffusionModel, NoiseSchedule
from kdistill.priors.diffusion.networks import ClassConditionalDenoiser
from kdistill.priors.diffusion.trained_model import (
    AUTOENCODER,
    DiffusionConfig,
    trained_model,
)
from kdistill.priors.diffusion_training.autoencoder_training import (
    BETAS,
    AutoencoderTraining,
    new_autoencoder_training,
    shortened,
)
from kdistill.priors.diffusion_training.diffusion_spec import DiffusionSpec
from kdistill.priors.stylegan.parameters import FlatLayout
from kdistill.runner import Timing


@dataclass(frozen=True)
class DenoisingState:
    """A consistent state between two iterations.

    Attributes:
        iteration: Iterations done.
        tensors: The vectors ``network [P]``, ``average [P]`` (the mean of the parameters over
            iterations, which is the product), and Adam's ``mean.network`` and ``square.network``;
            with an autoencoder also those of ``autoencoder [Q]``, and ``scale []``, the factor of
            its latents.
    """

    iteration: int
    tensors: State


@dataclass(frozen=True, kw_only=True)
class DenoisingProgress(Timing):
    """What a callback is told of a training every ten iterations.

    Attributes:
        loss: Denoising loss of the last iteration.
    """

    loss: float


@dataclass(frozen=True, eq=False)
class DenoisingTraining:
    """The task of a ``Runner``: the training of a denoiser.

    Attributes:
        spec: Settings.
        config: Architecture of the model.
        images: Training images, -1 to 1, ``[N, C, S, S]``.
        labels: Their classes, int64 ``[N]``.
        mirrors: Whether images are mirrored at random.
        network: The network; its own weights are not used.
        layout: Layout of the parameters.
        schedule: The noise schedule.
        optimizer: Adam.
        autoencoder: The network of the autoencoder, whose own weights are not used; None for
            pixels.
    """

    spec: DiffusionSpec
    config: DiffusionConfig
    images: Tensor
    labels: Tensor
    mirrors: bool
    network: ClassConditionalDenoiser
    layout: FlatLayout
    schedule: NoiseSchedule
    optimizer: Adam
    autoencoder: AutoencoderTraining | None = None
    name: ClassVar[str] = "prior train"

    @property
    def iterations(self) -> int:
        """Iterations in all, those of the autoencoder first."""
        return self.spec.iterations + self._before

    @property
    def _before(self) -> int:
        """Iterations of the autoencoder."""
        return 0 if self.autoencoder is None else self.autoencoder.iterations

    def start(self) -> DenoisingState:
        """Return the state before the first iteration."""
        network = self.config.new_network(make_key(self.spec.seed, "denoiser"))
        vector = self.layout.flatten(network.state_dict()).to(self.images.device)
        networks = {"network": vector}
        state = networks | self.optimizer.init(networks) | {"average": vector}
        if self.autoencoder is not None:
            state |= self.autoencoder.start(self.images.device)
        return DenoisingState(0, state)

    def model(self, state: State) -> DiffusionModel:
        """Return the diffusion model of a state: its averaged network, and its autoencoder."""
        vector = state["average"].detach()
        tensors = {name: x.clone() for name, x in self.layout.named(vector).items()}
        if self.autoencoder is None:
            return trained_model(self.config, tensors)
        config, others = self.autoencoder.finished(state)
        tensors |= {AUTOENCODER + name: x for name, x in others.items()}
        return trained_model(replace(self.config, autoencoder=config), tensors)

    def iterate(self, now: DenoisingState) -> tuple[DenoisingState, Tensor]:
        """Return the state after one more iteration, and its loss."""
        state, iteration = now.tensors, now.iteration - self._before
        if self.autoencoder is not None and iteration < 0:
            state, loss = self.autoencoder.step(state, now.iteration, self.images)
            return DenoisingState(now.iteration + 1, state), loss
        theta = state["network"].detach().requires_grad_()
        with torch.enable_grad():
            loss = self.loss(theta, iteration, state)
            (grad,) = torch.autograd.grad(loss, theta)
        grad = shortened(grad, self.spec.clip)
        # the learning rate rises
        share = min(1.0, (iteration + 1) / self.spec.warm_up)
        after, moments = self.optimizer.update({"network": grad}, state, state, iteration)
        network = torch.lerp(state["network"], after["network"], share)
        half_life = max(self.spec.ema_share * (iteration + 1), 1e-8)
        average = network.lerp(state["average"], 0.5 ** (1.0 / half_life))
        state = {**moments, "network": network, "average": average}
        return DenoisingState(now.iteration + 1, state), loss.detach()

    def loss(self, theta: Tensor, iteration: int, state: State) -> Tensor:
        """Return the denoising loss of the batch of an iteration; differentiable in ``theta``."""
        key = make_key(self.spec.seed, "denoising", iteration)
        count, classes = self.spec.batch_size, self.config.classes
        rows = self._uniform(key, "rows", count, len(self.images)).long()
        images, labels = self.images[rows], self.labels[rows]
        if self.mirrors:
            is_mirrored = self._uniform(key, "mirrors", count)[:, None, None, None] < 0.5
            images = torch.where(is_mirrored, images.flip(3), images)
        if self.autoencoder is not None:
            images = self.autoencoder.latents(state, images)
        is_dropped = self._uniform(key, "dropout", count) < self.spec.label_dropout
        labels = torch.where(is_dropped, classes, labels)
        part = torch.arange(count, device=images.device) + self._uniform(key, "timesteps", count)
        timesteps = (part * (self.schedule.timesteps / count)).long()
        noise = torch.randn(images.shape, generator=keyed(make_key(key, "noise"))).to(images)
        noisy = self.schedule.add_noise(images, noise, timesteps)
        output = functional_call(self.network, self.layout.named(theta), (noisy, timesteps, labels))
        return (output - self._target(images, noise, timesteps)).square().mean()

    def check(
        self, before: DenoisingState, after: DenoisingState, loss: Tensor
    ) -> dict[str, float]:
        """Return what a ``DenoisingProgress`` says beside the timing.

        Raises:
            NonFiniteError: The loss or a parameter is not finite.
        """
        is_finite = all(bool(torch.isfinite(x).all()) for x in after.tensors.values())
        if not (is_finite and math.isfinite(float(loss))):
            raise NonFiniteError(
                f"prior train: expected at iteration {after.iteration} a finite loss and network, "
                f"got a loss of {float(loss)}; lower lr (now {self.spec.lr:g}) in a new folder"
            )
        return {"loss": float(loss)}

    def saved(self, state: DenoisingState) -> tuple[State, dict[str, Any]]:
        """Return tensors and numbers for a checkpoint."""
        return state.tensors, {"iteration": state.iteration}

    def restored(self, tensors: State, numbers: dict[str, Any]) -> DenoisingState:
        """Return the state of a checkpoint, on the device of the images.

        Raises:
            DataError: It has other tensors than this training.
        """
        expected = {name: x.shape for name, x in self.start().tensors.items()}
        if {name: x.shape for name, x in tensors.items()} != expected:
            raise DataError(
                "resume: expected a checkpoint with the tensors of this training, got others; "
                "start afresh"
            )
        device = self.images.device
        state = {name: x.to(device) for name, x in tensors.items()}
        return DenoisingState(int(numbers["iteration"]), state)

    def _target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.config.prediction == "epsilon":
            return noise
        if self.config.prediction == "x0":
            return images
        signal, sigma = self.schedule.scales(timesteps, images)
        return signal * noise - sigma * images

    def _uniform(self, key: int, purpose: str, count: int, below: float = 1.0) -> Tensor:
        """Return ``count`` numbers from 0 to ``below``."""
        draws = torch.from_numpy(uniforms(make_key(key, purpose), count))
        return (draws * below).to(self.images.device)


def new_denoising_training(spec: DiffusionSpec, data: ImageDataset) -> DenoisingTraining:
    """Return the training on the training images of ``data``, on their device.

    Raises:
        ConfigError: The patches do not fit the images, or a width does not fit the network.
    """
    config = spec.config(data)
    network = config.new_network()
    autoencoder = None
    if config.autoencoder is not None:
        autoencoder = new_autoencoder_training(spec, config.autoencoder)
    return DenoisingTraining(
        spec=spec,
        config=config,
        images=2.0 * data.train.images - 1.0,
        labels=data.train.labels,
        mirrors=spec.augment == "auto" and data.mirrors,
        network=network.to(data.train.images.device),
        layout=FlatLayout(network.state_dict()),
        schedule=config.schedule(),
        optimizer=Adam(spec.lr, BETAS),
        autoencoder=autoencoder,
    )
