"""How training steps the parameters of networks: optimisers, learning rates, running means.

Symbols: G networks, P parameters.
"""

import math
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from kdistill.errors import ConfigError, did_you_mean
from kdistill.optim import Adam, State

SCHEDULES = ("step", "cosine", "warmup_cosine", "halving", "constant")
OPTIMIZERS = ("sgd", "adamw")
FIFTHS = 5  # parts of a training with halving learning rates


def rate_factor(schedule: str, epoch: int, epochs: int) -> float:
    """Return the factor of the learning rate in an epoch (0 is the first).

    Args:
        schedule: ``"step"``: a tenth from epoch ``epochs//2 + 1`` on; ``"cosine"``: from 1 to 0;
            ``"warmup_cosine"``: linear up to 1 in the first half, and cosine down to 0 in the
            other; ``"halving"``: halved after every fifth of the epochs; ``"constant"``.
        epoch: Number of the epoch.
        epochs: Epochs of the whole training.
    """
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))
    if schedule == "warmup_cosine":
        half = max(1, epochs // 2)
        if epoch < half:
            return (epoch + 1) / half
        return 0.5 * (1.0 + math.cos(math.pi * (epoch - half) / max(1, epochs - half)))
    if schedule == "halving":
        return 0.5 ** (FIFTHS * epoch // epochs)
    return 0.1 if schedule == "step" and epoch > epochs // 2 else 1.0


class ParameterSteps(Protocol):
    """An optimiser of G networks, which changes their parameters in place."""

    def step(self, net: int, grad: Tensor, lr: float) -> None:
        """Step the parameters of a network by its gradient ``[P]``."""

    def restart(self) -> None:
        """Forget the gradients of all steps before."""


class MomentumSteps:
    """SGD with momentum (``sgd_``).

    Args:
        thetas: Parameters ``[G, P]``, which are stepped.
        momentum: Momentum.
        weight_decay: L2 penalty on all parameters.
    """

    def __init__(self, thetas: Tensor, momentum: float, weight_decay: float):
        self.thetas, self.momentum, self.weight_decay = thetas, momentum, weight_decay
        self.velocity = torch.zeros_like(thetas)

    def step(self, net: int, grad: Tensor, lr: float) -> None:
        """Step the parameters of a network by its gradient ``[P]``."""
        sgd_(
            self.thetas[net],
            self.velocity[net],
            grad,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def restart(self) -> None:
        """Forget the gradients of all steps before."""
        self.velocity.zero_()


class AdamSteps:
    """AdamW (``kdistill.optim.Adam`` with decoupled weight decay).

    Args:
        thetas: Parameters ``[G, P]``, which are stepped.
        weight_decay: Share of the parameters that a step takes off, times the learning rate.
    """

    def __init__(self, thetas: Tensor, weight_decay: float):
        self.thetas, self.rule = thetas, Adam(1.0, weight_decay=weight_decay)
        self.restart()

    def step(self, net: int, grad: Tensor, lr: float) -> None:
        """Step the parameters of a network by its gradient ``[P]``."""
        after, self.memory[net] = replace(self.rule, lr=lr).update(
            {"theta": grad}, self.memory[net], {"theta": self.thetas[net]}, self.steps[net]
        )
        self.thetas[net].copy_(after["theta"])
        self.steps[net] += 1

    def restart(self) -> None:
        """Forget the gradients of all steps before."""
        self.memory: list[State] = [self.rule.init({"theta": theta}) for theta in self.thetas]
        self.steps = [0] * len(self.thetas)


def parameter_steps(
    optimizer: str, thetas: Tensor, *, momentum: float, weight_decay: float
) -> ParameterSteps:
    """Return the optimiser of a training by its name.

    Raises:
        ConfigError: Unknown name.
    """
    if optimizer == "sgd":
        return MomentumSteps(thetas, momentum, weight_decay)
    if optimizer == "adamw":
        return AdamSteps(thetas, weight_decay)
    raise ConfigError(
        f"train: expected a known optimizer, got '{optimizer}'; "
        f"{did_you_mean(optimizer, list(OPTIMIZERS))}"
    )


class AveragedParameters:
    """The running mean of parameters after every epoch, which are tested in their place.

    The decay after epoch s (0 is the first) is ``min(decay, 1 - 1/(1 + s))``: the plain mean until
    there are enough epochs.

    Args:
        thetas: Parameters ``[G, P]`` in training.
        decay: Largest decay; 0 takes the parameters as they are.
    """

    def __init__(self, thetas: Tensor, decay: float):
        self.thetas, self.decay = thetas, decay
        self.mean = thetas.clone() if decay else thetas

    def after(self, epoch: int) -> Tensor:
        """Return the mean ``[G, P]`` with the parameters after an epoch."""
        if self.decay:
            self.mean.lerp_(self.thetas, 1.0 - min(self.decay, 1.0 - 1.0 / (1.0 + epoch)))
        return self.mean


@torch.no_grad()
def sgd_(
    theta: Tensor,
    velocity: Tensor,
    grad: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Take one step of SGD in place.

    ``v <- momentum*v + grad + weight_decay*theta``, then ``theta <- theta - lr*v``.
    """
    if momentum:
        velocity.mul_(momentum).add_(grad)
    else:
        velocity.copy_(grad)
    if weight_decay:
        velocity.add_(theta, alpha=weight_decay)
    theta.add_(velocity, alpha=-lr)
