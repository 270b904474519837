"""Optimisers as values: two pure functions, ``init`` and ``update``, on named tensors.

    opt_state = optimizer.init(state)
    state, opt_state = optimizer.update(grads, opt_state, state, iteration)

Only tensors that have a gradient are stepped; every other tensor of the state stays.  What an
optimiser remembers is a flat dictionary such as ``{"velocity.images": ...}``, which a checkpoint
holds as it is.  A new optimiser derives from ``Optimizer`` and writes these two functions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from kdistill.errors import ConfigError

State = dict[str, Tensor]  # named tensors


@dataclass(frozen=True)
class Schedule:
    """Factor of a learning rate in every iteration.

    Attributes:
        kind: ``"constant"``, or ``"cosine"``: from 1 down to 0 after the last iteration.
        iterations: Length of the run.
    """

    kind: Literal["constant", "cosine"] = "constant"
    iterations: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "cosine"):
            raise ConfigError(
                f"schedule: expected one of constant, cosine, got '{self.kind}'; constant is usual"
            )

    def __call__(self, iteration: int) -> float:
        """Return the factor at ``iteration`` (0 is the first)."""
        if self.kind == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * iteration / self.iterations))


@dataclass(frozen=True)
class FirstMove:
    """How a learning rate that is not given is to be found: from the length of a first step.

    Attributes:
        option: Option that would name the learning rate, for messages.
        share: Share of their norm by which a first step is to move the images (or the tensor
            itself, where no image is rendered from it).
        iterations: Iterations whose gradients are averaged; they must not need the ones before.
    """

    option: str = "lr_images"
    share: float = 0.03
    iterations: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class LeastLoss:
    """How the first value of a positive scalar is to be found: where the mean loss is least.

    Attributes:
        first: The first value that is tried.
        smallest: Values below are not tried.
        largest: Values above are not tried.
        iterations: Iterations whose losses are averaged; they must not need the ones before.
    """

    first: float = 0.01
    smallest: float = 1e-4
    largest: float = 1.0
    iterations: tuple[int, ...] = (0, 1, 2)


class Optimizer(ABC):
    """What the loop asks of an optimiser; only ``init`` and ``update`` must be written."""

    @abstractmethod
    def init(self, state: State) -> State:
        """Return what the optimiser remembers before the first step on the tensors of ``state``."""

    @abstractmethod
    def update(
        self, grads: State, opt_state: State, state: State, iteration: int
    ) -> tuple[State, State]:
        """Return state and memory after a step on the tensors that ``grads`` names; pure."""

    def rule(self, name: str) -> "Optimizer | None":
        """Return the optimiser that steps the tensor ``name``, or None if nothing does."""
        return self

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rates that are known, for the record of a run."""
        return {}

    def with_lr(self, name: str, lr: float) -> "Optimizer":
        """Return the optimiser with this learning rate for the tensor ``name``."""
        return self

    def result(self, state: State, opt_state: State) -> State:
        """Return the tensors that the result is taken from."""
        return state

    def skips(self, loss: Tensor, images: Tensor, grad_images: Tensor) -> bool:
        """Say whether the loop leaves everything as it is in this iteration."""
        return False


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent: ``v <- momentum*v + g``, ``x <- max(x - lr*v, minimum)``.

    Attributes:
        lr: Learning rate, or None where ``find`` says how it is found.
        momentum: Momentum.
        schedule: Factor of the learning rate in every iteration.
        minimum: Smallest value of a tensor, held after every step.
        find: How a learning rate of None is found (``kdistill.methods.calibration``).
        initial: How the first value of a tensor that the state lacks is found.
        skip_move: An iteration whose gradient alone would move the images by more than this share
            of their norm is skipped.
    """

    lr: float | None
    momentum: float = 0.0
    schedule: Schedule = Schedule()
    minimum: float | None = None
    find: FirstMove = FirstMove()
    initial: LeastLoss | None = None
    skip_move: float | None = None

    def init(self, state: State) -> State:
        """Return velocities of zero."""
        return {f"velocity.{name}": torch.zeros_like(x) for name, x in state.items()}

    def update(
        self, grads: State, opt_state: State, state: State, iteration: int
    ) -> tuple[State, State]:
        """Return state and velocities after one step."""
        state, opt_state = dict(state), dict(opt_state)
        for name, grad in grads.items():
            velocity = self.momentum * opt_state[f"velocity.{name}"] + grad
            x = state[name] - _known(self.lr, name) * self.schedule(iteration) * velocity
            state[name] = x if self.minimum is None else x.clamp(min=self.minimum)
            opt_state[f"velocity.{name}"] = velocity
        return state, opt_state

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rate under ``"all"``."""
        return {} if self.lr is None else {"all": self.lr}

    def with_lr(self, name: str, lr: float) -> "SGD":
        """Return the optimiser with this learning rate."""
        return replace(self, lr=lr)

    def skips(self, loss: Tensor, images: Tensor, grad_images: Tensor) -> bool:
        """Say whether the gradient alone would throw the images."""
        if self.skip_move is None:
            return False
        step = _known(self.lr, "images") * torch.linalg.vector_norm(grad_images)
        return bool(step > self.skip_move * torch.linalg.vector_norm(images))


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam with bias correction (Kingma and Ba, ICLR 2015); without momentum where beta1 is 0.

    Attributes:
        lr: Learning rate.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the root of the latter.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def init(self, state: State) -> State:
        """Return running means of zero; none of the gradient where beta1 is 0."""
        kinds = ("square", "mean") if self.betas[0] else ("square",)
        return {
            f"{kind}.{name}": torch.zeros_like(x) for kind in kinds for name, x in state.items()
        }

    def update(
        self, grads: State, opt_state: State, state: State, iteration: int
    ) -> tuple[State, State]:
        """Return state and running means after step number ``iteration + 1``."""
        state, opt_state = dict(state), dict(opt_state)
        beta1, beta2 = self.betas
        for name, grad in grads.items():
            square = opt_state[f"square.{name}"].lerp(grad.square(), 1.0 - beta2)
            size = (square / (1.0 - beta2 ** (iteration + 1))).sqrt_().add_(self.eps)
            opt_state[f"square.{name}"] = square
            if beta1:
                mean = opt_state[f"mean.{name}"].lerp(grad, 1.0 - beta1)
                opt_state[f"mean.{name}"] = mean
                grad = mean / (1.0 - beta1 ** (iteration + 1))
            state[name] = state[name] - self.lr * grad / size
        return state, opt_state

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rate under ``"all"``."""
        return {"all": self.lr}

    def with_lr(self, name: str, lr: float) -> "Adam":
        """Return the optimiser with this learning rate."""
        return replace(self, lr=lr)


@dataclass(frozen=True)
class Averaged(Optimizer):
    """Another optimiser, and a running mean of the tensors that it steps, which is the result.

    Attributes:
        inner: Optimiser that takes the steps.
        decay: Decay of the mean: ``mean <- decay*mean + (1 - decay)*x``.
    """

    inner: Optimizer
    decay: float

    def init(self, state: State) -> State:
        """Return the memory of the inner optimiser, and means that begin at the first values."""
        return self.inner.init(state) | {f"average.{name}": x for name, x in state.items()}

    def update(
        self, grads: State, opt_state: State, state: State, iteration: int
    ) -> tuple[State, State]:
        """Return state and memory after a step of the inner optimiser."""
        state, opt_state = self.inner.update(grads, opt_state, state, iteration)
        averages = {
            f"average.{name}": self.decay * opt_state[f"average.{name}"]
            + (1.0 - self.decay) * state[name]
            for name in grads
        }
        return state, opt_state | averages

    def rule(self, name: str) -> Optimizer | None:
        """Return the inner optimiser's rule."""
        return self.inner.rule(name)

    def learning_rates(self) -> dict[str, float]:
        """Return those of the inner optimiser."""
        return self.inner.learning_rates()

    def with_lr(self, name: str, lr: float) -> "Averaged":
        """Return the average over the inner optimiser with this learning rate."""
        return replace(self, inner=self.inner.with_lr(name, lr))

    def result(self, state: State, opt_state: State) -> State:
        """Return ``state`` with its running means."""
        return {name: opt_state.get(f"average.{name}", x) for name, x in state.items()}

    def skips(self, loss: Tensor, images: Tensor, grad_images: Tensor) -> bool:
        """Say what the inner optimiser says."""
        return self.inner.skips(loss, images, grad_images)


@dataclass(frozen=True)
class ByName(Optimizer):
    """An optimiser for each tensor, or for all whose names begin with the same word and a dot.

    Attributes:
        rules: Optimiser by name or first word; a tensor that has neither must have no gradient.
        skip_above: An iteration with a larger loss is skipped.
    """

    rules: Mapping[str, Optimizer] = field(default_factory=dict)
    skip_above: float | None = None

    def init(self, state: State) -> State:
        """Return what all the optimisers remember of their own tensors."""
        memory: State = {}
        for key, names in self._groups(state).items():
            memory |= self.rules[key].init({name: state[name] for name in names})
        return memory

    def update(
        self, grads: State, opt_state: State, state: State, iteration: int
    ) -> tuple[State, State]:
        """Return state and memory after a step of every optimiser that has a gradient.

        Raises:
            ConfigError: There is a gradient for a tensor that has no optimiser.
        """
        groups = self._groups(grads)
        stray = set(grads).difference(*groups.values())
        if stray:
            raise ConfigError(
                f"optimizer: expected a rule for every gradient, got none for '{min(stray)}'; "
                "name it in by_name, or leave its gradient out"
            )
        for key, names in groups.items():
            own = {name: grads[name] for name in names}
            state, opt_state = self.rules[key].update(own, opt_state, state, iteration)
        return state, opt_state

    def rule(self, name: str) -> Optimizer | None:
        """Return the rule of a tensor without its average, or None."""
        rule = self.rules.get(self._key(name))
        return None if rule is None else rule.rule(name)

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rates that are known, by name or first word."""
        rates = {key: rule.learning_rates() for key, rule in self.rules.items()}
        return {key: rate for key, own in rates.items() for rate in own.values()}

    def with_lr(self, name: str, lr: float) -> "ByName":
        """Return the optimisers with this learning rate for the tensor ``name`` alone."""
        rule = self.rules[self._key(name)].with_lr(name, lr)
        return replace(self, rules={**self.rules, name: rule})

    def result(self, state: State, opt_state: State) -> State:
        """Return ``state`` with the running means of those tensors that have one."""
        for key, names in self._groups(state).items():
            state = state | self.rules[key].result({n: state[n] for n in names}, opt_state)
        return state

    def skips(self, loss: Tensor, images: Tensor, grad_images: Tensor) -> bool:
        """Say whether the loss is too large, or what the rule of the images says."""
        if self.skip_above is not None and bool(loss > self.skip_above):
            return True
        rule = self.rules.get("images")
        return rule is not None and rule.skips(loss, images, grad_images)

    def _key(self, name: str) -> str:
        return name if name in self.rules else name.partition(".")[0]

    def _groups(self, tensors: State) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name in tensors:
            if self._key(name) in self.rules:
                groups.setdefault(self._key(name), []).append(name)
        return groups


def _known(lr: float | None, name: str) -> float:
    if lr is None:
        raise ConfigError(
            f"optimizer: expected a learning rate of '{name}', got none; call calibrate first"
        )
    return lr


sgd, adam, averaged, by_name = SGD, Adam, Averaged, ByName
