"""Training a student on a set of images by SGD, the evaluation loop of the field, and accuracy.

Symbols: G networks, P parameters, B images of a batch, N images in all, C channels, S their side,
    K classes.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from kdistill.engine.layers import check_labels
from kdistill.engine.parameter_steps import (
    SCHEDULES,
    AveragedParameters,
    parameter_steps,
    rate_factor,
)
from kdistill.engine.students import Student
from kdistill.errors import ConfigError, NonFiniteError, ShapeError, did_you_mean
from kdistill.keys import generator, make_key, permutation

TEST_BATCH = 256


class ImageRows(Protocol):
    """Images that need not be in memory: ``source[rows]`` is a tensor ``[len(rows), C, S, S]``."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def __getitem__(self, rows: Tensor) -> Tensor: ...


def train(
    student: Student,
    images: Tensor | ImageRows,
    labels: Tensor,
    *,
    epochs: int,
    lr: float,
    key: int,
    batch_size: int = 256,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: str = "step",
    optimizer: str = "sgd",
    ema_decay: float = 0.0,
    augment: Callable[[Tensor, int], Tensor] | None = None,
    mix: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None,
    nets: int = 1,
    start: Tensor | None = None,
    gradient: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    rows_of: Callable[[int], Tensor] | None = None,
    images_of: Callable[[int], Tensor] | None = None,
    on_epoch: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Train networks on a set of images and return their parameters ``[nets, P]``.

    Args:
        student: The network.
        images: Normalised, ``[N, C, S, S]``, float32 or float64; a tensor, or anything that returns
            a batch for its row numbers.
        labels: int64 ``[N]``, or float LOGITS ``[N, K]`` of soft labels.
        epochs: Passes over the images.
        lr: Learning rate.
        key: Decides initial parameters and order of every network; network g does not depend on
            ``nets``.
        batch_size: Images per step; the last batch of an epoch may be smaller.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty on all parameters; decoupled from the gradient under AdamW.
        schedule: Factor of ``lr`` by epoch (``rate_factor``); at the drop of ``"step"`` the
            momentum starts afresh.
        optimizer: ``"sgd"`` or ``"adamw"``.
        ema_decay: Decay of a running mean of the parameters after every epoch, which is returned
            and handed to ``on_epoch`` in their place; 0 takes the parameters themselves.
        augment: ``(images, step) -> images``, deterministic in step.  Network g calls it with
            ``g*steps + step``, where ``steps`` is the number of steps of a whole run: every network
            has its own draws.
        mix: ``(images, labels, step) -> (images, labels)``, after ``augment`` and with the same
            steps, such as ``kdistill.cutmix.CutMix``; labels as above.
        nets: Number of networks, G.
        start: Parameters to begin with, ``[nets, P]``, which are not changed; None draws fresh
            ones.
        gradient: ``(theta, images, labels) -> (loss, direction)`` of a step; None is
            ``loss_and_grad``.
        rows_of: ``epoch -> rows``, int64: the images of that epoch (0 is the first), taken in a
            fresh order; None takes all.
        images_of: ``epoch -> images``, called once per epoch: images of a generator that replace
            ``images`` in that epoch, of the same shape and with the same labels.
        on_epoch: Called with (epochs done, ``[nets, P]``) after every epoch; the tensor changes
            afterwards, clone to keep it.

    Returns:
        The final parameters, on the device and in the dtype of the images.  Same arguments, thread
        count and machine: same bits.

    Raises:
        ConfigError: Unknown schedule or optimiser, or a number out of range.
        ShapeError: Labels or images do not fit the student.
        NonFiniteError: The loss stopped being finite.

    Cost: ``epochs * nets`` forward and backward passes over N images; memory of one chunk of images
        and ``3*P`` numbers per network.  The networks of a group run one after the other within an
        epoch (docs/design/students.md has the measurement).

    References: the evaluation loop of Zhao et al., Dataset Condensation with Gradient Matching,
        ICLR 2021.
    """
    _check(epochs, lr, batch_size, nets, schedule)
    check_labels("train", labels, (images.shape[0],), student.classes)
    if not images.shape[0]:
        raise ShapeError("train: expected at least one image, got none; pass the set to train on")
    if start is None:
        start = torch.stack(
            [student.init(generator(make_key(key, "init", g))) for g in range(nets)]
        )
    if tuple(start.shape) != (nets, student.num_params):
        raise ShapeError(
            f"train: expected start {[nets, student.num_params]}, got {list(start.shape)}; pass "
            "one row per network"
        )
    thetas = start.to(device=images.device, dtype=images.dtype, copy=True)
    rule = parameter_steps(optimizer, thetas, momentum=momentum, weight_decay=weight_decay)
    averaged, result = AveragedParameters(thetas, ema_decay), thetas
    gradient = gradient or student.loss_and_grad
    count, per_epoch = images.shape[0], -(-images.shape[0] // batch_size)
    for epoch in range(epochs):
        images = images if images_of is None else images_of(epoch)
        chosen = torch.arange(count) if rows_of is None else rows_of(epoch)
        rate = lr * rate_factor(schedule, epoch, epochs)
        if schedule == "step" and epoch == epochs // 2 + 1:
            rule.restart()
        for g in range(nets):
            order = permutation(make_key(key, "order", g, epoch), len(chosen))
            order = chosen[order.to(chosen.device)].to(images.device, non_blocking=True)
            losses = []
            for index, rows in enumerate(order.split(batch_size)):
                batch, targets = images[rows], labels[rows]
                step = (g * epochs + epoch) * per_epoch + index
                if augment is not None:
                    batch = augment(batch, step)
                if mix is not None:
                    batch, targets = mix(batch, targets, step)
                loss, grad = gradient(thetas[g], batch, targets)
                rule.step(g, grad, rate)
                losses.append(loss)
            _check_finite(torch.stack(losses), epoch, lr)
        result = averaged.after(epoch)
        if on_epoch is not None:
            on_epoch(epoch + 1, result)
    return result


@torch.no_grad()
def accuracy(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor, *, batch_size: int = TEST_BATCH
) -> Tensor:
    """Return the share of images whose largest logit is the label's, in [0, 1].

    Args:
        student: The network.
        theta: ``[P]`` or ``[G, P]``.
        images: Normalised, ``[N, C, S, S]``, N > 0.
        labels: int64 ``[N]``.
        batch_size: Images at a time; under batch statistics it changes the result.

    Returns:
        float64, a scalar or ``[G]``.

    Cost: one forward pass per network.
    """
    counts = confusion(student, theta, images, labels, batch_size=batch_size)
    return counts.diagonal(dim1=-2, dim2=-1).sum(-1).double() / len(labels)


@torch.no_grad()
def confusion(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor, *, batch_size: int = TEST_BATCH
) -> Tensor:
    """Return how many images of class i are taken for class j, int64 ``[K, K]`` or ``[G, K, K]``.

    The diagonal's sum over the number of images is ``accuracy``.

    Args:
        student: The network.
        theta: ``[P]`` or ``[G, P]``.
        images: Normalised, ``[N, C, S, S]``, N > 0.
        labels: int64 ``[N]``.
        batch_size: Images at a time; under batch statistics it changes the result.

    Cost: one forward pass per network.
    """
    check_labels("confusion", labels, (images.shape[0],), student.classes)
    if labels.is_floating_point() or not len(labels):
        raise ConfigError(
            "confusion: expected at least one image with an int64 label, got none; pass hard labels"
        )
    classes = student.classes
    counts = theta.new_zeros((*theta.shape[:-1], classes * classes), dtype=torch.int64)
    for rows, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        cells = truth * classes + student.infer(theta, rows).argmax(-1)
        counts.scatter_add_(-1, cells, torch.ones_like(cells))
    return counts.unflatten(-1, (classes, classes))


def _check(epochs: int, lr: float, batch_size: int, nets: int, schedule: str) -> None:
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"train: expected a known schedule, got '{schedule}'; "
            f"{did_you_mean(schedule, list(SCHEDULES))}"
        )
    if epochs < 0 or batch_size < 1 or nets < 1 or not lr > 0:
        raise ConfigError(
            f"train: expected epochs >= 0, batch_size >= 1, nets >= 1 and lr > 0, got {epochs}, "
            f"{batch_size}, {nets} and {lr}; correct the one that is out of range"
        )


def _check_finite(losses: Tensor, epoch: int, lr: float) -> None:
    if not bool(torch.isfinite(losses).all()):
        raise NonFiniteError(
            f"train: expected a finite loss, got {losses[-1].item()} in epoch {epoch + 1}; lower "
            f"lr (now {lr:g})"
        )
