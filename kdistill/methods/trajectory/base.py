"""What the trajectory methods share: options, expert store, inner batches and the objective.

In every outer iteration: take an expert and a start epoch t, train from its snapshot t on the
synthetic images for N steps, and compare with its snapshot t + M.  Paper: Cazenavette et al., CVPR
2022, algorithm 1.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from torch import Tensor

from kdistill.augment import strategy_for
from kdistill.cache import cache_folder, check_private, digest_of, make_private
from kdistill.data import ImageDataset
from kdistill.engine import Student, TrajectoryMatch, trajectory_match
from kdistill.engine.inner_problem import Mask
from kdistill.engine.trajectory_gradient import GRAD_MODES, SMALLEST_LR
from kdistill.errors import NonFiniteError
from kdistill.experts import Estimate, ExpertSpec, TrajectoryStore, estimate, train_experts
from kdistill.experts.expert_training import Rows
from kdistill.files import explained
from kdistill.keys import generator, make_key, permutation, uniforms
from kdistill.methods import (
    DryRun,
    Experts,
    MethodConfig,
    Objective,
    Problem,
    Step,
    balanced_labels,
    initial_images,
)
from kdistill.methods.trajectory.learned_labels import label_metrics
from kdistill.optim import FirstMove, LeastLoss, Optimizer, averaged, by_name
from kdistill.options import AUTOMATIC, COUNT, NOT_NEGATIVE, POSITIVE, Unset, Words
from kdistill.priors import State, pixel_prior

FAST = {
    "iterations": 100,
    "syn_steps": 20,
    "expert_epochs": 2,
    "max_start_epoch": 6,
    "lr_images": None,
    "lr_lr": 1e-5,
    "lr_init": None,
    "batch_syn": 50,
    "init": "k_means",
    "width": 32,
    "num_experts": 6,
    "expert_lr": 0.03,
    "skip_move": 0.3,
}
# share of their norm by which a first step moves the images at one image per class; more images
# are each met less often in an iteration, and their gradients are noisier
FIRST_MOVE = 0.03  # docs/results/presets.md
# of published settings: N, M, T+, learning rates of images and of the student's, its start, batch
COLUMNS = "syn_steps expert_epochs max_start_epoch lr_images lr_lr lr_init batch_syn"


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig(MethodConfig):  # many fields, since each is an option that users set
    """Options of trajectory methods; the defaults are MTT's for CIFAR-10, 10 images per class.

    The network and the augmentation are those of experts and students alike; ``momentum`` and
    ``schedule`` hold for the images and for the student's learning rate.

    Attributes:
        iterations: Outer steps; every one takes an expert and a start epoch.
        syn_steps: N, steps of the student on the synthetic images.
        expert_epochs: M, epochs of the expert between start and target.
        max_start_epoch: T+; start epochs are drawn from 0 to T+ - 1.
        lr_images: Learning rate of the images (normalised pixels); where it is found, the first
            step moves them by ``first_move``.
        first_move: Share of their norm by which the first step moves the images, where
            ``lr_images`` is found.
        eight_bit: Let the objective see the images as pictures of 8 bits hold them, clipped and
            rounded, so that an export as PNG loses nothing.
        lr_lr: Learning rate of the student's learning rate.
        lr_init: The student's learning rate at the start; it is learned, and never below 1e-6.
        batch_syn: Synthetic images per step of the student.
        grad_mode: ``"adjoint"`` (exact), ``"unroll"`` (the same by autograd) or ``"tesla"``
            (truncated).
        checkpoint_every: Steps of a student's trajectory between two stored parameter vectors; the
            others are computed again: less memory, more time.
        cuda_graph: On a GPU, replay an outer step from one recorded graph of the same kernels.
        skip_move: Where ``lr_images`` is found: an iteration whose gradient alone would move the
            images by more than this share of their norm changes nothing.
        num_experts: Number of expert trajectories.
        expert_lr: Learning rate of the experts.
        expert_batch: Batch size of the experts.
        experts: Folder of the expert trajectories.
    """

    iterations: int = 5000
    syn_steps: Annotated[int, COUNT] = 30
    expert_epochs: Annotated[int, COUNT] = 2
    max_start_epoch: Annotated[int, COUNT] = 20
    lr_images: Annotated[float | None, NOT_NEGATIVE, AUTOMATIC] = 100.0
    first_move: Annotated[
        float | None, POSITIVE, Unset(f"{FIRST_MOVE} over the square root of the images per class")
    ] = None
    eight_bit: bool = False
    lr_lr: Annotated[float, NOT_NEGATIVE] = 1e-5
    lr_init: Annotated[float | None, POSITIVE, AUTOMATIC] = 0.001
    batch_syn: Annotated[int | None, COUNT, Unset("all")] = None
    grad_mode: Annotated[str, Words(tuple(GRAD_MODES))] = "adjoint"
    checkpoint_every: Annotated[int, COUNT] = 1
    cuda_graph: bool = False
    skip_move: Annotated[float | None, POSITIVE, Unset("no iteration is skipped")] = None
    num_experts: Annotated[int, COUNT] = 100
    expert_lr: Annotated[float, POSITIVE] = 0.01
    expert_batch: Annotated[int, COUNT] = 256
    experts: Annotated[str | None, Unset("under the cache folder, named by the settings")] = None

    def move(self, ipc: int) -> float:
        """Return the share of their norm by which the first step moves ``ipc`` images per class."""
        return FIRST_MOVE / math.sqrt(ipc) if self.first_move is None else self.first_move

    def before(self) -> dict[str, Any]:
        """Return what options were in earlier versions: a first move did not shrink."""
        return {**super().before(), "first_move": FIRST_MOVE if self.lr_images is None else None}

    def expert_spec(self, data: ImageDataset) -> ExpertSpec:
        """Return how the experts are trained; no longer than a start epoch and M reach."""
        return ExpertSpec(
            count=self.num_experts,
            epochs=self.max_start_epoch - 1 + self.expert_epochs,
            lr=self.expert_lr,
            batch_size=self.expert_batch,
            strategy=strategy_for(self.strategy, data.mirrors),
        )

    def expert_selection(self, data: ImageDataset) -> dict[str, Any] | None:
        """Return what decides which images the experts see in an epoch; None where they see all."""
        return None

    def expert_rows(self, data: ImageDataset) -> Rows | None:
        """Return ``epoch -> rows`` of that selection."""
        return None

    def window(self, iteration: int) -> tuple[int, int]:
        """Return the first start epoch of an iteration, and the one after the last."""
        return 0, self.max_start_epoch

    def dry_run(self, folder: Path) -> Self:
        """Return the options of a dry run: two inner steps, one expert of one epoch."""
        return replace(
            self,
            syn_steps=2,
            num_experts=1,
            max_start_epoch=1,
            expert_epochs=1,
            experts=str(folder),
            lr_init=self.lr_init or 0.01,  # any student will do for the time
        )


@dataclass(frozen=True, kw_only=True)
class FlatExpertsConfig(TrajectoryConfig):
    """Options of the methods whose experts are FTD's, trained by GSAM on flat trajectories.

    Attributes:
        rho: Radius of the perturbation by which the experts look for flat minima.
        surrogate: Weight of the orthogonal part of the gradient that the experts subtract.
    """

    rho: Annotated[float, NOT_NEGATIVE] = 0.01
    surrogate: Annotated[float, NOT_NEGATIVE] = 0.3

    def expert_spec(self, data: ImageDataset) -> ExpertSpec:
        """Return the recipe of MTT's experts with GSAM around SGD."""
        return replace(
            super().expert_spec(data), optimiser="gsam", rho=self.rho, surrogate=self.surrogate
        )


def published(
    columns: str, rows: Mapping[str, tuple[Any, ...]], **common: Any
) -> dict[str, dict[str, Any]]:
    """Return presets from a table of options, one row a preset; ``common`` holds for all rows."""
    names = columns.split()
    return {
        preset: {**dict(zip(names, row, strict=True)), **common} for preset, row in rows.items()
    }


def open_store(config: TrajectoryConfig, data: ImageDataset) -> TrajectoryStore:
    """Return the store of the experts for these settings; some of them may be missing.

    Raises:
        ConfigError: The folder holds trajectories of other data, another network or another recipe.
        DataError: The folder is damaged, or others can write that of the cache.
    """
    student, spec = config.network(data), config.expert_spec(data)
    training = {
        "training": data.training_digest(),
        "normalisation": data.transform.kind,
        "images": len(data.train),
        "size": data.size,
    }
    if config.precision != "fp32":
        training["precision"] = config.precision
    network = f"{student!r}, width {config.width}, norm {config.norm}"
    identity = spec.identity(training, network, config.expert_selection(data))
    if config.experts:
        folder = Path(config.experts)
    else:
        folder = cache_folder() / "experts" / f"{data.name}-{digest_of(identity)}"
        with suppress(FileNotFoundError, NotADirectoryError):
            check_private(folder.parent)
    return TrajectoryStore(folder, identity, num_params=student.num_params, epochs=spec.epochs)


def expert_store(config: TrajectoryConfig, data: ImageDataset) -> TrajectoryStore:
    """Return ``open_store`` with all experts; missing ones are trained, size and time said before.

    Raises:
        DataError: The folder cannot be written.
    """
    images, labels = data.transform.apply(data.train.images), data.train.labels
    store, rows_of = open_store(config, data), config.expert_rows(data)
    if not config.experts:
        with explained(store.folder):
            make_private(store.folder.parent)
    return train_experts(
        config.expert_spec(data), config.network(data), images, labels, store, rows_of=rows_of
    )


def missing_experts(config: TrajectoryConfig, data: ImageDataset) -> Estimate:
    """Return what training the missing experts costs, from a timed step."""
    spec, store = config.expert_spec(data), open_store(config, data)
    missing = sum(not store.has(i) for i in range(spec.count))
    images = data.transform.apply(data.train.images)
    return estimate(spec, config.network(data), images, data.train.labels, missing)


def dry_run_trajectory(config: TrajectoryConfig, data: ImageDataset, folder: Path) -> DryRun:
    """Return the run with two inner steps and one made-up expert in ``folder``."""
    student, ahead = config.network(data), missing_experts(config, data)
    short = config.dry_run(folder)
    start = student.init(generator(0))
    open_store(short, data).add(0, torch.stack([start, 1.01 * start + 1e-3]))
    every = config.checkpoint_every
    stored = -(-config.syn_steps // every) + (every if every > 1 else 0)
    return DryRun(
        config=short,
        steps_ratio=config.syn_steps / short.syn_steps,
        more_bytes=max(stored - short.syn_steps, 0) * student.num_params * 4,
        expert_bytes=ahead.nbytes,
        expert_seconds=ahead.seconds,
        num_params=student.num_params,
    )


EXPERTS = Experts(train=expert_store, dry_run=dry_run_trajectory)


def build_trajectory(
    config: TrajectoryConfig,
    data: ImageDataset,
    ipc: int,
    seed: int,
    start: Tensor | None,
    *,
    store: TrajectoryStore | None = None,
    labels_of: Callable[[Student, Tensor, Tensor, Tensor], Tensor] | None = None,
    soft: tuple[Tensor, Optimizer] | None = None,
    mask: Mask | None = None,
    skip_above: float | None = None,
    ema_decay: float | None = None,
) -> Problem:
    """Return the run of a trajectory method.

    Args:
        config: Its options.
        data: The real data.
        ipc: Images per class.
        seed: Seed of the run.
        start: Images to begin with, or None.
        store: The experts, or None: they are opened, and those that are missing are trained.
        labels_of: ``(student, target, images, labels) -> labels`` of the inner steps, constants of
            an iteration; None keeps the hard ones.
        soft: First logits ``[M, K]`` of labels that are learned, and their optimiser; None keeps
            the hard ones.
        mask: Mask of the parameters that are compared (PAD), see ``trajectory_match``.
        skip_above: An iteration with a larger loss changes nothing.
        ema_decay: Decay of a running mean of the images, which is the result.
    """
    images = initial_images(data, ipc, config.init, seed) if start is None else start
    state = {"images": images.clone()}
    steps: Optimizer = config.sgd(
        config.lr_images,
        find=FirstMove(share=config.move(ipc)),
        skip_move=config.skip_move if config.lr_images is None else None,
    )
    rules = {
        "images": steps if ema_decay is None else averaged(steps, ema_decay),
        "lr": config.sgd(
            config.lr_lr,
            minimum=SMALLEST_LR,
            initial=LeastLoss() if config.lr_init is None else None,
        ),
    }
    if config.lr_init is not None:
        state["lr"] = images.new_full((), config.lr_init)
    if soft is not None:
        state["label_logits"], rules["label_logits"] = soft
    experts = expert_store(config, data) if store is None else store
    labels = balanced_labels(data.num_classes, ipc).to(data.train.images.device)
    return Problem(
        prior=pixel_prior(data.transform, eight_bit=config.eight_bit),
        state=state,
        labels=labels,
        objective=_objective(config, data, seed, experts, labels, labels_of, mask),
        optimizer=by_name(rules, skip_above=skip_above),
        iterations=config.iterations,
        hint="lower lr_images, or lr_lr and lr_init" + ("" if soft is None else ", or lr_labels"),
    )


def _objective(
    config: TrajectoryConfig,
    data: ImageDataset,
    seed: int,
    experts: TrajectoryStore,
    labels: Tensor,
    labels_of: Callable[[Student, Tensor, Tensor, Tensor], Tensor] | None,
    mask: Mask | None,
) -> Objective:
    student, key = config.network(data), make_key(seed, "augment")
    augment = config.augmentation(data, key, siamese=False, align_corners=True)

    def objective(iteration: int, images: Tensor, state: State) -> Step:
        expert, epoch = _drawn(iteration, config.num_experts, config.window(iteration), seed)
        start, target = (
            experts.snapshot(expert, at).to(images, non_blocking=True)
            for at in (epoch, epoch + config.expert_epochs)
        )
        current = state.get("label_logits", labels)
        key = make_key(seed, "batch", iteration)
        match = trajectory_match(
            student,
            start,
            target,
            images,
            current if labels_of is None else labels_of(student, target, images, labels),
            state["lr"],
            batches=_batches(len(images), config.batch_syn or len(images), config.syn_steps, key),
            augment=augment if augment.families else None,
            first_step=iteration * config.syn_steps,
            mask=mask,
            grad_mode=config.grad_mode,
            checkpoint_every=config.checkpoint_every,
            cuda_graph=config.cuda_graph,
        )
        _check_finite(match, state["lr"], epoch, iteration)
        grads = {"lr": match.grad_lr.to(images)}
        if "label_logits" in state and match.grad_labels is not None:
            grads["label_logits"] = match.grad_labels
        metrics = label_metrics(current, labels) if "label_logits" in state else {}
        return Step(match.loss, match.grad_images, grads, metrics=metrics)

    return objective


def _drawn(iteration: int, experts: int, window: tuple[int, int], seed: int) -> tuple[int, int]:
    """Return expert and start epoch: all experts once in a random order, then again in another."""
    order = permutation(make_key(seed, "experts", iteration // experts), experts)
    low, high = window
    epoch = low + int(uniforms(make_key(seed, "start epoch", iteration), 1)[0] * (high - low))
    return int(order[iteration % experts]), epoch


def _batches(count: int, size: int, steps: int, key: int) -> list[Tensor]:
    """Return the images of every step: shuffled passes in chunks, the short one first."""
    batches: list[Tensor] = []
    while len(batches) < steps:
        chunks = permutation(make_key(key, "pass", len(batches)), count).split(size)
        batches += reversed(chunks)
    return batches[:steps]


def _check_finite(match: TrajectoryMatch, lr: Tensor, epoch: int, iteration: int) -> None:
    """Name the cause where the student itself diverged; the loop checks everything else."""
    norms = match.grad_norms
    if norms.device.type != "cpu" or bool(torch.isfinite(norms).all()):
        return
    step = int((~torch.isfinite(norms)).nonzero()[0])
    raise NonFiniteError(
        f"distill: expected the student of iteration {iteration} to train, got a gradient that is "
        f"not finite at step {step} (learning rate {float(lr):g}, start epoch {epoch}); lower "
        "lr_lr or lr_init if the learning rate has grown, else that of the images or latents"
    )
