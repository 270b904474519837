"""One iteration: the losses of both networks, their steps, the average and the probability of augmentation.

    discriminator   softplus(-D(A(x))) + softplus(D(A(G(z)))) + c * CE(class of A(x))
                    every k-th time + k * r1/2 * |dD(A(x))/dx|^2
    generator       softplus(-D(A(G(z)))) + c * CE(class of A(G(z))) + d * relu(1 - spread of
    A(G(z)) / spread of A(x))
                    every k-th time + k * weight * (|J^T y| - mean)^2, y normal / side

The images over which the discriminator takes a standard deviation, the spread, are of one class,
the same in the real and in the generated batch.  Groups of mixed classes hide it when the images of
a class are all alike; the last term asks for as much spread.

Papers: Goodfellow et al. 2014 (the non-saturating loss), Mescheder et al. 2018 (R1), Karras et al.
    2020 (StyleGAN2: lazy
penalties, path length; "Training Generative Adversarial Networks with Limited Data": augmentation
of all that D sees, with a probability steered by the sign of its logits), Odena et al. 2017 (the
classifier).  The published code gives a penalty a step of Adam of its own; here it is added to the
loss of that iteration.  Both networks learn from the same generated images, drawn once.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.augment import Augment
from kdistill.data import ImageDataset
from kdistill.keys import generator as keyed
from kdistill.keys import make_key, uniforms
from kdistill.ops.diff_augment import IDENTITY
from kdistill.priors.base import Noise
from kdistill.priors.gan_training.discriminator import Discriminator, group_size
from kdistill.priors.gan_training.prior_spec import PriorSpec
from kdistill.priors.gan_training.state import Layout, Trained, TrainingState
from kdistill.priors.stylegan import Generator, new_stylegan2

ADJUST_EVERY = 4  # iterations between two changes of the probability
PATH_DECAY = 0.01
WARM_UP = 0.05  # the average's half-life is at most this share of the images seen
BUFFERS = ("noise_const", "resample_filter", "w_avg")  # of a generator: not trained


@dataclass(frozen=True)
class BatchNoise(Noise):
    """Draws for a whole batch at once; which image has which depends on the batch, as nothing is rendered again."""

    def normal(self, place: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return ``[len(rows), *shape]`` like ``like``."""
        return torch.randn((len(self.rows), *shape), generator=keyed(make_key(self.key, place))).to(
            like
        )


@dataclass(frozen=True)
class Drawn:
    """Generated images ``[N, C, S, S]``, their classes ``[N]`` and latents ``ws``."""

    images: Tensor
    labels: Tensor
    ws: Tensor


@dataclass(frozen=True)
class Losses:
    """Of one iteration, as scalars on the device; penalties are 0 where they were left out.

    Attributes:
        discriminator: Without its penalty.
        generator: Without its penalty.
        r1: The squared gradient norm, mean over images.
        path: The mean squared deviation of the path lengths.
    """

    discriminator: Tensor
    generator: Tensor
    r1: Tensor
    path: Tensor


@dataclass(frozen=True, eq=False)
class GanTraining:
    """Two networks and the images they play for.

    Attributes:
        spec: Settings.
        images: Real ones, -1 to 1, ``[N, C, S, S]``.
        labels: int64 ``[N]``.
        network: The untrained generator: its configuration, and the tensors that stay.
        opponent: The discriminator.
        augment: Families, or None.
    """

    spec: PriorSpec
    images: Tensor
    labels: Tensor
    network: Generator
    opponent: Discriminator
    augment: Augment | None
    layout: Layout = field(init=False)
    opponent_layout: Layout = field(init=False)
    by_class: Tensor = field(init=False)  # row numbers, class by class
    starts: Tensor = field(init=False)  # where each class begins in it, and its end

    def __post_init__(self) -> None:
        trained = {
            name: x for name, x in self.network.tensors.items() if not name.endswith(BUFFERS)
        }
        object.__setattr__(self, "layout", Layout.of(trained))
        object.__setattr__(self, "opponent_layout", Layout.of(self.opponent.new(keyed(0))))
        counts = torch.bincount(self.labels.cpu(), minlength=self.opponent.classes)
        object.__setattr__(self, "by_class", torch.argsort(self.labels.cpu(), stable=True))
        object.__setattr__(self, "starts", F.pad(counts.cumsum(0), (1, 0)))

    def start(self) -> TrainingState:
        """Return the state before the first iteration."""
        theta = self.layout.flatten(self.network.tensors)
        tensors = self.opponent.new(keyed(make_key(self.spec.seed, "prior discriminator")))
        against = self.opponent_layout.flatten(tensors).to(theta.device)
        return TrainingState(
            0,
            Trained(theta, torch.zeros_like(theta)),
            theta,
            Trained(against, torch.zeros_like(against)),
            self.spec.augment_p if self.augment else 0.0,
        )

    def generator_of(self, theta: Tensor) -> Generator:
        """Return the generator with these parameters."""
        return self.network.with_tensors(self.layout.named(theta))

    def iterate(self, now: TrainingState) -> tuple[TrainingState, Losses]:
        """Return the state after one iteration, and what the losses were in it."""
        theta = now.generator.theta.detach().requires_grad_()
        rows = self._rows(now.iteration)
        drawn = self._drawn(
            theta, "prior fake", now.iteration, self.labels[rows]
        )  # for both networks
        discriminator, signs, spread, loss_d, r1 = self._discriminate(now, rows, drawn)
        generator, path_mean, loss_g, path = self._generate(
            now, theta, drawn, spread, discriminator.theta
        )
        seen = (now.iteration + 1) * self.spec.batch_size
        half_life = min(float(self.spec.ema_images), max(WARM_UP * seen, 1e-8))
        keep = 0.5 ** (self.spec.batch_size / half_life)
        after = replace(
            now,
            iteration=now.iteration + 1,
            generator=generator,
            average=generator.theta.lerp(now.average, keep),
            discriminator=discriminator,
            signs=now.signs + signs,
            path_mean=path_mean,
        )
        return self._adjusted(after), Losses(loss_d, loss_g, r1, path)

    def _adjusted(self, now: TrainingState) -> TrainingState:
        """Return the state with the probability of augmentation moved towards the target, every fourth time."""
        if now.iteration % ADJUST_EVERY:
            return now
        sign = now.signs / ADJUST_EVERY
        step = (
            ADJUST_EVERY * self.spec.batch_size / self.spec.augment_images if self.augment else 0.0
        )
        p = now.augment_p + (step if sign > self.spec.augment_target else -step)
        return replace(now, augment_p=min(max(p, 0.0), 1.0), signs=0.0, sign=sign)

    def _discriminate(
        self, now: TrainingState, rows: Tensor, drawn: Drawn
    ) -> tuple[Trained, float, Tensor, Tensor, Tensor]:
        spec = self.spec
        real, labels = self.images[rows], self.labels[rows]
        penalised = spec.r1_weight(self.opponent.size) > 0.0 and now.iteration % spec.r1_every == 0
        theta = now.discriminator.theta.detach().requires_grad_()
        tensors = self.opponent_layout.named(theta)
        real.requires_grad_(penalised)
        on_real = self.opponent.apply(tensors, self._seen(real, now, "real"), labels)
        on_fake = self.opponent.apply(
            tensors, self._seen(drawn.images.detach(), now, "fake"), labels
        )
        loss = F.softplus(-on_real.logits).mean() + F.softplus(on_fake.logits).mean()
        total = loss + spec.classify * F.cross_entropy(on_real.class_logits, labels)
        r1 = loss.new_zeros(())
        if penalised:
            (grad,) = torch.autograd.grad(on_real.logits.sum(), real, create_graph=True)
            r1 = grad.square().sum((1, 2, 3)).mean()
        (grad,) = torch.autograd.grad(
            total + 0.5 * spec.r1_weight(self.opponent.size) * spec.r1_every * r1, theta
        )
        signs = float(on_real.logits.detach().sign().mean())
        after = now.discriminator.step(grad, spec.lr, now.iteration)
        return after, signs, on_real.spread.detach(), loss.detach(), r1.detach()

    def _generate(
        self, now: TrainingState, theta: Tensor, drawn: Drawn, spread: Tensor, against: Tensor
    ) -> tuple[Trained, float, Tensor, Tensor]:
        spec, tensors = self.spec, self.opponent_layout.named(against)
        judged = self.opponent.apply(tensors, self._seen(drawn.images, now, "step"), drawn.labels)
        loss = F.softplus(-judged.logits).mean()
        missing = (1.0 - judged.spread / spread).relu().mean()
        total = (
            loss
            + spec.classify * F.cross_entropy(judged.class_logits, drawn.labels)
            + spec.diversity * missing
        )
        path, mean = loss.new_zeros(()), now.path_mean
        if spec.path_length > 0.0 and now.iteration % spec.path_every == 0:
            lengths = self._path_lengths(theta, now.iteration)
            mean += PATH_DECAY * (float(lengths.detach().mean()) - mean)
            path = (lengths - mean).square().mean()
            total = total + spec.path_length * spec.path_every * path
        (grad,) = torch.autograd.grad(total, theta)
        return now.generator.step(grad, spec.lr, now.iteration), mean, loss.detach(), path.detach()

    def _path_lengths(self, theta: Tensor, iteration: int) -> Tensor:
        """Return ``|J^T y|`` per image for half a batch, y normal over the side; differentiable."""
        labels = self.labels[self._rows(iteration)][: max(self.spec.batch_size // 2, 1)]
        drawn = self._drawn(theta, "prior path", iteration, labels)
        key = make_key(self.spec.seed, "prior path y", iteration)
        y = torch.randn(drawn.images.shape, generator=keyed(key)).to(drawn.images)
        (grad,) = torch.autograd.grad(
            (drawn.images * y).sum() / self.opponent.size, drawn.ws, create_graph=True
        )
        return grad.square().sum(2).mean(1).sqrt()

    def _drawn(self, theta: Tensor, purpose: str, iteration: int, labels: Tensor) -> Drawn:
        """Return generated images of these classes."""
        key = make_key(self.spec.seed, purpose, iteration)
        network = self.generator_of(theta)
        z = torch.randn(len(labels), self.spec.z_dim, generator=keyed(make_key(key, "z"))).to(theta)
        ws = network.mapping(z, labels)
        return Drawn(network.forward(ws, BatchNoise(key, range(len(labels)))), labels, ws)

    def _rows(self, iteration: int) -> Tensor:
        """Return a batch of row numbers of the real images, drawn with replacement; a group of ``_spread`` is of one class."""
        key, count = make_key(self.spec.seed, "prior rows", iteration), self.spec.batch_size
        group = group_size(count)
        firsts = torch.from_numpy(
            uniforms(make_key(key, "first"), count // group) * len(self.labels)
        ).long()
        ranks = torch.from_numpy(uniforms(key, count))
        of = (
            torch.searchsorted(self.starts, firsts, right=True).sub(1).repeat(group)
        )  # classes as often as they are
        place = self.starts[of] + (ranks * (self.starts[of + 1] - self.starts[of])).long()
        return self.by_class[place].to(self.labels.device)

    def _seen(self, images: Tensor, now: TrainingState, which: str) -> Tensor:
        """Return what the discriminator sees: every family of augmentations on every image with the current probability."""
        if self.augment is None or now.augment_p == 0.0:
            return images
        key = make_key(self.spec.seed, f"prior augment {which}", now.iteration)
        augment = Augment(
            self.augment.strategy, mode="M", siamese=False, key=key, align_corners=False
        )
        gated = []
        for place, (params, index) in enumerate(augment.parameters(shape=images.shape)):
            skipped = uniforms(make_key(key, "gate", place), len(images)) >= now.augment_p
            params[torch.from_numpy(skipped), 0] = IDENTITY
            gated.append((params.to(images.device), index.to(images.device)))
        return augment.apply(images + 1.0, gated) - 1.0  # what moves in from outside is black


def new_gan_training(spec: PriorSpec, data: ImageDataset, strategy: str) -> GanTraining:
    """Return the game for the training images of ``data`` (on their device).

    Args:
        spec: Settings.
        data: Its size must be a power of two from 8 on.
        strategy: Families of augmentations; ``"none"`` or ``""`` for no augmentation.
    """
    shape = {"size": data.size, "channels": data.channels, "classes": data.num_classes}
    widths = {"channel_base": spec.channel_base, "channel_max": spec.channel_max}
    network = new_stylegan2(
        **shape, **widths,
        z_dim=spec.z_dim,
        w_dim=spec.w_dim,
        mapping_layers=spec.mapping_layers,
        generator=keyed(make_key(spec.seed, "prior generator")),
    )  # fmt: skip
    augment = Augment(strategy, mode="M", siamese=False, key=0, align_corners=False)
    device = data.train.images.device
    return GanTraining(
        spec,
        2.0 * data.train.images - 1.0,
        data.train.labels,
        network.to(device),
        Discriminator(**shape, **widths),
        augment if augment.families else None,
    )
