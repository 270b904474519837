"""Learning rates that suit the data, found from a few first gradients.

The loss of a trajectory is close to a parabola in the student's learning rate alpha: too small and
the student stays where it is, too large and it runs past the expert; then the gradient drives alpha
to nothing before the images have moved.  Its minimum depends on the data, the number of images and
the experts, and so does the length of the images' gradient.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kdistill.errors import ConfigError, NonFiniteError
from kdistill.methods.base import MOVE, Problem, Step
from kdistill.priors import Prior, State

DRAWS = 3  # iterations that are averaged
FIRST, LEAST, MOST = 0.01, 1e-4, 1.0  # learning rates of the student that are tried
PROBE = 1e-3  # share of its norm by which a latent is moved to see what becomes of the images


def calibrated(
    measure: Callable[[int, Tensor], Step],
    images: Tensor,
    lr: float | None,
    lr_images: float | None,
) -> tuple[float, float]:
    """Return the student's learning rate and that of the images, found where None was given.

    Args:
        measure: ``(iteration, alpha) -> Step`` at the first images, with the gradient in ``lr``
            too.
        images: The first images.
        lr: The student's learning rate, or None: where the mean loss of the first iterations is
            least.
        lr_images: Learning rate of the images, or None: one by which the first step moves them by 3
            % of their norm.

    Cost: six to nine outer iterations per learning rate that is not given.
    """

    def looked(alpha: float) -> tuple[float, float]:
        try:
            steps = [measure(iteration, images.new_tensor(alpha)) for iteration in range(DRAWS)]
        except NonFiniteError:  # ran past the expert, and out of the numbers
            return math.inf, math.inf
        norm = sum(float(step.grad_images.norm()) for step in steps) / DRAWS
        return sum(float(step.grads["lr"]) for step in steps) / DRAWS, norm

    if lr is None:
        lr, norm = _least(looked)
        return lr, _moving(images, norm) if lr_images is None else lr_images
    if (
        lr_images is None
    ):  # a student that diverges is named by its own error: its learning rate was given
        alpha = images.new_tensor(lr)
        lr_images = calibrated_images(lambda iteration: measure(iteration, alpha), images)
    return lr, lr_images


def calibrated_images(measure: Callable[[int], Step], images: Tensor, move: float = MOVE) -> float:
    """Return the learning rate by which the first step moves the images by a share of their norm; ``measure`` is without alpha.

    Raises:
        ConfigError: Gradients or images are zero or not finite.

    Cost: three outer iterations.
    """
    return _moving(
        images,
        sum(float(measure(iteration).grad_images.norm()) for iteration in range(DRAWS)) / DRAWS,
        move,
    )


@dataclass(frozen=True, eq=False)
class FirstGradients:
    """The gradients in the images at the beginning of a run on latents, from which learning rates of latents are found.

    Attributes:
        images: The first images.
        found: dL/dimages of a few iterations that need nothing of the ones before.
        move: Share of their norm by which a first step is to move the images.
    """

    images: Tensor
    found: Mapping[int, Tensor]
    move: float

    @classmethod
    def of(cls, problem: Problem, images: Tensor, state: State) -> Self:
        """Return them; ``state`` holds the latents that ``images`` were rendered from, ``problem`` is still on pixels.

        Raises:
            ConfigError: All gradients are zero.

        Cost: three iterations of the objective.
        """
        everything = {**problem.state, **state}
        draws = [draw * problem.fresh_every for draw in range(DRAWS)]
        found = {draw: problem.objective(draw, images, everything).grad_images for draw in draws}
        if not any(bool(grad.any()) for grad in found.values()):
            raise ConfigError(
                f"lr_f, lr_w: expected gradients to find them from, got zeros in {DRAWS} "
                "iterations; name learning rates"
            )
        return cls(images, found, problem.first_move)

    def step_size(self, name: str, prior: Prior, state: State) -> float:
        """Return the learning rate whose first step along ``state[name]`` moves the images by ``move``, a share of their norm.

        Args:
            name: Of a tensor of the state.
            prior: That renders the state.
            state: Latents of the same images, perhaps at another depth.

        Returns:
            0 for a tensor without influence, such as W+ behind the last layer.

        Raises:
            ConfigError: A gradient is not finite.

        Cost: three passes forward and backward through the generator, and six forward.
        """
        moved = 0.0
        for iteration, grad_images in self.found.items():
            grad = prior.vjp(state, grad_images, iteration)[name]
            norm = float(torch.linalg.vector_norm(grad))
            if not math.isfinite(norm):
                raise ConfigError(
                    f"lr_f, lr_w: expected finite gradients in {name} to find a learning rate "
                    f"from, got a norm of {norm}; "
                    "name the learning rates"
                )
            if norm > 0.0:
                step = PROBE * float(torch.linalg.vector_norm(state[name])) / norm
                there = prior.render({**state, name: state[name] - step * grad}, iteration)
                moved += (
                    float(torch.linalg.vector_norm(there - prior.render(state, iteration))) / step
                )
        return _moving(self.images, moved / DRAWS, self.move) if moved > 0.0 else 0.0


def _moving(images: Tensor, norm: float, move: float = MOVE) -> float:
    length = float(torch.linalg.vector_norm(images))
    if norm == 0.0 < length:
        raise ConfigError(
            f"lr_images: expected gradients to find the learning rate from, got zeros in {DRAWS} "
            "iterations, as where the first "
            "images are all the real ones that there are; lower ipc, hold out less with "
            "validation=, or set init=noise"
        )
    if not (0.0 < norm < math.inf and 0.0 < length < math.inf):
        raise ConfigError(
            f"lr_images: expected gradients and images to find it from, got mean norms of {norm:g} "
            f"and {length:g} in {DRAWS} "
            "iterations; name a learning rate"
        )
    return move * length / norm


def _least(looked: Callable[[float], tuple[float, float]]) -> tuple[float, float]:
    """Return alpha where the mean slope changes its sign, between two steps of factor 2, and the images' gradient there."""
    alpha, (slope, norm) = FIRST, looked(FIRST)
    factor = 2.0 if slope < 0.0 else 0.5
    while LEAST < alpha < MOST:
        following, (next_slope, next_norm) = alpha * factor, looked(alpha * factor)
        if (next_slope < 0.0) != (slope < 0.0):
            if not (math.isfinite(slope) and math.isfinite(next_slope)):
                return min(alpha, following), norm if factor > 1.0 else next_norm
            share = slope / (slope - next_slope)  # of the way, where the line between them is 0
            return alpha * factor**share, norm ** (1.0 - share) * next_norm**share
        alpha, slope, norm = following, next_slope, next_norm
    return alpha, norm
