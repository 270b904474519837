"""``evaluate_snapshots``: how good the set of a run was on its way, and which iteration was best.

Papers report the best accuracy on the test images over the iterations of the distillation (not over
the epochs of a network that is trained on the set).  Here that number has its name, "best on test",
and stands beside two that do not use the test images: the iteration that is best on images
which the run held out, and the last one.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from kdistill.api.evaluate import EvaluationConfig, run_evaluation
from kdistill.api.inputs import load
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.artifact_folder import load_snapshot, snapshot_iterations
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError
from kdistill.evaluation import protocols
from kdistill.evaluation.protocols import Protocol
from kdistill.evaluation.provenance import held_out_share
from kdistill.evaluation.result_tables import percent
from kdistill.formatting import Tabular, TextTable, cells_of
from kdistill.status import quietly, status_line


@dataclass(frozen=True, kw_only=True)
class SnapshotRow:
    """One state of the set.

    Attributes:
        iteration: Iterations of the distillation that made it.
        validation: Accuracy of every network on images that the run held out; empty where it held
            none out.
        accuracies: Accuracy of every network on the test images.
    """

    iteration: int
    validation: tuple[float, ...]
    accuracies: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SnapshotEvaluation(Tabular):
    """The states of a run's set, rising by iteration; the last one is the artefact itself.

    Attributes:
        rows: One per state.
        protocol: How the networks were trained.
        model: The network.
        data: Name of the data.
        seed: Seed of the evaluation.
    """

    rows: tuple[SnapshotRow, ...]
    protocol: Protocol
    model: str
    data: str
    seed: int

    @property
    def best_on_validation(self) -> int | None:
        """The first iteration with the best mean validation accuracy; None: nothing held out."""
        held_out = [row for row in self.rows if row.validation]
        return max(held_out, key=lambda row: mean(row.validation)).iteration if held_out else None

    @property
    def best_on_test(self) -> int:
        """The iteration with the best mean test accuracy, for comparison with papers alone."""
        return max(self.rows, key=lambda row: mean(row.accuracies)).iteration

    def tables(self) -> list[TextTable]:
        """Return one line per state; the last column names the best ones."""
        columns: dict[str, Callable[[SnapshotRow], str]] = {
            "iteration": lambda row: f"{row.iteration:,}",
            "validation %": lambda row: percent(row.validation),
            "test %": lambda row: percent(row.accuracies),
            "": lambda row: ", ".join(self._names(row)),
        }
        rows = cells_of(self.rows, columns)
        return [TextTable(columns=list(columns), rows=rows, notes=self._notes(), left=("",))]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``metrics.json`` holds under ``"snapshots"``."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "best_on_validation": self.best_on_validation,
            "best_on_test": self.best_on_test,
            "protocol": asdict(self.protocol),
            "model": self.model,
            "data": self.data,
            "seed": self.seed,
        }

    def _names(self, row: SnapshotRow) -> list[str]:
        names = {
            "best on validation": self.best_on_validation,
            "best on test": self.best_on_test,
            "last": self.rows[-1].iteration,
        }
        return [name for name, iteration in names.items() if iteration == row.iteration]

    def _notes(self) -> list[str]:
        recipe = self.protocol
        notes = [
            f"{self.data}, {recipe.title} protocol, {recipe.epochs} epochs, {recipe.nets} networks "
            f"({self.model})",
            "best on test: over the iterations of the distillation, chosen",
            "on the test images as papers do: compare it with papers only",
        ]
        if self.best_on_validation is None:
            return [*notes, "the run held no images out: nothing is best on validation"]
        return [*notes, "best on validation: chosen on images that the run held out"]


def evaluate_snapshots(
    run: str | Path,
    data: ImageDataset | Any,
    *,
    protocol: str | Protocol = "bench",
    model: str | nn.Module | None = None,
    nets: int | None = None,
    lr: float | None = None,
    precision: str | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[str], None] | None = None,
    quiet: bool = False,
) -> SnapshotEvaluation:
    """Train fresh networks on every snapshot of a run and on its last set, and test them.

    Args:
        run: Folder of a finished run that was started with ``snapshot_every``.
        data: The real data, or anything that ``load_data`` takes.
        protocol: As for ``evaluate``; the set is trained on as it is, without the variants of
            ``evaluate``.
        model: One network; None is the protocol's student.
        nets: Networks per snapshot; None is the protocol's number.
        lr: Learning rate where the set has not learned its own; None is the protocol's.
        precision: As for ``evaluate``.
        seed: As for ``evaluate``; network ``i`` of every snapshot begins with the same weights.
        device: As for ``evaluate``.
        progress: Progress callback, called with one line of text.
        quiet: Do not show the progress.

    Returns:
        One row per snapshot, and which iteration was best on validation and on test images.  The
        set of an iteration is ``DistilledDataset.from_pretrained(run, iteration=...)``.

    Raises:
        ConfigError: The folder has no snapshots, or what ``evaluate`` refuses.
        DataError: A snapshot is damaged or of another run, or the data does not fit.

    Cost: that of ``evaluate`` without baselines, for every snapshot.
    """
    iterations = snapshot_iterations(run)
    if not iterations:
        raise ConfigError(
            f"evaluate: expected snapshots in {run}, got none; distill with --snapshot-every 100 "
            "(snapshot_every=100) first"
        )
    recipe = protocols.get(protocol, nets=nets, lr=lr, precision=precision)
    recipe = replace(
        recipe, eight_bit=False, hard_labels=False, robustness=False, best_on_test=False
    )
    models = None if model is None else (model,)
    config = EvaluationConfig(protocol=recipe, models=models, baselines=())
    data = load(data, quiet)
    last = DistilledDataset.from_pretrained(run)
    end = _iterations_of(last, iterations)
    rows = []
    with quietly(quiet), status_line("snapshots") as show:
        for iteration in [*(at for at in iterations if at < end), end]:
            small = last if iteration == end else load_snapshot(run, iteration, last)
            show(f"iteration {iteration:,} of {end:,}")
            tell = None if progress is None else partial(_tell, progress, iteration)
            result = run_evaluation(config, small, data, seed=seed, device=device, progress=tell)
            row = result.rows[0]
            is_held_out = data.validation is not None or held_out_share(small) is not None
            validation = row.validation if is_held_out else ()
            rows.append(
                SnapshotRow(iteration=iteration, validation=validation, accuracies=row.accuracies)
            )
    return SnapshotEvaluation(
        rows=tuple(rows), protocol=recipe, model=row.model, data=data.name, seed=seed
    )


def _tell(progress: Callable[[str], None], iteration: int, text: str) -> None:
    progress(f"iteration {iteration:,}: {text}")


def _iterations_of(last: DistilledDataset, iterations: list[int]) -> int:
    """Return how many iterations made the artefact.

    Where its record says nothing it is one more than its last snapshot's.
    """
    record = last.metrics.get("distillation")
    done = record.get("iterations") if isinstance(record, dict) else None
    return done if isinstance(done, int) and done > 0 else iterations[-1] + 1
