"""Learning rates that suit the data, found from a few first gradients.

The loss of a trajectory is close to a parabola in the student's learning rate alpha: too small and
the student stays where it is, too large and it runs past the expert; then the gradient drives alpha
to nothing before the images have moved.  Its minimum depends on the data, the number of images and
the experts, and so does the length of the images' gradient.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from kdistill.errors import ConfigError, NonFiniteError
from kdistill.methods.base import Problem, Step
from kdistill.optim import ByName, FirstMove, LeastLoss
from kdistill.priors import Prior, State

ALPHA = "lr"  # the student's learning rate in a state
PROBE = 1e-3  # share of its norm by which a latent is moved to see what becomes of the images


@torch.no_grad()
def calibrate(problem: Problem) -> Problem:
    """Return the problem with the learning rates that its optimizer lacks, and the student's.

    The student's learning rate is that of the least mean loss (``LeastLoss``).  A learning rate of
    None becomes one by which a first step moves the images by a share of their norm
    (``FirstMove``): of latents as far as the images follow them, of latents of a later stage where
    it begins; label logits, which no image is rendered from, are moved themselves.

    Raises:
        ConfigError: Gradients or images are zero or not finite.

    Cost: one rendering where nothing is lacking; else three outer iterations, for the student's
        learning rate six to nine, and for latents three passes forward and backward through the
        generator and six forward, at every stage.
    """
    images, norm = problem.prior.render(problem.state, 0), None
    rule = problem.optimizer.sgd(ALPHA)
    if ALPHA not in problem.state and rule is not None and rule.initial is not None:
        alpha, norm = _least_loss(problem, images, rule.initial)
        state = {**problem.state, ALPHA: images.new_full((), alpha)}
        problem = replace(problem, state=state)

    @cache  # one measurement serves every tensor
    def step(iteration: int) -> Step:
        return problem.objective(iteration, images, problem.state)

    optimizer = problem.optimizer
    if find := _lacking(optimizer, "images"):
        if norm is None:
            norm = _mean_norm([step(i).grad_images for i in find.iterations])
        optimizer = optimizer.with_lr("images", _rate(find, images, norm))
    state = problem.state
    optimizer = _with_rates(optimizer, problem.prior, state, images, step)
    for stage in problem.stages.stages[1:] if problem.stages else ():
        if any(_lacking(optimizer, name) for name in stage.learns):
            state = stage.enter(state, 0)
            optimizer = _with_rates(optimizer, problem.prior, state, images, step)
    return replace(problem, optimizer=optimizer)


def _lacking(optimizer: ByName, name: str) -> FirstMove | None:
    """Return how the learning rate of a tensor is found, or None where it is known."""
    rule = optimizer.sgd(name)
    return rule.find if rule is not None and rule.lr is None else None


def _with_rates(
    optimizer: ByName, prior: Prior, state: State, images: Tensor, step: Callable[[int], Step]
) -> ByName:
    """Return the optimizer with the learning rates of the tensors of ``state``."""

    @cache
    def vjp(iteration: int) -> State:
        return prior.vjp(state, step(iteration).grad_images, iteration)

    for name, x in state.items():
        if (find := _lacking(optimizer, name)) is None:
            continue
        direct = [step(i).grads[name] for i in find.iterations if name in step(i).grads]
        if direct:
            rate = _rate(find, x, _mean_norm(direct))
        elif not any(bool(step(i).grad_images.any()) for i in find.iterations):
            raise ConfigError(
                f"{find.option}: expected gradients to find them from, got zeros in "
                f"{len(find.iterations)} iterations; name learning rates"
            )
        else:
            moves = [_move(prior, state, name, vjp(i)[name], i, find) for i in find.iterations]
            moved = sum(moves) / len(moves)
            # a tensor without influence, such as W+ behind the last layer, stays where it is
            rate = _rate(find, images, moved) if moved > 0.0 else 0.0
        optimizer = optimizer.with_lr(name, rate)
    return optimizer


def _move(
    prior: Prior, state: State, name: str, grad: Tensor, iteration: int, find: FirstMove
) -> float:
    """Return how far a step on ``state[name]`` moves the images, per unit of the learning rate."""
    norm = float(torch.linalg.vector_norm(grad))
    if not math.isfinite(norm):
        raise ConfigError(
            f"{find.option}: expected finite gradients in {name} to find a learning rate from, got "
            f"a norm of {norm}; name the learning rates"
        )
    if norm == 0.0:
        return 0.0
    lr = PROBE * float(torch.linalg.vector_norm(state[name])) / norm
    moved = prior.render({**state, name: state[name] - lr * grad}, iteration)
    return float(torch.linalg.vector_norm(moved - prior.render(state, iteration))) / lr


def _mean_norm(grads: Sequence[Tensor]) -> float:
    return sum(float(grad.norm()) for grad in grads) / len(grads)


def _rate(find: FirstMove, x: Tensor, norm: float) -> float:
    """Return the learning rate by which a gradient of this norm moves ``x`` by its share."""
    length, count = float(torch.linalg.vector_norm(x)), len(find.iterations)
    if norm == 0.0 < length:
        raise ConfigError(
            f"{find.option}: expected gradients to find the learning rate from, got zeros in "
            f"{count} iterations, as where the first images are all the real ones that there are; "
            "lower ipc, hold out less with validation=, or set init=noise"
        )
    if not (0.0 < norm < math.inf and 0.0 < length < math.inf):
        raise ConfigError(
            f"{find.option}: expected gradients and images to find it from, got mean norms of "
            f"{norm:g} and {length:g} in {count} iterations; name a learning rate"
        )
    return find.share * length / norm


def _least_loss(problem: Problem, images: Tensor, find: LeastLoss) -> tuple[float, float]:
    """Return the student's learning rate of the least loss, and the norm of dL/dimages there.

    The mean slope changes its sign between two values that differ by a factor of 2.
    """

    def measured(alpha: float) -> tuple[float, float]:
        state = {**problem.state, ALPHA: images.new_tensor(alpha)}
        try:
            steps = [problem.objective(i, images, state) for i in find.iterations]
        except NonFiniteError:  # ran past the expert, and out of the numbers
            return math.inf, math.inf
        slope = sum(float(step.grads[ALPHA]) for step in steps) / len(steps)
        return slope, _mean_norm([step.grad_images for step in steps])

    alpha, (slope, norm) = find.first, measured(find.first)
    factor = 2.0 if slope < 0.0 else 0.5
    while find.smallest < alpha < find.largest:
        following, (next_slope, next_norm) = alpha * factor, measured(alpha * factor)
        if (next_slope < 0.0) != (slope < 0.0):
            if not (math.isfinite(slope) and math.isfinite(next_slope)):
                return min(alpha, following), norm if factor > 1.0 else next_norm
            share = slope / (slope - next_slope)  # of the way, where the line between them is 0
            return alpha * factor**share, norm ** (1.0 - share) * next_norm**share
        alpha, slope, norm = following, next_slope, next_norm
    return alpha, norm
