"""Optimisers as values: two pure functions, ``init`` and ``update``, on named tensors.

    opt_state = optimizer.init(state)
    state, opt_state = optimizer.update(grads, opt_state, state, iteration)

Only tensors that have a gradient are stepped; every other tensor of the state stays.  What an
optimiser remembers is a flat dictionary such as ``{"velocity.images": ...}``, which a checkpoint
holds as it is.  A new optimiser is a class with these two functions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

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


class Optimizer(Protocol):
    """Two pure functions."""

    def init(self, state: State) -> State:
        """Return what the optimiser remembers before the first step on the tensors of ``state``."""

    def update(
        self, grads: State, opt_state: State, state: State, iteration: int
    ) -> tuple[State, State]:
        """Return state and memory after a step on the tensors that ``grads`` names."""


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent: ``v <- momentum*v + g``, ``x <- max(x - lr*v, minimum)``.

    Attributes:
        lr: Learning rate, or None where ``find`` says how it is found.
        momentum: Momentum.
        schedule: Factor of the learning rate in every iteration.
        minimum: Smallest value of a tensor, held after every step.
        find: How a learning rate of None is found (``kdistill.methods.calibrate``).
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
        """Return state and velocities after one step.

        Raises:
            ConfigError: The learning rate was not given and has not been found.
        """
        if self.lr is None:
            raise ConfigError(
                f"optimizer: expected a learning rate of {', '.join(grads)}, got none; call "
                "calibrate first"
            )
        state, opt_state = dict(state), dict(opt_state)
        for name, grad in grads.items():
            velocity = self.momentum * opt_state[f"velocity.{name}"] + grad
            x = state[name] - self.lr * self.schedule(iteration) * velocity
            state[name] = x if self.minimum is None else x.clamp(min=self.minimum)
            opt_state[f"velocity.{name}"] = velocity
        return state, opt_state


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction (Kingma and Ba, ICLR 2015); without momentum where beta1 is 0.

    Attributes:
        lr: Learning rate.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the root of the latter.
        weight_decay: Decoupled weight decay (AdamW; Loshchilov and Hutter, ICLR 2019): a step first
            takes ``lr * weight_decay`` of the tensor off.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

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
            x = state[name]
            if self.weight_decay:
                x = x * (1.0 - self.lr * self.weight_decay)
            state[name] = x - self.lr * grad / size
        return state, opt_state


@dataclass(frozen=True)
class Consecutive:
    """One optimiser up to an iteration, and another from there on, with the same memory.

    Attributes:
        first: Optimiser of the iterations before ``start``.
        then: Optimiser from there on; of the same kind.
        start: The first iteration of ``then``.
    """

    first: Optimizer
    then: Optimizer
    start: int

    @property
    def lr(self) -> float | None:
        """The learning rate at the end."""
        return getattr(self.then, "lr", None)

    def init(self, state: State) -> State:
        """Return what either remembers."""
        return self.first.init(state)

    def update(
        self, grads: State, opt_state: State, state: State, iteration: int
    ) -> tuple[State, State]:
        """Return state and memory after a step of the one whose turn it is."""
        rule = self.first if iteration < self.start else self.then
        return rule.update(grads, opt_state, state, iteration)


@dataclass(frozen=True)
class Averaged:
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


@dataclass(frozen=True)
class ByName:
    """An optimiser for each tensor, or for all whose names begin with the same word and a dot.

    Attributes:
        rules: Optimiser by name or first word; a tensor that has neither must have no gradient.
        skip_above: An iteration with a larger loss is skipped.
    """

    rules: Mapping[str, Optimizer]
    skip_above: float | None = None

    def init(self, state: State) -> State:
        """Return what all the optimisers remember of their own tensors."""
        memory: State = {}
        for name, x in state.items():
            if (rule := self._rule(name)) is not None:
                memory |= rule.init({name: x})
        return memory

    def update(
        self, grads: State, opt_state: State, state: State, iteration: int
    ) -> tuple[State, State]:
        """Return state and memory after a step of every optimiser that has a gradient.

        Raises:
            ConfigError: There is a gradient for a tensor that has no optimiser.
        """
        for name, grad in grads.items():
            if (rule := self._rule(name)) is None:
                raise ConfigError(
                    f"optimizer: expected a rule for every gradient, got none for '{name}'; name "
                    "it in by_name, or leave its gradient out"
                )
            state, opt_state = rule.update({name: grad}, opt_state, state, iteration)
        return state, opt_state

    def result(self, state: State, opt_state: State) -> State:
        """Return the tensors that the result is taken from: running means where there are some."""
        return {name: opt_state.get(f"average.{name}", x) for name, x in state.items()}

    def skips(self, loss: Tensor, images: Tensor, grad_images: Tensor) -> bool:
        """Say whether the loop leaves everything as it is in this iteration."""
        if self.skip_above is not None and bool(loss > self.skip_above):
            return True
        rule = self.sgd("images")
        if rule is None or rule.skip_move is None or rule.lr is None:
            return False
        step = rule.lr * torch.linalg.vector_norm(grad_images)
        return bool(step > rule.skip_move * torch.linalg.vector_norm(images))

    def sgd(self, name: str) -> SGD | None:
        """Return the SGD that steps a tensor, perhaps within an average; None if there is none."""
        rule = self._rule(name)
        rule = rule.inner if isinstance(rule, Averaged) else rule
        return rule if isinstance(rule, SGD) else None

    def having(self, **rules: Optimizer) -> "ByName":
        """Return the optimisers with these in the place of those with the same names."""
        return replace(self, rules={**self.rules, **rules})

    def with_lr(self, name: str, lr: float) -> "ByName":
        """Return the optimisers with this learning rate for the tensor ``name`` alone."""
        return self.having(**{name: replaced(self._rule(name), lr=lr)})

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rates that are known, by name or first word."""
        inner = {name: getattr(rule, "inner", rule) for name, rule in self.rules.items()}
        rates = {name: getattr(rule, "lr", None) for name, rule in inner.items()}
        return {name: rate for name, rate in rates.items() if rate is not None}

    def _rule(self, name: str) -> Optimizer | None:
        return self.rules.get(name, self.rules.get(name.partition(".")[0]))


def replaced(rule: Any, **changes: Any) -> Any:
    """Return an optimiser, or the one within an average, with other attributes."""
    if isinstance(rule, Averaged):
        return replace(rule, inner=replaced(rule.inner, **changes))
    return replace(rule, **changes)


sgd, adam, averaged, by_name = SGD, Adam, Averaged, ByName
