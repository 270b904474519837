"""One iteration: a step of both networks, of the average and of the probability of augmentation.

    discriminator   softplus(-D(A(x))) + softplus(D(A(G(z)))) + c * CE(class of A(x))
                    and in every k-th iteration + k * r1/2 * |dD(A(x))/dx|^2
    generator       softplus(-D(A(G(z)))) + c * CE(class of A(G(z)))
                    + d * relu(1 - spread of A(G(z)) / spread of A(x))
                    and in every k-th iteration + k * weight * (|J^T y| - mean)^2, y normal / side

The images over which the discriminator takes a standard deviation, the spread, are of one class,
the same in the real and in the generated batch.  Groups of mixed classes hide it when the images of
a class are all alike; the last term asks for as much spread.

Papers: Goodfellow et al. 2014 (the non-saturating loss), Mescheder et al. 2018 (R1), Karras et al.
    2020 (StyleGAN2: lazy penalties, path length; "Training Generative Adversarial Networks with
    Limited Data": augmentation of all that D gets, with a probability steered by the sign of its
    logits), Odena et al. 2017 (the classifier).

The published code gives a penalty a step of Adam of its own; here it is added to the loss of that
iteration.  Both networks learn from the same generated images, drawn once.

Symbols: N images, C channels, S their side; P and Q parameters of generator and discriminator.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.augment import Augment
from kdistill.data import ImageDataset
from kdistill.errors import DataError, NonFiniteError
from kdistill.keys import generator as keyed
from kdistill.keys import make_key, uniforms
from kdistill.ops.diff_augment import IDENTITY
from kdistill.optim import Adam, State
from kdistill.priors.base import Noise
from kdistill.priors.gan_training.discriminator import (
    Discriminator,
    DiscriminatorOutput,
    GroupedSampler,
)
from kdistill.priors.gan_training.prior_spec import PriorSpec
from kdistill.priors.stylegan import Generator, new_stylegan2
from kdistill.priors.stylegan.parameters import FlatLayout
from kdistill.runner import Timing

Losses = dict[str, Tensor]  # scalars by name

BETAS = (0.0, 0.99)  # of Adam
ADJUST_EVERY = 4  # iterations between two changes of the probability of augmentation
PATH_DECAY = 0.01
WARM_UP = 0.05  # the average's half-life is at most this share of the images shown so far
BUFFERS = ("noise_const", "resample_filter", "w_avg")  # tensors of a generator that are not trained


@dataclass(frozen=True)
class BatchNoise(Noise):
    """Noise drawn for a whole batch at once.

    An image's noise depends on its batch, which is enough where nothing is rendered again.
    """

    def normal(self, place: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return ``[len(rows), *shape]`` with dtype and device of ``like``."""
        draws = torch.randn((len(self.rows), *shape), generator=keyed(make_key(self.key, place)))
        return draws.to(like)


@dataclass(frozen=True)
class GanState:
    """A consistent state between two iterations.

    Attributes:
        iteration: Iterations done.
        tensors: The vectors ``generator [P]``, ``average [P]`` (the mean of the generator's
            parameters over iterations, which is the product), ``discriminator [Q]``, Adam's
            ``square.*`` of both networks, and as float64 scalars ``augment_p``, the probability of
            each family of augmentations; ``sign_sum``, the sum of the discriminator's mean signs on
            real images since that probability was changed; ``sign``, their mean at that time;
            ``path_mean``, the running mean of the path lengths.
    """

    iteration: int
    tensors: State


@dataclass(frozen=True, kw_only=True)
class PriorProgress(Timing):
    """What a callback is told of a training every ten iterations.

    Attributes:
        loss_discriminator: Loss of the last iteration; 1.39 (2 ln 2) is that of a discriminator
            which cannot tell real from generated.
        loss_generator: Loss of the last iteration.
        sign: Mean sign of the discriminator's logits on real images, lately; near 1 it knows them
            by heart.
        augment_p: Probability of each family of augmentations.
    """

    loss_discriminator: float
    loss_generator: float
    sign: float
    augment_p: float


@dataclass(frozen=True, eq=False)
class GanTraining:
    """The task of a ``Runner``: the training of a generator against a discriminator.

    Attributes:
        spec: Settings.
        images: Real images, -1 to 1, ``[N, C, S, S]``.
        labels: Classes of the real images, int64 ``[N]``.
        network: The untrained generator: its configuration, and the tensors that are not trained.
        discriminator: The discriminator.
        augment: Families of augmentations, or None.
        layout: Layout of the generator's parameters.
        discriminator_layout: Layout of the discriminator's parameters.
        sampler: Sampler of the real images.
        optimizer: Adam for both networks.
    """

    spec: PriorSpec
    images: Tensor
    labels: Tensor
    network: Generator
    discriminator: Discriminator
    augment: Augment | None
    layout: FlatLayout
    discriminator_layout: FlatLayout
    sampler: GroupedSampler
    optimizer: Adam
    name: ClassVar[str] = "prior train"

    @property
    def iterations(self) -> int:
        """Iterations in all."""
        return self.spec.iterations

    def start(self) -> GanState:
        """Return the state before the first iteration."""
        generator = self.layout.flatten(self.network.tensors)
        tensors = self.discriminator.new(keyed(make_key(self.spec.seed, "prior discriminator")))
        discriminator = self.discriminator_layout.flatten(tensors).to(generator.device)
        networks = {"generator": generator, "discriminator": discriminator}
        numbers = dict.fromkeys(("sign_sum", "sign", "path_mean"), _scalar(0.0))
        numbers["augment_p"] = _scalar(self.spec.augment_p if self.augment else 0.0)
        state = networks | self.optimizer.init(networks) | numbers | {"average": generator}
        return GanState(0, state)

    def generator(self, parameters: Tensor) -> Generator:
        """Return the generator with these parameters ``[P]``."""
        return self.network.with_tensors(self.layout.named(parameters))

    def iterate(self, now: GanState) -> tuple[GanState, Losses]:
        """Return the state after one more iteration, and its losses.

        Penalties are 0 in iterations that leave them out.
        """
        state, iteration = now.tensors, now.iteration
        theta = state["generator"].detach().requires_grad_()
        key = make_key(self.spec.seed, "prior rows", iteration)
        rows = self.sampler.draw(self.spec.batch_size, key).to(self.labels.device)
        labels = self.labels[rows]
        fake, _ = self._generated(theta, "prior fake", iteration, labels)
        state, on_real, losses = self._train_discriminator(
            state, iteration, self.images[rows], fake.detach(), labels
        )
        spread = on_real.spread.detach()
        state, more_losses = self._train_generator(state, iteration, theta, fake, labels, spread)
        num_images = (iteration + 1) * self.spec.batch_size
        half_life = min(float(self.spec.ema_images), max(WARM_UP * num_images, 1e-8))
        decay = 0.5 ** (self.spec.batch_size / half_life)
        state["average"] = state["generator"].lerp(state["average"], decay)
        sign = float(on_real.logits.detach().sign().mean())
        state["sign_sum"] = _scalar(float(state["sign_sum"]) + sign)
        state = self._adjusted(state, iteration + 1)
        return GanState(iteration + 1, state), losses | more_losses

    def check(self, before: GanState, after: GanState, losses: Losses) -> dict[str, float]:
        """Return what a ``PriorProgress`` says beside the timing.

        Raises:
            NonFiniteError: A loss or a parameter is not finite; names the first of them.
        """
        values = {name: float(x) for name, x in losses.items()}
        wrong = [f"{name}, got {x}" for name, x in values.items() if not math.isfinite(x)]
        wrong += [
            f"{name} after the step, got one that is not"
            for name in ("discriminator", "generator")
            if not torch.isfinite(after.tensors[name]).all()
        ]
        if wrong:
            r1 = self.spec.r1_weight(self.discriminator.size)
            raise NonFiniteError(
                f"prior train: expected at iteration {after.iteration} a finite {wrong[0]}; lower "
                f"lr (now {self.spec.lr:g}) or raise r1 (now {r1:g}) in a new folder"
            )
        return {
            "loss_discriminator": values["discriminator loss"],
            "loss_generator": values["generator loss"],
            "sign": float(after.tensors["sign"]),
            "augment_p": float(after.tensors["augment_p"]),
        }

    def saved(self, state: GanState) -> tuple[State, dict[str, Any]]:
        """Return tensors and numbers for a checkpoint."""
        return state.tensors, {"iteration": state.iteration}

    def restored(self, tensors: State, numbers: dict[str, Any]) -> GanState:
        """Return the state of a checkpoint, on the device of the images.

        Raises:
            DataError: It has other tensors than this training.
        """
        start = self.start().tensors
        if {n: (x.shape, x.dtype) for n, x in tensors.items()} != {
            n: (x.shape, x.dtype) for n, x in start.items()
        }:
            raise DataError(
                "resume: expected a checkpoint with the tensors of this training, got others; "
                "start afresh in a new folder"
            )
        return GanState(
            numbers["iteration"], {n: tensors[n].to(x.device) for n, x in start.items()}
        )

    def _adjusted(self, state: State, iteration: int) -> State:
        """Return the state with the probability of augmentation moved towards its target.

        It moves in every fourth iteration.
        """
        if iteration % ADJUST_EVERY:
            return state
        sign = float(state["sign_sum"]) / ADJUST_EVERY
        step = ADJUST_EVERY * self.spec.batch_size / self.spec.augment_images
        step = 0.0 if self.augment is None else step
        p = float(state["augment_p"]) + (step if sign > self.spec.augment_target else -step)
        p = min(max(p, 0.0), 1.0)
        return state | {"augment_p": _scalar(p), "sign_sum": _scalar(0.0), "sign": _scalar(sign)}

    def _train_discriminator(
        self, state: State, iteration: int, real: Tensor, fake: Tensor, labels: Tensor
    ) -> tuple[State, DiscriminatorOutput, Losses]:
        spec, augment_p = self.spec, float(state["augment_p"])
        weight = spec.r1_weight(self.discriminator.size)
        has_penalty = weight > 0.0 and iteration % spec.r1_every == 0
        theta = state["discriminator"].detach().requires_grad_()
        tensors = self.discriminator_layout.named(theta)
        real.requires_grad_(has_penalty)
        real_images = self._augmented(real, augment_p, "real", iteration)
        fake_images = self._augmented(fake, augment_p, "fake", iteration)
        on_real = self.discriminator.apply(tensors, real_images, labels)
        on_fake = self.discriminator.apply(tensors, fake_images, labels)
        loss = F.softplus(-on_real.logits).mean() + F.softplus(on_fake.logits).mean()
        total = loss + spec.classify * F.cross_entropy(on_real.class_logits, labels)
        r1 = loss.new_zeros(())
        if has_penalty:
            (grad,) = torch.autograd.grad(on_real.logits.sum(), real, create_graph=True)
            r1 = grad.square().sum((1, 2, 3)).mean()
        (grad,) = torch.autograd.grad(total + 0.5 * weight * spec.r1_every * r1, theta)
        losses = {"discriminator loss": loss.detach(), "gradient penalty": r1.detach()}
        return self._stepped(state, "discriminator", grad, iteration), on_real, losses

    def _train_generator(
        self,
        state: State,
        iteration: int,
        theta: Tensor,
        fake: Tensor,
        labels: Tensor,
        spread: Tensor,
    ) -> tuple[State, Losses]:
        spec = self.spec
        tensors = self.discriminator_layout.named(state["discriminator"])
        images = self._augmented(fake, float(state["augment_p"]), "step", iteration)
        on_fake = self.discriminator.apply(tensors, images, labels)
        loss = F.softplus(-on_fake.logits).mean()
        classification = F.cross_entropy(on_fake.class_logits, labels)
        missing_spread = (1.0 - on_fake.spread / spread).relu().mean()
        total = loss + spec.classify * classification + spec.diversity * missing_spread
        path, mean = loss.new_zeros(()), float(state["path_mean"])
        if spec.path_length > 0.0 and iteration % spec.path_every == 0:
            half = labels[: max(spec.batch_size // 2, 1)]
            lengths = self._path_lengths(theta, iteration, half)
            mean += PATH_DECAY * (float(lengths.detach().mean()) - mean)
            path = (lengths - mean).square().mean()
            total = total + spec.path_length * spec.path_every * path
        (grad,) = torch.autograd.grad(total, theta)
        state = self._stepped(state, "generator", grad, iteration)
        losses = {"generator loss": loss.detach(), "path-length penalty": path.detach()}
        return state | {"path_mean": _scalar(mean)}, losses

    def _stepped(self, state: State, network: str, grad: Tensor, iteration: int) -> State:
        """Return the state after a step of Adam on one of the networks."""
        after, moments = self.optimizer.update({network: grad}, state, state, iteration)
        return moments | {network: after[network]}

    def _path_lengths(self, theta: Tensor, iteration: int, labels: Tensor) -> Tensor:
        """Return ``|J^T y|`` per image, y normal over the side; differentiable."""
        images, ws = self._generated(theta, "prior path", iteration, labels)
        key = make_key(self.spec.seed, "prior path y", iteration)
        y = torch.randn(images.shape, generator=keyed(key)).to(images)
        product = (images * y).sum() / self.discriminator.size
        (grad,) = torch.autograd.grad(product, ws, create_graph=True)
        return grad.square().sum(2).mean(1).sqrt()

    def _generated(
        self, theta: Tensor, purpose: str, iteration: int, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return generated images of these classes, and their latents ``ws``."""
        key = make_key(self.spec.seed, purpose, iteration)
        network = self.generator(theta)
        z = torch.randn(len(labels), self.spec.z_dim, generator=keyed(make_key(key, "z"))).to(theta)
        ws = network.mapping(z, labels)
        return network.forward(ws, BatchNoise(key, range(len(labels)))), ws

    def _augmented(self, images: Tensor, p: float, purpose: str, iteration: int) -> Tensor:
        """Return images as the discriminator gets them: each family changes each with chance p."""
        if self.augment is None or p == 0.0:
            return images
        key = make_key(self.spec.seed, f"prior augment {purpose}", iteration)
        augment = Augment(
            self.augment.strategy, mode="M", siamese=False, key=key, align_corners=False
        )
        parameters = []
        for position, (params, index) in enumerate(augment.parameters(shape=images.shape)):
            is_skipped = uniforms(make_key(key, "gate", position), len(images)) >= p
            params[torch.from_numpy(is_skipped), 0] = IDENTITY
            parameters.append((params.to(images.device), index.to(images.device)))
        return augment.apply(images + 1.0, parameters) - 1.0  # what moves in is black


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def new_gan_training(spec: PriorSpec, data: ImageDataset, strategy: str) -> GanTraining:
    """Return the training on the training images of ``data``, on their device.

    Args:
        spec: Settings.
        data: Images whose size is a power of two from 8 on.
        strategy: Families of augmentations; ``"none"`` or ``""`` for no augmentation.
    """
    shape = {"size": data.size, "channels": data.channels, "classes": data.num_classes}
    widths = {"channel_base": spec.channel_base, "channel_max": spec.channel_max}
    network = new_stylegan2(
        **shape,
        **widths,
        z_dim=spec.z_dim,
        w_dim=spec.w_dim,
        mapping_layers=spec.mapping_layers,
        generator=keyed(make_key(spec.seed, "prior generator")),
    )
    trained = {name: x for name, x in network.tensors.items() if not name.endswith(BUFFERS)}
    discriminator = Discriminator(**shape, **widths)
    augment = Augment(strategy, mode="M", siamese=False, key=0, align_corners=False)
    return GanTraining(
        spec=spec,
        images=2.0 * data.train.images - 1.0,
        labels=data.train.labels,
        network=network.to(data.train.images.device),
        discriminator=discriminator,
        augment=augment if augment.families else None,
        layout=FlatLayout(trained),
        discriminator_layout=FlatLayout(discriminator.new(keyed(0))),
        sampler=GroupedSampler(data.train.labels, data.num_classes),
        optimizer=Adam(spec.lr, BETAS),
    )
