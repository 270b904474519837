"""The one outer loop of every method: render, objective, pull back, optimiser step; log, checkpoint, budget.

Every random draw is keyed by the iteration, so the state and the iteration number are all that a
resumed run needs.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdistill._native import peak_bytes, return_freed_memory
from kdistill.artifacts.checkpoint import first_difference, load_checkpoint, save_checkpoint
from kdistill.errors import ConfigError, DataError, KDistillError, NonFiniteError
from kdistill.methods import Problem
from kdistill.priors import State

_log = logging.getLogger("kdistill")
CHECKPOINT = "checkpoint.safetensors"
# of images as networks see them, where real ones have about 3: beyond it an optimisation has blown
# up
LARGEST_VALUE = 1e4
CHECK_EVERY = 10  # iterations between looks at the numbers: a look stops an accelerator's stream


@dataclass(frozen=True)
class Progress:
    """What a callback sees after a look at the run.

    Attributes:
        iteration: Outer steps done.
        iterations: Outer steps in all.
        loss: Of the last step.
        seconds: Since this process began the loop.
        rate: Outer steps per second.
        eta_seconds: Until the end, at that rate.
        peak_bytes: Peak resident memory of the process.
        images: The current images as networks see them; do not change them.
        skipped: Outer steps of this process that changed nothing, because the method found their
            loss too large.
    """

    iteration: int
    iterations: int
    loss: float
    seconds: float
    rate: float
    eta_seconds: float
    peak_bytes: int
    images: Tensor
    skipped: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A consistent state between two steps; replaced as a whole, so an interrupt never sees half a step."""

    iteration: int
    state: State
    velocity: State
    average: State  # running means of the tensors of the state that the problem names

    def check_fits(self, problem: "Problem") -> None:
        """Raise DataError unless the tensors have the names and shapes of the problem's.

        After a step only tensors that have a gradient have a velocity.
        """
        shapes = {name: x.shape for name, x in problem.state.items()}

        def fits(group: State, names: Iterable[str]) -> bool:
            return {name: x.shape for name, x in group.items()} == {
                name: shapes.get(name) for name in names
            }

        if not (
            fits(self.state, shapes)
            and fits(self.velocity, self.velocity)
            and fits(self.average, problem.average)
        ):
            raise DataError(
                "resume: expected a checkpoint with the tensors of this run, got others; start "
                "afresh"
            )

    def like(self, state: State) -> "Snapshot":
        """Return the snapshot on the device of ``state``, new tensors on that of its first one."""
        first = next(iter(state.values())).device

        def moved(group: State) -> State:
            return {
                name: x.to(state[name].device if name in state else first)
                for name, x in group.items()
            }

        return Snapshot(
            self.iteration, moved(self.state), moved(self.velocity), moved(self.average)
        )


@dataclass(frozen=True)
class Outcome:
    """Where the loop stopped.

    Attributes:
        snapshot: The last state.
        state: What the result is taken from: the last state, its running mean, or what a search
            chose.
        images: Rendered from it, as networks see them.
        losses: ``(iteration, loss)`` at every look of this process.
        seconds: Spent in this process.
        peak_bytes: Peak resident memory.
        finished: False if a time budget ended it.
        skipped: Outer steps of this process that changed nothing.
    """

    snapshot: Snapshot
    state: State
    images: Tensor
    losses: list[tuple[int, float]]
    seconds: float
    peak_bytes: int
    finished: bool
    skipped: int = 0


@dataclass(frozen=True)
class Snapshots:
    """What happens to the result of a run on its way.

    Attributes:
        every: Iterations between two snapshots; the last iteration gives none, for it gives the
            result itself.
        take: Called with what ``run`` would return if the run ended there.
    """

    every: int
    take: Callable[[Outcome], None]


def sgd_step(
    snapshot: Snapshot, grads: State, problem: Problem, carried: State | None = None
) -> Snapshot:
    """Return the snapshot after one step of SGD with momentum: ``v <- m*v + g``, ``x <- max(x - lr*v, lower)``."""
    velocity = {
        name: problem.momentum_of(name) * snapshot.velocity[name] + grad
        for name, grad in grads.items()
    }
    state = dict(carried or {})
    for name, x in snapshot.state.items():
        if name in state:
            continue
        after = x - problem.step_size(name, snapshot.iteration) * velocity[name]
        state[name] = after.clamp(min=problem.lower[name]) if name in problem.lower else after
    average = {
        name: decay * snapshot.average[name] + (1.0 - decay) * state[name]
        for name, decay in problem.average.items()
    }
    return Snapshot(snapshot.iteration + 1, state, velocity, average)


def run(
    problem: Problem,
    *,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    resume: bool = False,
    callbacks: Sequence[Callable[[Progress], None]] = (),
    max_minutes: float | None = None,
    checkpoint_minutes: float = 1.0,
    snapshots: Snapshots | None = None,
    is_scratch: bool = False,
) -> Outcome:
    """Optimise ``problem`` from its state, or from a checkpoint.

    Args:
        problem: From a method's ``build``.
        folder: Where ``checkpoint.safetensors`` is kept; None keeps nothing.
        identity: What must be equal for a checkpoint to fit (method, options, seed, data).
        resume: Continue from the checkpoint in ``folder`` if there is one.
        callbacks: Called with a ``Progress`` at every look (every 10 steps).
        max_minutes: Stop after this time, with a checkpoint.
        checkpoint_minutes: Between two checkpoints; a killed run loses at most this much.
        snapshots: Takes the result on the way; the run has the same bits with and without.
        is_scratch: Nobody asked for ``folder``: it ends with the run, and a disk that is full does
            not end the run.

    Raises:
        NonFiniteError: Loss or gradient stopped being finite; the last good state is saved.
        ConfigError: The checkpoint belongs to another run.
        KeyboardInterrupt: After the state was saved.
    """
    keeper = _Keeper(folder, identity or {}, is_scratch)
    snapshot = keeper.load() if resume else None
    if snapshot is not None:
        if problem.search is None:  # a search changes what the state consists of
            snapshot.check_fits(problem)
        snapshot = snapshot.like(problem.state)
    if snapshot is None:
        zeros = {name: torch.zeros_like(x) for name, x in problem.state.items()}
        snapshot = Snapshot(
            0, problem.state, zeros, {name: problem.state[name] for name in problem.average}
        )
    elif snapshot.iteration > problem.iterations:
        raise ConfigError(
            f"resume: expected a checkpoint of at most {problem.iterations} iterations, got one of "
            f"{snapshot.iteration}; "
            "raise iterations or start afresh without resume"
        )
    loop = _Loop(
        problem, snapshot, keeper, tuple(callbacks), max_minutes, checkpoint_minutes, snapshots
    )
    try:
        with torch.no_grad():
            return loop.go()
    except KeyboardInterrupt as error:
        if where := keeper.save(loop.snapshot):
            error.args = (_saved(loop.snapshot, problem, where),)
        raise
    except NonFiniteError as error:
        where = keeper.save(loop.good) if keeper.has_saved or not is_scratch else None
        kept = (
            f"iteration {loop.good.iteration} is saved in {where}"
            if where
            else "pass out= to keep the last good state"
        )
        raise NonFiniteError(f"{error}; {kept}") from None
    except (
        Exception
    ) as error:  # a callback, or a disk that is full: the state must not be lost with it
        with suppress(KDistillError):
            if where := keeper.save(loop.good):
                error.add_note(_saved(loop.good, problem, where))
        raise


def _saved(snapshot: Snapshot, problem: Problem, where: Path) -> str:
    return f"iteration {snapshot.iteration:,} of {problem.iterations:,} is saved in {where.parent}; continue with resume=True"


class _Loop:
    def __init__(
        self,
        problem: Problem,
        snapshot: Snapshot,
        keeper: "_Keeper",
        callbacks: tuple[Callable[[Progress], None], ...],
        max_minutes: float | None,
        checkpoint_minutes: float,
        snapshots: Snapshots | None = None,
    ):
        self.problem, self.snapshot, self.keeper, self.callbacks = (
            problem,
            snapshot,
            keeper,
            callbacks,
        )
        self.max_seconds = float("inf") if max_minutes is None else 60.0 * max_minutes
        self.checkpoint_seconds = 60.0 * checkpoint_minutes
        self.snapshots = snapshots
        self.good = snapshot
        self.losses: list[tuple[int, float]] = []
        self.skipped = 0

    def go(self) -> Outcome:
        began = saved = time.monotonic()
        first, last = self.snapshot.iteration, self.problem.iterations
        finished = True
        self.take_snapshot(
            began
        )  # an interrupt may have come between the checkpoint and the snapshot of one iteration
        while self.snapshot.iteration < last:
            before, loss, grad = self.snapshot, *self.step()
            if (
                self.snapshot.iteration % CHECK_EVERY
                and self.snapshot.iteration < last
                and not self.is_due()
            ):
                continue
            self.look(before, loss, grad, began, first)
            self.take_snapshot(began)
            return_freed_memory()
            now = time.monotonic()
            finished = self.snapshot.iteration == last
            if now - saved >= self.checkpoint_seconds:
                self.keeper.save(self.snapshot)
                saved = now
            if now - began >= self.max_seconds and not finished:
                break
        if not (finished and self.keeper.is_scratch):
            self.keeper.save(self.snapshot)
        if self.skipped and self.skipped == self.snapshot.iteration - first:
            _log.warning(
                "distill: every one of %d iterations was skipped, so nothing has changed; raise "
                "skip_above",
                self.skipped,
            )
        return self.outcome(began, finished)

    def is_due(self) -> bool:
        iteration = self.snapshot.iteration
        return (
            self.snapshots is not None
            and 0 < iteration < self.problem.iterations
            and iteration % self.snapshots.every == 0
        )

    def take_snapshot(self, began: float) -> None:
        if self.snapshots is not None and self.is_due():
            self.snapshots.take(self.outcome(began, False))

    def outcome(self, began: float, finished: bool) -> Outcome:
        """Return what the present state gives."""
        final = {
            **self.snapshot.state,
            **{name: self.snapshot.average[name] for name in self.problem.average},
        }
        if self.problem.search is not None:
            final = self.problem.search.result(final)
        images = self.problem.prior.render(final, self.snapshot.iteration)
        seconds = time.monotonic() - began
        return Outcome(
            self.snapshot, final, images, self.losses, seconds, peak_bytes(), finished, self.skipped
        )

    def step(self) -> tuple[Tensor, Tensor]:
        problem, now = self.problem, self.snapshot
        images = problem.prior.render(now.state, now.iteration)
        step = problem.objective(now.iteration, images, now.state)
        if step.is_skipped:
            self.skipped += 1
            after = replace(now, iteration=now.iteration + 1)
        else:
            grads = {**problem.prior.vjp(now.state, step.grad_images, now.iteration), **step.grads}
            after = sgd_step(now, grads, problem, step.carried)
        if problem.search is not None:
            state, velocity = problem.search.after_step(
                after.iteration, after.state, after.velocity
            )
            after = replace(after, state=state, velocity=velocity)
        self.snapshot = after
        return step.loss, step.grad_images

    def look(self, before: Snapshot, loss: Tensor, grad: Tensor, began: float, first: int) -> None:
        iteration, value = self.snapshot.iteration, float(loss)
        finite = {"loss": loss, "gradient": grad, **self.snapshot.state}
        cause = next(
            (name for name, tensor in finite.items() if not bool(torch.isfinite(tensor).all())),
            None,
        )
        images = self.problem.prior.render(self.snapshot.state, iteration)
        largest = float(images.abs().max()) if cause is None else 0.0
        if cause is not None or largest > LARGEST_VALUE:
            rates = ", ".join(
                f"{name} {rate:g}" for name, rate in self.problem.learning_rates.items()
            )
            what = f"a finite {cause} at iteration {before.iteration}, got {value}"
            if cause is None:
                what = f"images that are still pictures at iteration {iteration}, got values of {largest:.1g}"
            raise NonFiniteError(f"distill: expected {what}; {self.problem.advice} (now {rates})")
        self.good = self.snapshot
        self.losses.append((iteration, value))
        seconds = time.monotonic() - began
        rate = (iteration - first) / max(seconds, 1e-9)
        eta = (self.problem.iterations - iteration) / max(rate, 1e-9)
        total, skipped = self.problem.iterations, self.skipped
        progress = Progress(
            iteration, total, value, seconds, rate, eta, peak_bytes(), images, skipped
        )
        for callback in self.callbacks:
            callback(progress)


class _Keeper:
    """Reads and writes the checkpoint of one run."""

    def __init__(self, folder: Path | None, identity: dict[str, Any], is_scratch: bool = False):
        self.path = None if folder is None else folder / CHECKPOINT
        self.identity, self.is_scratch, self.has_saved = identity, is_scratch, False

    def save(self, snapshot: Snapshot) -> Path | None:
        if self.path is None:
            return None
        tensors = {f"state.{name}": x for name, x in snapshot.state.items()}
        tensors |= {f"velocity.{name}": x for name, x in snapshot.velocity.items()}
        tensors |= {f"average.{name}": x for name, x in snapshot.average.items()}
        try:
            save_checkpoint(
                self.path, tensors, {"iteration": snapshot.iteration, "identity": self.identity}
            )
        except DataError as error:
            if not self.is_scratch:
                raise
            _log.warning("distill: no checkpoint of iteration %d (%s)", snapshot.iteration, error)
            return None
        self.has_saved = True
        return self.path

    def load(self) -> Snapshot | None:
        if self.path is None:
            raise ConfigError(
                "resume: expected the folder of the earlier run, got none; pass out=<folder>"
            )
        if not self.path.exists() and not self.path.with_name(self.path.name + ".prev").exists():
            _log.warning(
                "resume: no checkpoint in %s yet; starting from the beginning", self.path.parent
            )
            return None
        tensors, meta = load_checkpoint(self.path)
        was, iteration = (
            meta.get(key) if isinstance(meta, dict) else None for key in ("identity", "iteration")
        )
        if not isinstance(was, dict) or type(iteration) is not int or iteration < 0:
            raise DataError(
                f"resume: expected the checkpoint of a run, got another in {self.path}; start "
                "afresh"
            )
        difference = first_difference(self.identity, was)
        if difference:
            key, ours, theirs = difference
            raise ConfigError(
                f"resume: expected the run that the checkpoint belongs to, got another {key} "
                f"({ours!r}, was {theirs!r}); use the "
                "same settings or another folder"
            )
        groups: dict[str, State] = {"state": {}, "velocity": {}, "average": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind not in groups:
                raise DataError(
                    f"resume: expected a kdistill checkpoint, got a tensor '{name}' in "
                    f"{self.path}; start afresh"
                )
            groups[kind][rest] = tensor
        return Snapshot(iteration, **groups)
