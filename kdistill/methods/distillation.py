"""The outer loop of every method: render, objective, vector-Jacobian product, optimiser step."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdistill._native import peak_bytes
from kdistill.errors import DataError, NonFiniteError
from kdistill.methods.base import Problem, Step
from kdistill.methods.stages import Findings, StageMemory
from kdistill.priors import State
from kdistill.runner import Checkpoints, Runner, Timing

_log = logging.getLogger("kdistill")
# of normalised images, where real ones have about 3: beyond it an optimisation has blown up
LARGEST_VALUE = 1e4


@dataclass(frozen=True)
class RunState:
    """A consistent state between two iterations.

    Attributes:
        iteration: Outer steps done.
        state: Tensors of the problem.
        opt_state: What the optimizer remembers.
        skipped: Outer steps that changed nothing, because the optimizer said so.
        memory: What a progressive search remembers.
    """

    iteration: int
    state: State
    opt_state: State
    skipped: int = 0
    memory: StageMemory | None = None


@dataclass(frozen=True, kw_only=True)
class Progress(Timing):
    """What a callback is told of a run every ten iterations.

    Attributes:
        loss: Loss of the last step.
        images: The current images, normalised; do not change them.
        skipped: Outer steps that changed nothing, because the method found their loss or their
            step too large.
        metrics: Other scalars of the last step.
    """

    loss: float
    images: Tensor
    skipped: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Where the loop stopped.

    Attributes:
        last: The last state.
        state: Tensors that the result is taken from: the last ones, their running mean, or what a
            search chose.
        images: Images rendered from them, normalised.
        findings: What a progressive search leaves beside the images.
        losses: ``(iteration, loss)`` of every report of this process.
        seconds: Time spent in this process.
        peak_bytes: Peak resident memory.
        finished: False if a time budget ended it.
    """

    last: RunState
    state: State
    images: Tensor
    findings: Findings | None
    losses: list[tuple[int, float]]
    seconds: float
    peak_bytes: int
    finished: bool


@dataclass(frozen=True)
class Snapshots:
    """What happens to the result of a run on its way.

    Attributes:
        every: Iterations between two snapshots; the last iteration gives none, for it gives the
            result itself.
        take: Called with what ``optimize`` would return if the run ended there.
    """

    every: int
    take: Callable[[Outcome], None]


class Distillation:
    """The task of a ``Runner``: one problem."""

    name = "distill"

    def __init__(self, problem: Problem):
        self.problem, self.iterations = problem, problem.iterations

    def start(self) -> RunState:
        """Return the state before the first step."""
        problem = self.problem
        memory = None if problem.stages is None else problem.stages.begin(problem.state)
        opt_state = problem.optimizer.init(problem.state)
        return RunState(0, problem.state, opt_state, memory=memory)

    def iterate(self, run: RunState) -> tuple[RunState, Step]:
        """Return the state after one more outer step, and what the objective said."""
        problem, iteration, state, opt_state = self.problem, run.iteration, run.state, run.opt_state
        images = problem.prior.render(state, iteration)
        step = problem.objective(iteration, images, state)
        is_skipped = problem.optimizer.skips(step.loss, images, step.grad_images)
        if not is_skipped:
            grads = {**problem.prior.vjp(state, step.grad_images, iteration), **step.grads}
            state, opt_state = problem.optimizer.update(grads, opt_state, state, iteration)
            state = {**state, **step.updates}
        memory = run.memory
        if problem.stages is not None and memory is not None:
            finished = len(memory.finished)
            state, memory = problem.stages.walk(iteration + 1, state, memory, step.updates)
            if len(memory.finished) > finished:  # momentum starts afresh
                opt_state = problem.optimizer.init(state)
        return RunState(iteration + 1, state, opt_state, run.skipped + is_skipped, memory), step

    def check(self, before: RunState, after: RunState, step: Step) -> dict[str, Any]:
        """Return what a ``Progress`` says beside the timing."""
        finite = {"loss": step.loss, "gradient": step.grad_images, **after.state}
        cause = next(
            (name for name, x in finite.items() if not bool(torch.isfinite(x).all())), None
        )
        images = self.problem.prior.render(after.state, after.iteration)
        largest = float(images.abs().max()) if cause is None else 0.0
        if cause is not None or largest > LARGEST_VALUE:
            rates = self.problem.optimizer.learning_rates().items()
            expected = (
                f"images that are still pictures at iteration {after.iteration}, got values of "
                f"{largest:.1g}"
                if cause is None
                else f"a finite {cause} at iteration {before.iteration}, got {float(step.loss)}"
            )
            raise NonFiniteError(
                f"distill: expected {expected}; {self.problem.hint} (now "
                f"{', '.join(f'{name} {rate:g}' for name, rate in rates)})"
            )
        metrics = {name: float(x) for name, x in step.metrics.items()}
        loss = float(step.loss)
        return {"loss": loss, "images": images, "skipped": after.skipped, "metrics": metrics}

    def saved(self, run: RunState) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and numbers for a checkpoint."""
        tensors = {f"state.{name}": x for name, x in run.state.items()} | run.opt_state
        numbers: dict[str, Any] = {"iteration": run.iteration, "skipped": run.skipped}
        if run.memory is not None:
            remembered, numbers["stages"] = run.memory.saved()
            tensors |= {f"stages.{name}": x for name, x in remembered.items()}
        return tensors, numbers

    def restored(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> RunState:
        """Return the state of a checkpoint, on the device of the problem.

        Raises:
            DataError: It has other tensors than this run.
        """
        device = next(iter(self.problem.state.values())).device
        groups: dict[str, State] = {"state": {}, "stages": {}, "": {}}
        for name, x in tensors.items():
            kind, _, rest = name.partition(".")
            group, key = (kind, rest) if kind in groups else ("", name)
            groups[group][key] = x.to(device)
        try:
            memory = None
            if self.problem.stages is not None:
                memory = StageMemory.restored(groups["stages"], numbers["stages"])
            run = RunState(
                int(numbers["iteration"]),
                groups["state"],
                groups[""],
                int(numbers.get("skipped", 0)),
                memory,
            )
            self._check_fits(run)
        except (LookupError, TypeError, ValueError, OverflowError, DataError) as error:
            raise DataError(
                "resume: expected a checkpoint with the tensors of this run, got others; start "
                "afresh"
            ) from error
        return run

    def _check_fits(self, run: RunState) -> None:
        """Raise DataError unless the tensors have the names and shapes of the problem's."""

        def shapes(tensors: State) -> dict[str, torch.Size]:
            return {name: x.shape for name, x in tensors.items()}

        problem = self.problem
        fits = (
            shapes(run.state) == shapes(problem.state)
            if problem.stages is None or run.memory is None
            else problem.stages.fits(run.state, run.memory)
        )
        if not fits or shapes(run.opt_state) != shapes(problem.optimizer.init(run.state)):
            raise DataError("other names or shapes")

    def outcome(
        self, run: RunState, losses: list[tuple[int, float]], seconds: float, finished: bool
    ) -> Outcome:
        """Return what the run gives if it ends here."""
        problem, findings = self.problem, None
        state = problem.optimizer.result(run.state, run.opt_state)
        if problem.stages is not None and run.memory is not None:
            state = problem.stages.result(state, run.memory)
            findings = problem.stages.findings(run.memory)
        images = problem.prior.render(state, run.iteration)
        return Outcome(run, state, images, findings, losses, seconds, peak_bytes(), finished)


def optimize(
    problem: Problem,
    checkpoints: Checkpoints | None = None,
    *,
    resume: bool = False,
    callbacks: Sequence[Callable[[Progress], None]] = (),
    max_minutes: float | None = None,
    checkpoint_minutes: float = 1.0,
    snapshots: Snapshots | None = None,
) -> Outcome:
    """Take ``problem`` from its state, or from a checkpoint, to its end.

    Args:
        problem: From a method's ``build``, calibrated.
        checkpoints: Where its states are kept; None keeps nothing.
        resume: Continue from the checkpoint if there is one.
        callbacks: Called with a ``Progress`` every ten steps.
        max_minutes: Stop after this time, with a checkpoint.
        checkpoint_minutes: Time between two checkpoints; a killed run loses at most this much.
        snapshots: Takes the result on the way; the run has the same bits with and without.

    Raises:
        NonFiniteError: Loss or gradient stopped being finite; the last good state is saved.
        ConfigError: The checkpoint belongs to another run.
        KeyboardInterrupt: After the state was saved.
    """
    task = Distillation(problem)
    losses: list[tuple[int, float]] = []

    def report(timing: Timing, numbers: dict[str, Any]) -> None:
        losses.append((timing.iteration, numbers["loss"]))
        for callback in callbacks:
            callback(Progress(**vars(timing), **numbers))

    def visit(run: RunState, seconds: float) -> None:
        if snapshots is not None:
            snapshots.take(task.outcome(run, losses, seconds, finished=False))

    runner = Runner(
        task=task,
        checkpoints=checkpoints or Checkpoints(None),
        report=report,
        max_minutes=max_minutes,
        checkpoint_minutes=checkpoint_minutes,
        visit_every=None if snapshots is None else snapshots.every,
        visit=visit,
    )
    with torch.no_grad():
        ending = runner.run(resume=resume)
        if 0 < ending.state.skipped == ending.state.iteration:
            _log.warning(
                "distill: every one of %d iterations was skipped, so nothing has changed; raise "
                "skip_above",
                ending.state.skipped,
            )
        return task.outcome(ending.state, losses, ending.seconds, ending.finished)
