"""What methods share whose product is a generator: options, two stages, one objective.

    stage 1   critic and generator learn from each other (AC-WGAN-GP)
    stage 2   the same, and the generator is drawn to what networks say of real images

One iteration renders a batch of images with fresh noise, trains the critic on it and on as many
real images of the same classes, and gives dL/dimages of the generator's loss under the critic so
trained, to which stage 2 adds that of a matching loss.  The prior turns it into the gradient in the
weights.

A critic and its moments, the pool's network and its momentum are tensors of the run's state: they
are in a checkpoint, and a resumed run has the same bits.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any

import torch
from torch import Tensor

from kdistill.artifacts.tensors import digest
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError
from kdistill.keys import generator as keyed
from kdistill.keys import make_key, permutation, uniforms
from kdistill.methods.base import MethodConfig, Problem, Step
from kdistill.methods.init import balanced_labels
from kdistill.optim import Adam, Averaged, Consecutive, Optimizer, State, by_name
from kdistill.options import COUNT, DECAY, ITERATIONS, NOT_NEGATIVE, POSITIVE, SHARE, Range
from kdistill.priors.conditional_gan import (
    Adversary,
    ConditionalGenerator,
    ConditionalGeneratorConfig,
    Critic,
    GeneratorWeightsPrior,
    generator_loss,
    load_folder,
)

_log = logging.getLogger("kdistill")
BATCH = Range("at least 2", lambda n: n >= 2, "batch norm needs the statistics of several images")
BETAS = (0.0, 0.9)  # of Adam, as published


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(MethodConfig):  # many fields, since each is an option that users set
    """Options of methods whose product is a generator; the defaults are DiM's for CIFAR-10.

    Attributes:
        iterations: Iterations of stage 2, the matching.
        momentum: Not used: Adam steps the generator.
        schedule: The learning rates of either stage are ``"constant"``.
        init: Not used, but for the images from which an objective finds its learning rates.
        width: Width of the ConvNet in the pool; the other networks are narrower in proportion.
        gan_iterations: Iterations of stage 1, the conditional GAN; none where it begins with
            ``generator``.
        generator: Folder of an earlier generator, with whose stage 1 the run begins.
        generator_width: Channels of the generator's feature maps.
        noise: Length of the generator's noise.
        label_embedding: Length of the learned embedding of a label, beside the noise.
        critic_width: Channels of the critic's feature maps.
        gan_batch: Real and generated images of an iteration of stage 1; the critic takes no more in
            stage 2.
        batch_size: Real and generated images of an iteration of stage 2.
        lr_gan: Learning rate of generator and critic in stage 1.
        lr_match: Learning rate of generator and critic in stage 2.
        penalty: Weight of the critic's gradient penalty.
        penalty_share: Share of the pairs of images on which the penalty is taken.
        critic_rate: Learning rate of the critic over that of the generator.
        adversarial: Weight of the critic's opinion in stage 2; 0 leaves the critic out.
        ema_decay: Decay of the running mean of the generator's weights, which is the product; 0
            takes the last weights.
        chunk: Images that have a graph of the generator at one time; more images in an iteration
            are several batches for its batch norm.
    """

    iterations: int = 78_100
    gan_iterations: Annotated[int, ITERATIONS] = 58_500
    generator: Annotated[str, "a folder"] = ""
    generator_width: Annotated[int, COUNT] = 196
    noise: Annotated[int, COUNT] = 100
    label_embedding: Annotated[int, COUNT] = 64
    critic_width: Annotated[int, COUNT] = 196
    gan_batch: Annotated[int, BATCH] = 128
    batch_size: Annotated[int, BATCH] = 64
    lr_gan: Annotated[float, POSITIVE] = 1e-4
    lr_match: Annotated[float, POSITIVE] = 5e-6
    penalty: Annotated[float, NOT_NEGATIVE] = 10.0
    penalty_share: Annotated[float, SHARE] = 1.0
    critic_rate: Annotated[float, POSITIVE] = 1.0
    adversarial: Annotated[float, NOT_NEGATIVE] = 1.0
    ema_decay: Annotated[float, DECAY] = 0.0
    chunk: Annotated[int, BATCH] = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule != "constant":
            raise ConfigError(
                f"schedule: expected constant for a generator, got {self.schedule}; leave it out, "
                "and set lr_gan and lr_match"
            )

    @property
    def stage_2_start(self) -> int:
        """The first iteration of stage 2."""
        return 0 if self.generator else self.gan_iterations


@dataclass(frozen=True)
class RealBatch:
    """Real images of an iteration, of the classes of the generated ones.

    Attributes:
        rows: Their numbers, int64 ``[M]``.
        images: Normalised, ``[M, C, S, S]``.
        labels: int64 ``[M]``.
    """

    rows: Tensor
    images: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Stage 2 beside the critic.

    Attributes:
        objective: ``(iteration, images, real, state) -> Step``; iteration 0 is the first of the
            stage, images are normalised.
        iterations: Length of the stage.
        ipc: Images of each class in an iteration, class-major; None takes the labels of a batch of
            real images.
        state: Tensors that an iteration hands to the next.
        rules: Optimisers of tensors that are learned beside the generator.
        provenance: What the result depends on beside options and data.
    """

    objective: Callable[[int, Tensor, RealBatch, State], Step]
    iterations: int
    ipc: int | None = None
    state: State = field(default_factory=dict)
    rules: Mapping[str, Optimizer] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


class RealRows:
    """Row numbers of the real images of every iteration; a pure function of it.

    Args:
        labels: Classes of all real images, int64 ``[N]``.
        sizes: Images of an iteration, in stage 1 and in stage 2.
        start: The first iteration of stage 2.
        ipc: As in ``Matching``.
        seed: Seed of the run.
    """

    def __init__(
        self, labels: Tensor, sizes: tuple[int, int], start: int, ipc: int | None, seed: int
    ):
        self.labels, self.start, self.ipc, self.seed = labels.cpu(), start, ipc, seed
        self.sizes = tuple(min(size, len(labels)) for size in sizes)
        self.order = torch.argsort(self.labels, stable=True)
        self.counts = torch.bincount(self.labels)
        self._shuffled = lru_cache(maxsize=1)(self._permutation)

    def __call__(self, iteration: int) -> Tensor:
        """Return int64 ``[M]``: part of a shuffled epoch, or random images of each class."""
        stage = int(iteration >= self.start)
        if stage and self.ipc is not None:
            labels = balanced_labels(len(self.counts), self.ipc)
            drawn = uniforms(make_key(self.seed, "real of class", iteration), len(labels))
            first = self.counts.cumsum(0) - self.counts
            ranks = (torch.from_numpy(drawn) * self.counts[labels]).long()
            return self.order[first[labels] + ranks]
        size = self.sizes[stage]
        epoch, batch = divmod(iteration - stage * self.start, len(self.labels) // size)
        return self._shuffled(epoch)[batch * size : (batch + 1) * size]

    def _permutation(self, epoch: int) -> Tensor:
        return permutation(make_key(self.seed, "real rows", epoch), len(self.labels))


def build_run(
    config: GeneratorConfig,
    data: ImageDataset,
    ipc: int,
    seed: int,
    start: Tensor | None,
    matching: Matching,
) -> Problem:
    """Return the run: both stages under one objective.

    Raises:
        ConfigError: There are images to begin with, or the earlier generator does not fit the data.
    """
    if start is not None:
        raise ConfigError(
            "init: expected no images to begin with, got some; a generator begins with draws, or "
            "with generator=FOLDER; leave init out"
        )
    first = beginning(config, data, seed)
    provenance = dict(matching.provenance)
    if config.generator:
        provenance["generator"] = {"sha256": digest({**first.tensors, **first.critic}, {})}
    rows = RealRows(
        data.train.labels,
        (config.gan_batch, config.batch_size),
        config.stage_2_start,
        matching.ipc,
        seed,
    )
    device = data.train.images.device
    prior = GeneratorWeightsPrior(
        config=first.config,
        labels=lambda iteration: rows.labels[rows(iteration)],
        transform=data.transform,
        key=make_key(seed, "prior"),
        chunk=config.chunk,
    )
    adam = Adam(config.lr_gan, BETAS)
    adversary = Adversary(
        critic_of(first), Adam(config.lr_gan, BETAS), config.penalty, config.penalty_share
    )
    slow = Adam(config.lr_match, BETAS)
    rule: Optimizer = Consecutive(adam, slow, config.stage_2_start)
    if config.ema_decay:
        rule = Averaged(rule, config.ema_decay)
    run = GeneratorRun(config, data, seed, adversary, matching, rows)

    def product(state: State) -> ConditionalGenerator:
        tensors = prior.tensors(state)
        frozen = first.config.frozen(
            tensors, make_key(seed, "statistics"), batch_size=rows.sizes[0]
        )
        return ConditionalGenerator(first.config, frozen, adversary.tensors(state))

    return Problem(
        prior=prior,
        state={
            **prior.state(first.tensors),
            **adversary.init(first.critic),
            **{name: x.to(device) for name, x in matching.state.items()},
        },
        labels=balanced_labels(data.num_classes, ipc).to(device),
        objective=run.objective,
        optimizer=by_name({"generator": rule, **matching.rules}),
        iterations=config.stage_2_start + matching.iterations,
        provenance=provenance,
        hint="lower lr_gan, lr_match or lr_net",
        phases=(0, config.stage_2_start),
        generator=product,
    )


def critic_of(network: ConditionalGenerator) -> Critic:
    """Return the critic whose tensors a generator carries."""
    return Critic(
        size=network.size,
        channels=network.channels,
        classes=network.classes,
        width=len(network.critic["convs.0.weight"]),
    )


def beginning(config: GeneratorConfig, data: ImageDataset, seed: int) -> ConditionalGenerator:
    """Return generator and critic before the first iteration, on the data's device.

    Raises:
        ConfigError: The earlier generator is one of other images.
        DataError: There is no earlier generator in the folder, or a damaged one.
    """
    critic = Critic(
        size=data.size,
        channels=data.channels,
        classes=data.num_classes,
        width=config.critic_width,
    )
    device, untrained = data.train.images.device, critic.new(keyed(make_key(seed, "critic")))
    if config.generator:
        earlier = load_folder(config.generator)
        _check_fit(earlier, data)
        if not earlier.critic:
            _log.warning("generator: no critic in %s; a new one begins", config.generator)
            earlier = replace(earlier, critic=untrained)
        return earlier.to(device)
    network = ConditionalGeneratorConfig(
        classes=data.num_classes,
        channels=data.channels,
        size=data.size,
        width=config.generator_width,
        noise=config.noise,
        label=config.label_embedding,
    )
    tensors = network.new(keyed(make_key(seed, "generator")))
    return ConditionalGenerator(network, tensors, untrained).to(device)


def _check_fit(network: ConditionalGenerator, data: ImageDataset) -> None:
    for what, expected, got in (
        ("classes", data.num_classes, network.classes),
        ("channels", data.channels, network.channels),
        ("pixels a side", data.size, network.size),
    ):
        if expected != got:
            raise ConfigError(
                f"generator: expected one of {expected} {what}, got {got}; name a generator of "
                "these images, or leave it out"
            )


@dataclass(frozen=True, eq=False)
class GeneratorRun:
    """The objective of both stages.

    Attributes:
        config: Options.
        data: The real images.
        seed: Seed of the run.
        adversary: The critic.
        matching: What stage 2 adds.
        rows: Real images of every iteration.
    """

    config: GeneratorConfig
    data: ImageDataset
    seed: int
    adversary: Adversary
    matching: Matching
    rows: RealRows

    def objective(self, iteration: int, images: Tensor, state: State) -> Step:
        """Return the loss of the generator and its gradient in the images."""
        start = self.config.stage_2_start
        rows = self.rows(iteration).to(images.device)
        weight = self.config.adversarial if iteration >= start else 1.0
        step = Step(images.new_zeros(()), torch.zeros_like(images))
        if weight > 0.0:
            step = self._adversarial(iteration, images, rows, state, weight)
        if iteration < start:
            return step
        train = self.data.train
        real = RealBatch(rows, self.data.transform.apply(train.images[rows]), train.labels[rows])
        match = self.matching.objective(iteration - start, images, real, state)
        return Step(
            step.loss + match.loss,
            step.grad_images + match.grad_images,
            match.grads,
            {**step.updates, **match.updates},
            {**step.metrics, **match.metrics},
        )

    def _adversarial(
        self, iteration: int, images: Tensor, rows: Tensor, state: State, weight: float
    ) -> Step:
        """Train the critic, and return its opinion of the images thereafter.

        It takes at most ``gan_batch`` of them, so that its memory is that of stage 1.
        """
        config, adversary, train = self.config, self.adversary, self.data.train
        every, chosen = images, torch.arange(len(images))
        if len(images) > config.gan_batch:
            key = make_key(self.seed, "critic rows", iteration)
            chosen = permutation(key, len(images))[: config.gan_batch]
        chosen = chosen.to(images.device)
        images, rows = images[chosen], rows[chosen]
        start, labels, real = (
            config.stage_2_start,
            train.labels[rows],
            2.0 * train.images[rows] - 1.0,
        )
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            fake = 2.0 * self.data.transform.invert(leaf) - 1.0
        updates, losses = adversary.trained(
            state,
            iteration,
            real,
            fake,
            labels,
            make_key(self.seed, "penalty", iteration),
            config.critic_rate * (config.lr_gan if iteration < start else config.lr_match),
        )
        with torch.enable_grad():
            loss = generator_loss(adversary.critic, adversary.tensors(updates), fake, labels)
            (grad,) = torch.autograd.grad(weight * loss, leaf)
        metrics = {**losses, "adversarial_loss": loss.detach()}
        grad_images = torch.zeros_like(every).index_copy_(0, chosen, grad)
        return Step(weight * loss.detach(), grad_images, updates=updates, metrics=metrics)
