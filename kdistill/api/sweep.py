"""``sweep``: a grid of runs, each distilled and evaluated in a folder of its own.

What is finished is not done again and what was interrupted goes on, so the same call completes a
sweep that was killed, and a larger grid adds to it.  ``kdistill.api.compare`` makes the table.
"""

import logging
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdistill._native import reset_peak
from kdistill.api.evaluate import EvaluationConfig, run_evaluation
from kdistill.api.grid import Grid, Run, plan_runs
from kdistill.api.inputs import use
from kdistill.api.run import Execution, RunConfig, run
from kdistill.api.run_folder import is_unfinished
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.tensors import parse_table, to_json
from kdistill.config import from_mapping, to_mapping
from kdistill.data import ImageDataset
from kdistill.engine.precision import check_precision
from kdistill.errors import ConfigError, DataError, KDistillError
from kdistill.evaluation import Evaluation
from kdistill.files import locked, read_regular, remove_leftovers, write_atomic
from kdistill.files.safe_files import JSON_LIMIT
from kdistill.methods.distillation import Progress
from kdistill.status import quietly, status_line

_log = logging.getLogger("kdistill")

RECORD = "sweep.json"
STATUS_WORDS = {
    "there": "were there",
    "finished": "finished",
    "elsewhere": "are being run by another process",
}


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep, in the order of the grid."""

    runs: tuple[Run, ...]

    @property
    def failed(self) -> tuple[Run, ...]:
        """The runs that failed."""
        return tuple(run for run in self.runs if run.status == "failed")

    def __str__(self) -> str:
        counts = Counter(run.status for run in self.runs)
        parts = [f"{counts[key]} {words}" for key, words in STATUS_WORDS.items() if counts[key]]
        parts.append(f"{len(self.failed)} failed")
        lines = [f"failed: {run}: {run.reason}" for run in self.failed]
        return "\n".join([f"{len(self.runs)} runs: {', '.join(parts)}", *lines])


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
    """Distill and evaluate every point of a grid.

    A run that fails is named and does not stop the others.

    Args:
        grid: A ``Grid``, or its fields as a mapping.
        out: Folder of the runs; the same folder again completes what is missing in it.
        device: As for ``distill``.
        threads: As for ``distill``.
        say: Progress callback: told which run is being worked on.
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
    evaluation = from_mapping(
        EvaluationConfig, {"baselines": ["random"], **grid.evaluation}, where="sweep.evaluation"
    )
    check_precision(evaluation.recipe.precision, device or "cpu")
    worker = _Worker(
        evaluation=evaluation, device=device, max_minutes=grid.max_minutes, watch=watch
    )
    use(threads, device)
    with quietly(quiet), status_line("sweep", also=say) as show:
        for number, point in enumerate(runs):
            show(f"{number + 1} of {len(runs)}: {point}")
            status, reason = worker.attempt(point)
            runs[number] = replace(point, status=status, reason=reason)
            _write_record(Path(out), runs)
    return Sweep(tuple(runs))


@dataclass(kw_only=True)
class _Worker:
    """Does one run after the other; the data set of the last one stays in memory."""

    evaluation: EvaluationConfig
    device: str | None
    max_minutes: float | None
    watch: Callable[[Progress], None] | None
    loaded: tuple[tuple[Any, ...], ImageDataset] | None = None

    def attempt(self, point: Run) -> tuple[str, str]:
        """Return what became of a run, and why it failed."""
        report = point.folder.with_name(f"{point.folder.name}.failure.txt")
        try:
            with locked(point.folder, wait=False) as is_mine:
                if not is_mine:
                    return "elsewhere", ""
                small = _finished_set(point.folder)
                if small is not None and self._is_evaluated(small):
                    return "there", ""
                self._complete(point, small)
                report.unlink(missing_ok=True)
                return "finished", ""
        # whatever it is, it belongs to this run: it is named, kept and shown at the end
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            if not isinstance(error, KDistillError):
                write_atomic(report, traceback.format_exc().encode())
                reason = f"{type(error).__name__}: {reason} (see {report})"
            _log.warning("sweep: %s failed: %s", point, reason)
            return "failed", reason

    def _is_evaluated(self, small: DistilledDataset) -> bool:
        try:
            evaluation = Evaluation.from_dict(small.metrics["evaluation"])
        except (ConfigError, KeyError):
            return False
        return (
            evaluation.protocol == self.evaluation.recipe
            and set(evaluation.models) >= set(self.evaluation.networks)
            and {row.name for row in evaluation.rows} >= set(self.evaluation.baseline_names)
        )

    def _data(self, config: RunConfig) -> ImageDataset:
        key = (config.data, config.size, config.normalisation, config.mirrors)
        if self.loaded is None or self.loaded[0] != key:
            self.loaded = None  # before the next one, so that two are never held at once
            self.loaded = (key, config.load(quiet=True))
        return self.loaded[1]

    def _complete(self, point: Run, small: DistilledDataset | None) -> None:
        """Distill what is not distilled and evaluate what is not evaluated."""
        config, data = point.config, self._data(point.config)
        reset_peak()  # or every run would show the memory of the largest before it
        if small is None:
            execution = Execution(
                out=point.folder,
                resume=is_unfinished(point.folder),
                callbacks=self.watch,
                device=self.device,
                max_minutes=self.max_minutes,
            )
            small = run(config, data, execution=execution)
        run_evaluation(self.evaluation, small, data, seed=config.seed, device=self.device)
        small.save_pretrained(point.folder)


def _finished_set(folder: Path) -> DistilledDataset | None:
    """Return the set in ``folder``; None for none, or one that an interrupted run replaces."""
    if not (folder / "config.json").exists() or is_unfinished(folder):
        return None
    return DistilledDataset.from_pretrained(folder)


def _write_record(out: Path, runs: Sequence[Run]) -> None:
    """Note which folder is which variant and what became of it.

    What other processes and earlier grids noted stays.
    """
    with locked(out / RECORD):
        earlier = read_record(out)
        rows = {
            point.folder.name: {
                "variant": point.variant,
                "status": point.status,
                "reason": point.reason,
                "run": to_mapping(point.config),
            }
            for point in runs
            if point.status not in ("planned", "elsewhere") or point.folder.name not in earlier
        }
        order = dict.fromkeys([*(point.folder.name for point in runs), *earlier])
        listed = [{"folder": name, **(rows.get(name) or earlier[name])} for name in order]
        remove_leftovers(out)
        write_atomic(out / RECORD, to_json({"runs": listed}))


def read_record(out: Path) -> dict[str, dict[str, Any]]:
    """Return what ``sweep`` noted about the folders in ``out``, in the order of the grid.

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
