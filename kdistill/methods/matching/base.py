"""What the gradient matching methods share: options, the two loops and the objective.

    for a fresh network theta_0:  for o = 0 .. T-1: S <- one step of SGD on  sum_c D(grad of the
        loss on S_c, grad on a real batch of class c)  at theta_o theta_{o+1} <- theta_o trained on
        S for E epochs

One iteration of the loop is one matching step; the network travels in its state, so that a
checkpoint holds all there is.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.data.class_sampler import ClassSampler
from kdistill.engine import Student, train
from kdistill.engine.gradient_distance import DISTANCES, output_rows
from kdistill.engine.students import ConvNet
from kdistill.errors import ConfigError, NonFiniteError
from kdistill.keys import generator, make_key
from kdistill.methods.base import Problem, Step
from kdistill.methods.difficulty import FilteredConfig
from kdistill.methods.init import balanced_labels, initial_images
from kdistill.objectives.class_gradient_match import class_gradient_match
from kdistill.objectives.masks import depth_mask
from kdistill.optim import FirstMove, by_name
from kdistill.options import (
    AUTOMATIC,
    COUNT,
    MASKED_SHARE,
    NOT_NEGATIVE,
    POSITIVE,
    Unset,
    Words,
)
from kdistill.priors import PixelPrior, State

LOOPS = {
    1: (1, 1),
    10: (10, 50),
    20: (20, 25),
    30: (30, 20),
    40: (40, 15),
    50: (50, 10),
}  # images per class -> (T, E)
MOST_STEPS, EPOCHS_IN_ALL = 50, 500  # what the published table follows, for any other number
# share of their norm by which a first step moves the images; 3 % is too much
# (docs/design/gradient_matching.md)
FIRST_MOVE = 0.01
STATISTICS_REAL = 16  # real images of each class behind the frozen statistics of batch norm

FAST = {
    "iterations": 100, "outer_steps": 4, "inner_epochs": 10, "batch_real": 64, "width": 32, "lr_images": None, "init": "k_means",
    "score_nets": 3, "score_epochs": 3,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GradientConfig(FilteredConfig):
    """Options of gradient matching beside those that every method has; the defaults are the published ones for all data sets.

    PAD for gradient matching (its appendix A.1): ``drop_hardest`` or ``drop_easiest`` with the
    options of scores (FIEX), and ``mask_ratio`` (FIEM).

    Attributes:
        iterations: Fresh networks; every one is matched ``outer_steps`` times.
        outer_steps: T, matching steps per network.
        inner_epochs: E, epochs of training on the synthetic images between two matching steps.
        batch_real: Real images of each class per matching step.
        batch_train: Synthetic images per step of the network's training.
        lr_images: Learning rate of the images (normalised pixels); where it is found, the first
            step moves them by 1 % of their norm.
        lr_net: Learning rate of the network; no momentum, no weight decay.
        distance: Between gradients: ``"cosine_rows"`` (the published one), ``"cosine"`` or
            ``"mse"``.
        mask_ratio: Share of the parameters, shallow ones first, whose gradients are not compared
            (PAD's FIEM).
    """

    iterations: int = 1000
    outer_steps: Annotated[int | None, COUNT, Unset("follows the images per class")] = None
    inner_epochs: Annotated[int | None, COUNT, Unset("follows the images per class")] = None
    batch_real: Annotated[int, COUNT] = 256
    batch_train: Annotated[int, COUNT] = 256
    lr_images: Annotated[float | None, NOT_NEGATIVE, AUTOMATIC] = 0.1
    lr_net: Annotated[float, POSITIVE] = 0.01
    distance: Annotated[str, Words(tuple(DISTANCES))] = "cosine_rows"
    mask_ratio: Annotated[float, MASKED_SHARE] = 0.0

    def loops(self, ipc: int) -> tuple[int, int]:
        """Return (T, E): the published table, and for other numbers of images per class T = min(ipc, 50), E = ceil(500/T)."""
        steps = min(ipc, MOST_STEPS)
        steps, epochs = LOOPS.get(ipc, (steps, -(-EPOCHS_IN_ALL // steps)))
        return self.outer_steps or steps, self.inner_epochs or epochs


def build_gradient(
    config: GradientConfig, data: ImageDataset, ipc: int, seed: int, start: Tensor | None
) -> Problem:
    """Return the run: every draw is keyed by its matching step."""
    student = config.network(data)
    _check_norm(student, config.norm)
    _check_mask(student, config)
    steps, epochs = config.loops(ipc)
    siamese = config.augmentation(data, make_key(seed, "augment"), siamese=True)
    inner = config.augmentation(data, make_key(seed, "augment training"), siamese=False)
    matched = config.kept(data).train
    real_labels = matched.labels.cpu()  # draws look at them on the host
    sampler = ClassSampler(real_labels, data.num_classes)
    seen = data.transform.apply(matched.images)
    mask = (
        depth_mask(student.num_params, config.mask_ratio).to(seen)
        if config.mask_ratio > 0.0
        else None
    )
    host_labels = balanced_labels(data.num_classes, ipc)
    labels = host_labels.to(seen.device)
    per_call = epochs * -(
        -len(labels) // config.batch_train
    )  # steps of the network between two matching steps

    def network_at(iteration: int, images: Tensor, theta: Tensor) -> Tensor:
        if iteration % steps == 0:
            return student.init(generator(make_key(seed, "student", iteration // steps))).to(
                images, non_blocking=True
            )
        try:
            trained = train(
                student, images, labels, epochs=epochs, lr=config.lr_net, key=make_key(seed, "training", iteration), momentum=0.0,
                weight_decay=0.0, schedule="constant", batch_size=config.batch_train, start=theta[None],
                augment=(lambda x, step: inner(x, iteration * per_call + step)) if inner.families else None,
            )  # fmt: skip
        except NonFiniteError:
            raise NonFiniteError(
                f"distill: expected the network of matching step {iteration} to train on the "
                "images, got a loss that is not "
                f"finite; lower lr_net (now {config.lr_net:g}) or the learning rate of the images "
                "or latents"
            ) from None
        return trained[0]

    def objective(iteration: int, images: Tensor, state: State) -> Step:
        theta = network_at(iteration, images, state["theta"])
        rows = sampler.draw(config.batch_real, make_key(seed, "real", iteration))
        loss, grad = class_gradient_match(
            _frozen(student, theta, seen, sampler, make_key(seed, "statistics", iteration)), theta,
            seen[rows.to(seen.device, non_blocking=True)],
            real_labels[rows], images, host_labels, distance=config.distance, mask=mask,
            augment=siamese if siamese.families else None, step=iteration,
        )  # fmt: skip
        return Step(loss, grad, updates={"theta": theta})

    images = initial_images(data, ipc, config.init, seed) if start is None else start
    state = {"images": images.clone(), "theta": images.new_zeros(student.num_params)}
    # found from fresh networks, which every T-th step begins with
    find = FirstMove(share=FIRST_MOVE, iterations=(0, steps, 2 * steps))
    iterations = config.iterations * steps
    return Problem(
        prior=PixelPrior(),
        state=state,
        labels=labels,
        objective=objective,
        optimizer=by_name({"images": config.sgd(config.lr_images, iterations, find=find)}),
        iterations=iterations,
        provenance=config.table_identity(data),
        hint="lower lr_images, or lr_net",
    )


def _frozen(
    student: Student, theta: Tensor, seen: Tensor, sampler: ClassSampler, key: int
) -> Student:
    """Return the student that matches: under batch norm one with the statistics of a few real images of all classes."""
    if not isinstance(student, ConvNet) or student.spec.norm != "batch":
        return student
    rows = sampler.draw(STATISTICS_REAL, key).to(seen.device)
    return student.with_statistics(student.batch_statistics(theta, seen[rows]))


def _check_mask(student: Student, config: GradientConfig) -> None:
    """Refuse a mask that leaves biases alone: no row would be compared, and nothing would ever change."""
    left_out = math.floor(student.num_params * config.mask_ratio)
    last, length = output_rows(student.slots).on(torch.device("cpu"))[-1].tolist()
    if config.distance == "cosine_rows" and left_out >= last + length:
        raise ConfigError(
            f"mask_ratio: expected weights to be left to compare, got {config.mask_ratio:g}, which "
            f"leaves out {left_out} of "
            f"{student.num_params} parameters, all weights up to {last + length}; lower it"
        )


def _check_norm(student: Student, norm: str) -> None:
    if norm == "batch" and not isinstance(student, ConvNet):
        raise ConfigError(
            f"norm: expected 'batch' with student 'convnet' alone, got '{student.name}'; gradients "
            "of single classes need frozen "
            "statistics, use norm 'instance'"
        )
