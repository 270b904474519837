"""The one way of a run: settings, checks, data, problem, loop, artefact.

``distill``, the command line, ``sweep`` and ``plan`` each make a ``RunConfig``.  Nothing expensive
happens before everything cheap has been checked.  No tensor arithmetic here.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from kdistill import _native, methods
from kdistill.api.evaluate import EvaluationConfig
from kdistill.api.evaluate_snapshots import SnapshotEvaluator, checked_evaluator
from kdistill.api.inputs import (
    check_class_counts,
    check_place,
    initial_images,
    load,
    training_images,
    use,
)
from kdistill.api.run_artefact import artefact_of
from kdistill.api.run_folder import JsonLines, check_folder, prepare, same_artefact, scratch_folder
from kdistill.artifacts import DistilledDataset, snapshots
from kdistill.config import to_mapping
from kdistill.data import ImageDataset, load_data
from kdistill.engine.precision import use_precision
from kdistill.errors import ConfigError, ShapeError
from kdistill.files import sole_use
from kdistill.methods.distillation import Outcome, Progress, Snapshots
from kdistill.options import HELD_OUT, MAX_MINUTES, Range, check_options
from kdistill.runner import Checkpoints
from kdistill.signals import terminable
from kdistill.status import describe, quietly, status_line

_log = logging.getLogger("kdistill")
LARGEST_PIXEL = 20.0  # synthetic images leave 0..1, but not by this much

IPC = Range("at least 1 image per class", lambda n: n >= 1, "the field uses 1, 10 and 50")
CHECKPOINT_MINUTES = Range("0 or more", lambda minutes: minutes >= 0, "1 is usual")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the result of a run.

    It is the ``run`` part of an artefact's ``config.json``.

    Attributes:
        data: Text from which ``load_data`` loads the data, or the data set's name.
        method: Name of the method.
        ipc: Images per class.
        seed: Seed of the run.
        preset: Named settings of the method, applied before ``options``.
        size: Side that images are resized to, or None.
        normalisation: ``"standard"``, ``"zca"`` or ``"none"``.
        validation: Share of the training data held out from distillation, for choosing among
            settings.
        mirrors: Whether the images may be mirrored; None guesses, as ``load_data`` does.
        options: The method's options.
    """

    data: str = ""
    method: str = "dm"
    ipc: Annotated[int, IPC] = 10
    seed: int = 0
    preset: str = "fast"
    size: int | None = None
    normalisation: Literal["standard", "zca", "none"] = "standard"
    validation: Annotated[float, HELD_OUT] = 0.1
    mirrors: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)

    @cached_property
    def method_options(self) -> Any:
        """The method's option dataclass with every value resolved.

        Raises:
            ConfigError: As ``resolve``.
        """
        return resolve(self.method, self.preset, self.options)

    def load(self, *, quiet: bool = False, skip_unreadable: bool = False) -> ImageDataset:
        """Load the data that ``data`` names."""
        return load_data(
            self.data,
            size=self.size,
            normalisation=self.normalisation,
            mirrors=self.mirrors,
            quiet=quiet,
            skip_unreadable=skip_unreadable,
        )

    def check(self) -> None:
        """Make every check of the settings that needs no image.

        Raises:
            ConfigError: Unknown method, preset or option, or a size that the network does not take.
        """
        options = self.method_options
        if self.size is not None:
            try:
                options.network(SimpleNamespace(channels=3, size=self.size, num_classes=2))
            except ShapeError as error:
                raise ConfigError(
                    f"size: expected a side that {options.student} takes, got {self.size}; 32 is "
                    "usual"
                ) from error


def resolve(method: str, preset: str, options: Mapping[str, Any]) -> Any:
    """Return the method's option dataclass: paper defaults, then the preset, then ``options``.

    Raises:
        ConfigError: Unknown method, preset or option (suggests the nearest), or a value of the
            wrong type.
    """
    chosen = methods.get(method)
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"options: expected a table of names and values, got {options!r}; pass a dict"
        )
    return chosen.options(preset, options)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is carried out; nothing here changes what an iteration computes.

    The attributes are the arguments of ``distill`` with these names; ``evaluation`` says how every
    snapshot and the result are evaluated as they are made, None that they are not.
    """

    out: str | Path | None = None
    resume: bool = False
    force: bool = False
    callbacks: Sequence[Callable[[Progress], None]] | Callable[[Progress], None] | None = ()
    device: str | torch.device | None = None
    threads: int | None = None
    max_minutes: Annotated[float | None, MAX_MINUTES] = None
    snapshot_every: int | None = None
    evaluation: EvaluationConfig | None = None
    checkpoint_minutes: Annotated[float, CHECKPOINT_MINUTES] = 1.0
    quiet: bool = False

    def __post_init__(self) -> None:
        check_options(self)
        for callback in self.watchers:
            if not callable(callback):
                raise ConfigError(
                    f"callbacks: expected functions of a Progress, got {callback!r}; pass one or a "
                    "list of them"
                )

    @property
    def watchers(self) -> tuple[Callable[[Progress], None], ...]:
        """The callbacks as a tuple."""
        several = isinstance(self.callbacks, Sequence)
        return tuple(self.callbacks) if several else (self.callbacks,) if self.callbacks else ()

    @property
    def interval(self) -> str:
        """The argument of ``distill`` that asks for snapshots."""
        return "snapshot_every" if self.evaluation is None else "evaluate_every"

    def check(self) -> None:
        """Make every check of folder, device and threads that needs no image; nothing is written.

        Raises:
            ConfigError: A folder in use, a device that torch does not have, or too many threads.
            DataError: A folder that cannot be written, or one with other contents.
        """
        use(self.threads, self.device)
        snapshots.check_snapshot_every(self.snapshot_every, self.out, self.interval)
        if self.out is not None:
            check_place(self.out)
            check_folder(self.out, resume=self.resume, force=self.force)


def check_run(
    config: RunConfig, execution: Execution, init: DistilledDataset | str | Path | None = None
) -> None:
    """Make every check of a run that is possible before its images are read.

    Raises:
        ConfigError: Settings that are unknown, out of range or do not fit together.
        DataError: The folder of the run cannot be written.
    """
    config.check()
    if init is not None and not isinstance(init, str | Path | DistilledDataset):
        raise ConfigError(
            f"init: expected an earlier set or its folder, got {init!r}; leave it out to begin "
            "with real images"
        )
    if isinstance(init, str | Path) and not Path(init).exists():
        raise ConfigError(
            f"init: expected the folder of an earlier set, got nothing at {init}; check the path"
        )
    execution.check()


def run(
    config: RunConfig,
    data: ImageDataset | Any,
    *,
    init: DistilledDataset | str | Path | None = None,
    execution: Execution = Execution(),
) -> DistilledDataset:
    """Carry out a run: check, load, hold out, build, calibrate, iterate, and make the artefact.

    Args:
        config: What decides the result.
        data: A data set, or anything that ``load_data`` takes.
        init: An earlier set, or its folder, to start from.
        execution: How it is carried out.

    Returns:
        The synthetic set; it stands in ``execution.out`` too.

    Raises: as ``kdistill.distill``.
    """
    check_run(config, execution, init)
    quiet = execution.quiet
    name = str(data) if isinstance(data, str | Path) else None
    data = load(data, quiet)
    training = training_images(data, config.validation, execution.device)
    with quietly(quiet):
        if _begins_with_real_images(config):
            check_class_counts(training, config.ipc)
    start = None if init is None else initial_images(init, training, config.ipc)
    config = replace(
        config,
        data=data.source if name is None else name,
        size=data.size,
        normalisation=data.transform.kind,
        mirrors=data.mirrors,
        options=to_mapping(config.method_options),
    )
    precision = use_precision(config.method_options.precision, training.train.images.device)
    with terminable(), quietly(quiet), precision, status_line("distilling") as show_status:
        show_status(f"preparing {config.method} on {data.name}, {config.ipc} per class")

        def show(progress: Progress) -> None:
            rate = progress.metrics.get("images_per_second")
            said = f"loss {progress.loss:.4g}" if rate is None else f"{rate:.3g} images/s"
            show_status(describe(progress, said))

        small = _Job(config, data, training, start, execution, show).carry_out()
    _warn_of_range(small.images)
    return small


def _begins_with_real_images(config: RunConfig) -> bool:
    """Return whether a run takes as many real images of each class as it learns."""
    family = methods.get(config.method).family
    if family == "generator":  # for the learning rates of another method's objective alone
        return getattr(config.method_options, "objective", "pool") != "pool"
    return family != "generation"


@dataclass(frozen=True)
class _Job:
    """A run whose settings are checked and whose data are loaded.

    Attributes:
        config: Settings with every value resolved, as the artefact records them.
        data: The whole data set.
        training: The part of it that the run may use.
        start: Normalised images to begin with, or None.
        execution: How the run is carried out.
        show: Callback that shows the progress.
    """

    config: RunConfig
    data: ImageDataset
    training: ImageDataset
    start: Tensor | None
    execution: Execution
    show: Callable[[Progress], None]

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the artefact records of the run, and what a checkpoint must agree with."""
        method, data = methods.get(self.config.method), self.data
        return {
            "run": to_mapping(self.config),
            "method": {"title": method.title, "paper": method.paper},
            "source": {
                "name": data.name,
                "fingerprint": data.fingerprint,
                "licence": data.licence,
                "classes": list(data.classes),
                "init": None if self.start is None else f"{self.start.double().sum().item():.17g}",
            },
            "environment": _native.environment(),
        }

    def carry_out(self) -> DistilledDataset:
        """Build and optimise the problem in a folder that no other run uses meanwhile."""
        how = self.execution
        if how.out is None:
            with scratch_folder(self.record, how.resume) as scratch:
                problem = self._build()
                outcome = self._optimise(
                    problem, scratch.folder, resume=scratch.resumes, is_scratch=True
                )
                scratch.is_finished = outcome.finished
                return self._artefact(problem, outcome)
        folder = Path(how.out)
        evaluator = checked_evaluator(folder, self.data, how.evaluation, how.device)
        with sole_use(folder):
            problem = self._build()
            prepare(folder, resume=how.resume, force=how.force)
            outcome = self._optimise(
                problem,
                folder,
                resume=how.resume,
                callbacks=(JsonLines(folder / "metrics.jsonl", how.resume),),
                snapshots=self._snapshots(problem, folder, evaluator),
            )
            small = self._artefact(problem, outcome)
            finished = same_artefact(folder, small) if how.resume else None
            if finished is None:
                small.save_pretrained(folder)
            else:
                small = finished
            if evaluator is not None:
                evaluator.finish(small)
            return small

    def _build(self) -> methods.Problem:
        config = self.config
        problem = methods.get(config.method).build(
            config.method_options, self.training, config.ipc, config.seed, self.start
        )
        problem = methods.calibrate(problem)
        how = self.execution
        if how.snapshot_every is not None:
            snapshots.check_snapshot_count(how.snapshot_every, problem.iterations, how.interval)
        self.record.update(problem.provenance)
        return problem

    def _optimise(
        self,
        problem: methods.Problem,
        folder: Path | None,
        *,
        callbacks: Sequence[Callable[[Progress], None]] = (),
        is_scratch: bool = False,
        **how: Any,
    ) -> Outcome:
        # options that are newer than a checkpoint
        defaults = {"run": {"options": self.config.method_options.before()}}
        return methods.optimize(
            problem,
            Checkpoints(folder, self.record, defaults, is_scratch),
            callbacks=[*callbacks, self.show, *self.execution.watchers],
            max_minutes=self.execution.max_minutes,
            checkpoint_minutes=self.execution.checkpoint_minutes,
            **how,
        )

    def _snapshots(
        self, problem: methods.Problem, folder: Path, evaluator: SnapshotEvaluator | None
    ) -> Snapshots | None:
        def take(outcome: Outcome) -> None:
            small, iteration = self._artefact(problem, outcome), outcome.last.iteration
            snapshots.save_snapshot(folder, iteration, small)
            if evaluator is not None:
                evaluator.on_the_way(iteration, small)

        every = self.execution.snapshot_every
        return None if every is None else Snapshots(every, take)

    def _artefact(self, problem: methods.Problem, outcome: Outcome) -> DistilledDataset:
        return artefact_of(problem, outcome, self.data, self.record, self.config.seed)


def _warn_of_range(images: Tensor) -> None:
    low, high = (float(x) for x in torch.aminmax(images))
    if max(-low, high) > LARGEST_PIXEL:
        _log.warning(
            "distill: pixels reach from %.3g to %.3g where pictures have 0 to 1; lower lr_images "
            "if networks learn little",
            low,
            high,
        )
