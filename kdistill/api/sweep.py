"""``sweep``: a grid of runs, each distilled and evaluated in a folder of its own.

What is finished is not done again and what was interrupted goes on, so the same call completes a
sweep that was killed, and a larger grid adds to it.  ``kdistill.api.compare`` makes the table.
"""

import hashlib
import itertools
import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from kdistill._native import reset_peak
from kdistill.api.evaluate import evaluate
from kdistill.api.resources import use
from kdistill.api.run import Execution, RunConfig, run
from kdistill.api.run_folder import is_unfinished
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.tensors import parse_table, to_json
from kdistill.config import from_mapping, merge, to_mapping
from kdistill.data import ImageDataset
from kdistill.engine.precision import check_precision
from kdistill.engine.students import STUDENTS
from kdistill.errors import ConfigError, DataError, KDistillError, did_you_mean
from kdistill.evaluation import Evaluation, Protocol, protocols
from kdistill.evaluation.baseline_rows import check_names
from kdistill.files import locked, read_regular, remove_leftovers, write_atomic
from kdistill.files.safe_files import JSON_LIMIT
from kdistill.methods.distillation import Progress
from kdistill.options import MAX_MINUTES, check_options
from kdistill.status import quietly, status_line

__all__ = ["RECORD", "Grid", "Run", "Sweep", "sweep"]

_log = logging.getLogger("kdistill")

RECORD = "sweep.json"
AXES = tuple(entry.name for entry in fields(RunConfig) if entry.name != "options")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a sweep runs: every combination of the values below, for every variant.

    A list is an axis of the grid, anything else one value; an option that is itself a list is
    written as a list of lists.

    Attributes:
        data: What ``load_data`` takes, as text.
        method: As for ``distill``; so are the others.
        ipc: As in ``RunConfig``.
        seed: As in ``RunConfig``.
        preset: As in ``RunConfig``.
        size: As in ``RunConfig``.
        normalisation: As in ``RunConfig``.
        mirrors: As in ``RunConfig``.
        validation: As in ``RunConfig``.
        options: Options of the method, or axes of them.
        variant: Named changes to all of the above, e.g. ``{"name": "+ mask", "options":
            {"grad_mode": "tesla"}}``; none is one variant without changes.
        evaluation: ``protocol``, ``models``, ``baselines``, ``nets`` and ``lr`` of ``evaluate``;
            and of the protocol ``eight_bit`` and ``hard_labels``, which cost one more row each.
        max_minutes: Of each distillation.
    """

    data: Any = ()
    method: Any = "dm"
    ipc: Any = 10
    seed: Any = 0
    preset: Any = "fast"
    size: Any = None
    normalisation: Any = "standard"
    mirrors: Any = None
    validation: Any = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: tuple[Mapping[str, Any], ...] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    max_minutes: Annotated[float | None, MAX_MINUTES] = None

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One point of the grid.

    Attributes:
        folder: Where it is, or will be.
        variant: Its name in tables: that of the variant, or of the method.
        config: What ``distill`` is given; ``options`` holds those of the grid only.
        status: ``"planned"``, ``"finished"`` (by this call), ``"there"`` (by an earlier one),
            ``"elsewhere"`` (another process works on it) or ``"failed"``.
        reason: Why it failed.
    """

    folder: Path
    variant: str
    config: RunConfig
    status: str = "planned"
    reason: str = ""

    def __str__(self) -> str:
        run = self.config
        return f"{self.variant}, {run.data}, ipc {run.ipc}, seed {run.seed}"


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep, in the order of the grid."""

    runs: tuple[Run, ...]

    @property
    def failed(self) -> tuple[Run, ...]:
        """The runs that failed."""
        return tuple(run for run in self.runs if run.status == "failed")

    def __str__(self) -> str:
        counts = {
            status: sum(run.status == status for run in self.runs)
            for status in ("there", "finished", "elsewhere")
        }
        words = {
            "there": "were there",
            "finished": "finished",
            "elsewhere": "are being run by another process",
        }
        parts = [f"{count} {words[status]}" for status, count in counts.items() if count]
        lines = [f"failed: {run}: {run.reason}" for run in self.failed]
        return "\n".join(
            [f"{len(self.runs)} runs: {', '.join([*parts, f'{len(lines)} failed'])}", *lines]
        )


def sweep(
    grid: Grid | Mapping[str, Any],
    *,
    out: str | Path,
    device: str | None = None,
    threads: int | None = None,
    say: Callable[[str], None] | None = None,
    watch: Callable[[Progress], None] | None = None,
    quiet: bool = False,
) -> Sweep:
    """Distill and evaluate every point of a grid; a run that fails is named and does not stop the others.

    Args:
        grid: A ``Grid``, or its fields as a mapping.
        out: Folder of the runs; the same folder again completes what is missing in it.
        device: As for ``distill``.
        threads: As for ``distill``.
        say: Told which run is being worked on.
        watch: Callback of ``distill``.
        quiet: Do not show the progress.

    Returns:
        The runs with what became of them.

    Raises:
        ConfigError: A point of the grid that ``distill`` or ``evaluate`` would refuse; nothing has
            run then.
        DataError: ``out`` cannot be written.

    Cost: the sum of the runs, one after the other; data sets are loaded once.
    """
    grid = grid if isinstance(grid, Grid) else from_mapping(Grid, grid, where="sweep")
    runs = plan_runs(grid, Path(out))
    judge = _judge(grid)
    check_precision(judge.protocol.precision, device or "cpu")
    worker = _Worker(judge=judge, device=device, max_minutes=grid.max_minutes, watch=watch)
    use(threads, device)
    with quietly(quiet), status_line("sweep", also=say) as show:
        for number, run in enumerate(runs):
            show(f"{number + 1} of {len(runs)}: {run}")
            status, reason = worker.attempt(run)
            runs[number] = replace(run, status=status, reason=reason)
            _write_record(Path(out), runs)
    return Sweep(tuple(runs))


def plan_runs(grid: Grid, out: Path) -> list[Run]:
    """Return the runs of a grid, checked as far as that is possible without data; equal ones once.

    The seed changes slowest, so that a table of everything, of one seed, is there early; then the
    data.

    Raises:
        ConfigError: Unknown or unfitting settings, two variants of one name, or no data.
    """
    if not grid.data:
        raise ConfigError("sweep: expected data, got none; name one or more sets, folders or files")
    runs: dict[Path, Run] = {}
    for name, settings in _variants(grid):
        for point in _points(settings):
            config = from_mapping(
                RunConfig, point, where=f"sweep{f', variant {name}' if name else ''}"
            )
            variant = name or config.method
            folder = out / _folder_name(variant, config, grid.max_minutes)
            runs.setdefault(folder, Run(folder=folder, variant=variant, config=config))
    order = list(runs.values())
    seeds, sets = ([getattr(run.config, key) for run in order] for key in ("seed", "data"))
    return sorted(
        order, key=lambda run: (seeds.index(run.config.seed), sets.index(run.config.data))
    )


def _variants(grid: Grid) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yield name and axes of every variant; one without a name where the grid has none."""
    common = {name: getattr(grid, name) for name in (*AXES, "options")}
    if not grid.variant:
        yield None, common
        return
    names = [entry.get("name") for entry in grid.variant]
    for place, name in enumerate(names):
        if not isinstance(name, str) or not name or name in names[:place]:
            raise ConfigError(
                f"sweep: expected a name of its own for every variant, got {name!r}; write name = "
                '"..."'
            )
        changes = {key: value for key, value in grid.variant[place].items() if key != "name"}
        from_mapping(Grid, changes, where=f"sweep, variant {name}")
        unfit = sorted(set(changes) & {"variant", "evaluation", "max_minutes"})
        if unfit:
            raise ConfigError(
                f"sweep, variant {name}: expected settings of a run, got '{unfit[0]}'; set it for "
                "the whole sweep"
            )
        yield name, merge(common, changes)


def _points(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination."""
    axes = {(key,): settings[key] for key in AXES} | {
        ("options", key): value for key, value in settings["options"].items()
    }
    values = [
        list(value) if isinstance(value, list | tuple) else [value] for value in axes.values()
    ]
    for place, chosen in enumerate(values):
        if not chosen:
            raise ConfigError(
                f"sweep: expected a value for {'.'.join(list(axes)[place])}, got an empty list; "
                "leave it out"
            )
    for combination in itertools.product(*values):
        point: dict[str, Any] = {"options": {}}
        for path, value in zip(axes, combination, strict=True):
            (point["options"] if len(path) == 2 else point)[path[-1]] = value
        yield point


def _folder_name(name: str, run: RunConfig, max_minutes: float | None) -> str:
    """Return a name that people can read, with a digest of every setting: growing the grid later does not change it."""
    settings = {
        **to_mapping(run),
        "options": to_mapping(run.method_options),
        "minutes": max_minutes,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    words = f"{Path(run.data).stem or 'data'}-{name}-ipc{run.ipc}-seed{run.seed}"
    return f"{re.sub(r'[^A-Za-z0-9._+-]+', '_', words)[:80].lstrip('.')}-{digest}"


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """How every set of a sweep is evaluated."""

    protocol: Protocol
    models: tuple[str, ...] | None
    baselines: tuple[str, ...]

    def is_done(self, small: DistilledDataset) -> bool:
        if "evaluation" not in small.metrics:
            return False
        try:
            found = Evaluation.from_dict(small.metrics["evaluation"])
        except ConfigError:
            return False
        models = self.models or (self.protocol.student,)
        return (
            found.protocol == self.protocol
            and set(found.models) >= set(models)
            and {row.name for row in found.rows} >= set(self.baselines)
        )


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    """The table ``evaluation`` of a grid."""

    protocol: str | Protocol = "bench"
    models: str | tuple[str, ...] | None = None
    baselines: str | tuple[str, ...] = ("random",)
    nets: int | None = None
    lr: float | Literal["auto"] | None = None
    eight_bit: bool | None = None
    hard_labels: bool | None = None
    precision: str | None = None


def _judge(grid: Grid) -> _Judge:
    wanted = from_mapping(_Evaluation, grid.evaluation, where="sweep.evaluation")
    models, baselines = (
        (value,) if isinstance(value, str) else value for value in (wanted.models, wanted.baselines)
    )
    check_names(baselines or ())
    for model in models or ():
        if model not in STUDENTS:
            raise ConfigError(
                f"sweep.evaluation.models: expected a network, got '{model}'; "
                f"{did_you_mean(model, list(STUDENTS))}"
            )
    changes = {
        name: getattr(wanted, name)
        for name in ("nets", "lr", "eight_bit", "hard_labels", "precision")
    }
    recipe = protocols.get(wanted.protocol, **changes)
    recipe.check_networks(models or (recipe.student,))
    return _Judge(protocol=recipe, models=models, baselines=baselines or ())


def is_finished(folder: Path) -> bool:
    """Say whether ``folder`` holds a distilled set that no interrupted run is about to replace."""
    return (folder / "config.json").exists() and not is_unfinished(folder)


@dataclass(kw_only=True)
class _Worker:
    """Does one run after the other; the data set of the last one is kept."""

    judge: _Judge
    device: str | None
    max_minutes: float | None
    watch: Callable[[Progress], None] | None
    loaded: tuple[tuple[Any, ...], ImageDataset] | None = None

    def attempt(self, run: Run) -> tuple[str, str]:
        """Return what became of a run, and why it failed."""
        report = run.folder.with_name(f"{run.folder.name}.failure.txt")
        try:
            with locked(run.folder, wait=False) as is_mine:
                if not is_mine:
                    return "elsewhere", ""
                if is_finished(run.folder) and self.judge.is_done(
                    DistilledDataset.from_pretrained(run.folder)
                ):
                    return "there", ""
                self._complete(run)
                report.unlink(missing_ok=True)
                return "finished", ""
        # whatever it is, it belongs to this run: it is named, kept and shown at the end
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            if not isinstance(error, KDistillError):
                write_atomic(report, traceback.format_exc().encode())
                reason = f"{type(error).__name__}: {reason} (see {report})"
            _log.warning("sweep: %s failed: %s", run, reason)
            return "failed", reason

    def _data(self, config: RunConfig) -> ImageDataset:
        key = (config.data, config.size, config.normalisation, config.mirrors)
        if self.loaded is None or self.loaded[0] != key:
            self.loaded = None  # before the next one, so that two are never held at once
            self.loaded = (key, config.load(quiet=True))
        return self.loaded[1]

    def _complete(self, point: Run) -> None:
        """Distill what is not distilled and evaluate what is not evaluated."""
        config, data = point.config, self._data(point.config)
        reset_peak()  # or every run would show the memory of the largest before it
        if is_finished(point.folder):
            small = DistilledDataset.from_pretrained(point.folder)
        else:
            execution = Execution(
                out=point.folder,
                resume=is_unfinished(point.folder),
                callbacks=self.watch,
                device=self.device,
                max_minutes=self.max_minutes,
            )
            small = run(config, data, execution=execution)
        evaluate(
            small,
            data,
            protocol=self.judge.protocol,
            models=self.judge.models,
            baselines=self.judge.baselines,
            seed=config.seed,
            device=self.device,
        )
        small.save_pretrained(point.folder)


def _write_record(out: Path, runs: Sequence[Run]) -> None:
    """Note which folder is which variant and what became of it, beside what other processes and earlier grids noted."""
    with locked(out / RECORD):
        earlier = read_record(out)
        rows = {}
        for run in runs:
            row = {
                "variant": run.variant,
                "status": run.status,
                "reason": run.reason,
                "run": to_mapping(run.config),
            }
            known = run.status in ("planned", "elsewhere") and run.folder.name in earlier
            rows[run.folder.name] = earlier[run.folder.name] if known else row
        listed = [
            {"folder": name, **row}
            for name, row in {**rows, **{k: v for k, v in earlier.items() if k not in rows}}.items()
        ]
        remove_leftovers(out)
        write_atomic(out / RECORD, to_json({"runs": listed}))


def read_record(out: Path) -> dict[str, dict[str, Any]]:
    """Return what ``sweep`` noted about the folders in ``out``, in the order of the grid; nothing where there was no sweep.

    Raises:
        DataError: The file is damaged.
    """
    path = out / RECORD
    if not path.exists():
        return {}
    try:
        content = parse_table(read_regular(path, limit=JSON_LIMIT), "the file", "it was damaged")
        rows = [dict(row) for row in content["runs"]]
        record = {str(row.pop("folder")): row for row in rows}
        for name in record:
            if Path(name).name != name or name in ("", ".."):
                raise ValueError(f"a folder named {name[:60]!r}, which is not in {out}")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected the record of a sweep, got: {error}; delete it and sweep again"
        ) from error
