"""One runner for all that iterates: cadence, checkpoints, time budget, resuming, failures.

A task hands it a pure ``iterate(state) -> (state, metrics)``.  Every random draw is keyed by the
iteration, so the state is all that a resumed run needs.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from kdistill._native import peak_bytes, return_freed_memory
from kdistill.artifacts.checkpoint import first_difference, load_checkpoint, save_checkpoint
from kdistill.errors import ConfigError, DataError, KDistillError, NonFiniteError

_log = logging.getLogger("kdistill")
CHECKPOINT = "checkpoint.safetensors"
REPORT_EVERY = 10  # iterations: a report waits for an accelerator's stream


class Iterated(Protocol):
    """A state between two iterations; replaced whole, so an interrupt never sees half a step."""

    @property
    def iteration(self) -> int:
        """Iterations done."""


S = TypeVar("S", bound=Iterated)  # state
M = TypeVar("M")  # metrics of one iteration
R = TypeVar("R", covariant=True)  # report on an iteration


class Task(Protocol[S, M, R]):
    """What a runner must know of what it runs.

    Attributes:
        name: Stands before messages, such as ``"distill"``.
        iterations: Iterations in all.
    """

    name: str
    iterations: int

    def start(self) -> S:
        """Return the first state."""

    def iterate(self, state: S) -> tuple[S, M]:
        """Return the state after one more iteration, and what was measured; pure."""

    def check(self, before: S, after: S, metrics: M) -> R:
        """Return what callbacks are told of the last iteration.

        Raises:
            NonFiniteError: A number stopped being one; names it and says what to change.
        """

    def saved(self, state: S) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and numbers for a checkpoint."""

    def restored(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> S:
        """Return the state of a checkpoint.

        Raises:
            DataError: It is not one of this task.
        """


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Where a run is and how fast it goes.

    Attributes:
        iteration: Iterations done.
        iterations: Iterations in all.
        seconds: Time since this process began the loop.
        rate: Iterations per second.
        eta_seconds: Time until the end, or until the time budget is spent.
        peak_bytes: Peak resident memory of the process.
    """

    iteration: int
    iterations: int
    seconds: float
    rate: float
    eta_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Ending(Generic[S]):
    """Where a run stopped.

    Attributes:
        state: The last state.
        finished: False if the time budget ended it.
        seconds: Time spent in this process.
    """

    state: S
    finished: bool
    seconds: float


@dataclass
class Checkpoints:
    """Reads and writes the checkpoint of one run.

    Attributes:
        folder: Folder of the file; None keeps nothing.
        identity: What must be equal for a checkpoint to fit (method, options, seed, data).
        defaults: Values of keys of ``identity`` that a checkpoint of an older version may lack.
        is_scratch: Nobody asked for the folder: it ends with the run, and a disk that is full does
            not end the run.
        has_saved: Whether this process has written it.
    """

    folder: Path | None
    identity: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    is_scratch: bool = False
    has_saved: bool = False

    def save(self, tensors: dict[str, Tensor], numbers: Mapping[str, Any]) -> Path | None:
        """Write a checkpoint and return its path; None where nothing is kept."""
        if self.folder is None:
            return None
        path = self.folder / CHECKPOINT
        try:
            save_checkpoint(path, tensors, {**numbers, "identity": dict(self.identity)})
        except DataError as error:
            if not self.is_scratch:
                raise
            _log.warning("no checkpoint of iteration %d (%s)", numbers["iteration"], error)
            return None
        self.has_saved = True
        return path

    def load(self, iterations: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and numbers of the checkpoint, or None where there is none yet.

        Raises:
            ConfigError: There is no folder, or the checkpoint belongs to another or a longer run.
            DataError: It is damaged, or no checkpoint of a run.
        """
        if self.folder is None:
            raise ConfigError(
                "resume: expected the folder of the earlier run, got none; pass out=<folder>"
            )
        path = self.folder / CHECKPOINT
        if not path.exists() and not path.with_name(path.name + ".prev").exists():
            _log.warning(
                "resume: no checkpoint in %s yet; starting from the beginning", self.folder
            )
            return None
        tensors, numbers = load_checkpoint(path)
        saved = numbers if isinstance(numbers, dict) else {}
        was, iteration = saved.get("identity"), saved.get("iteration")
        is_known = isinstance(was, dict) and was.keys() <= self.identity.keys()
        if not is_known or type(iteration) is not int or iteration < 0:
            raise DataError(
                f"resume: expected the checkpoint of such a run, got another in {path}; start "
                "afresh"
            )
        earlier = _completed(was or {}, self.defaults)
        if difference := first_difference(dict(self.identity), earlier):
            key, ours, theirs = difference
            raise ConfigError(
                f"resume: expected the run that the checkpoint belongs to, got another {key} "
                f"({ours!r}, was {theirs!r}); use the same settings or another folder"
            )
        if iteration > iterations:
            raise ConfigError(
                f"resume: expected a checkpoint of at most {iterations} iterations, got one of "
                f"{iteration}; raise iterations or start afresh without resume"
            )
        return tensors, numbers


@dataclass(kw_only=True)
class Runner(Generic[S, M, R]):
    """Takes a task from its start, or from a checkpoint, to its end.

    Attributes:
        task: What is iterated.
        checkpoints: Where its states are kept.
        report: Called with the timing and the task's report every ten iterations.
        max_minutes: Stop after this time, with a checkpoint.
        checkpoint_minutes: Time between two checkpoints; a killed run loses at most this much.
        check_every: Iterations between two checks of the numbers; a report always has one.
        on_checkpoint: Called with the state beside every checkpoint but that of a failure.
        visit_every: Iterations between two calls of ``visit``, but for the last one; None for none.
        visit: Called with the state and the seconds spent.
    """

    task: Task[S, M, R]
    checkpoints: Checkpoints
    report: Callable[[Timing, R], None]
    max_minutes: float | None = None
    checkpoint_minutes: float = 1.0
    check_every: int = REPORT_EVERY
    on_checkpoint: Callable[[S], None] = lambda state: None
    visit_every: int | None = None
    visit: Callable[[S, float], None] = lambda state, seconds: None

    def run(self, *, resume: bool = False) -> Ending[S]:
        """Iterate to the end, or until the time is up.

        Args:
            resume: Continue from the checkpoint if there is one; the result has the bits of an
                uninterrupted run.

        Raises:
            NonFiniteError: A number stopped being one; the last good state is saved.
            ConfigError: The checkpoint belongs to another run.
            KeyboardInterrupt: After the state was saved.
        """
        saved = self.checkpoints.load(self.task.iterations) if resume else None
        self.state = self.task.start() if saved is None else self.task.restored(*saved)
        self.good = self.state  # the last one that was checked
        try:
            return self._iterate()
        except KeyboardInterrupt as error:
            if where := self._save(self.state):
                error.args = (self._saved(self.state, where),)
            raise
        except NonFiniteError as error:
            # nobody asked for a scratch folder, so a failure leaves what is there and adds nothing
            wanted = self.checkpoints.has_saved or not self.checkpoints.is_scratch
            where = self._save(self.good) if wanted else None
            end = (
                f"iteration {self.good.iteration} is saved in {where}"
                if where
                else "pass out= to keep the last good state"
            )
            raise NonFiniteError(f"{error}; {end}") from None
        except Exception as error:  # a callback, or a full disk: the state must not be lost with it
            with suppress(KDistillError):
                if where := self._save(self.good):
                    error.add_note(self._saved(self.good, where))
            raise

    def _iterate(self) -> Ending[S]:
        began = saved = now = time.monotonic()
        first, last = self.state.iteration, self.task.iterations
        budget = float("inf") if self.max_minutes is None else 60.0 * self.max_minutes
        # an interrupt may have come between the checkpoint and the visit of one iteration
        self._visit(now - began)
        while self.state.iteration < last:
            before = self.state
            self.state, metrics = self.task.iterate(before)
            iteration = self.state.iteration
            is_told = iteration % REPORT_EVERY == 0 or iteration == last or self._is_due()
            if not is_told and iteration % self.check_every:
                continue
            report = self.task.check(before, self.state, metrics)
            self.good = self.state
            now = time.monotonic()
            if is_told:
                self.report(self._timing(now - began, iteration - first, budget), report)
                self._visit(now - began)
                return_freed_memory()
            now = time.monotonic()
            if now - saved >= 60.0 * self.checkpoint_minutes:
                self._save(self.state)
                self.on_checkpoint(self.state)
                saved = now
            if now - began >= budget:
                break
        finished = self.state.iteration == last
        if not (finished and self.checkpoints.is_scratch):
            self._save(self.state)
            self.on_checkpoint(self.state)
        return Ending(self.state, finished, now - began)

    def _is_due(self) -> bool:
        iteration = self.state.iteration
        return self.visit_every is not None and (
            0 < iteration < self.task.iterations and iteration % self.visit_every == 0
        )

    def _visit(self, seconds: float) -> None:
        if self._is_due():
            self.visit(self.state, seconds)

    def _timing(self, seconds: float, done: int, budget: float) -> Timing:
        rate = done / max(seconds, 1e-9)
        left = (self.task.iterations - self.state.iteration) / max(rate, 1e-9)
        return Timing(
            iteration=self.state.iteration,
            iterations=self.task.iterations,
            seconds=seconds,
            rate=rate,
            eta_seconds=min(left, max(budget - seconds, 0.0)),
            peak_bytes=peak_bytes(),
        )

    def _save(self, state: S) -> Path | None:
        return self.checkpoints.save(*self.task.saved(state))

    def _saved(self, state: S, where: Path) -> str:
        done, last = state.iteration, self.task.iterations
        return (
            f"iteration {done:,} of {last:,} is saved in {where.parent}; continue with resume=True"
        )


def _completed(was: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return an older identity with the defaults of the keys that it lacks."""
    both = {**defaults, **was}
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(was.get(key), Mapping):
            both[key] = _completed(was[key], value)
    return both
