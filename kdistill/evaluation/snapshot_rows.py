"""What was measured on the set of a run on its way: a row per state, and which one was best."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from kdistill.evaluation.protocols import Protocol
from kdistill.evaluation.result_tables import percent
from kdistill.formatting import Tabular, TextTable, cells_of


@dataclass(frozen=True, kw_only=True)
class SnapshotRow:
    """One state of the set.

    Attributes:
        iteration: Iterations of the distillation that made it.
        validation: Accuracy of every network on images that the run held out; empty where it held
            none out.
        accuracies: Accuracy of every network on the test images.
        seconds: Time that it took to measure them; no part of comparisons.
    """

    iteration: int
    validation: tuple[float, ...]
    accuracies: tuple[float, ...]
    seconds: float = field(default=0.0, compare=False)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], nets: int) -> "SnapshotRow | None":
        """Return the row that ``asdict`` made these facts of; None if no row has them.

        Args:
            facts: What a file holds.
            nets: Networks of the protocol.
        """
        try:
            row = cls(
                iteration=int(facts["iteration"]),
                validation=tuple(map(float, facts["validation"])),
                accuracies=tuple(map(float, facts["accuracies"])),
                seconds=float(facts["seconds"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        is_share = all(0.0 <= value <= 1.0 for value in (*row.validation, *row.accuracies))
        counts = (len(row.accuracies), len(row.validation))
        return row if is_share and counts in ((nets, nets), (nets, 0)) else None


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
            "last": self.rows[-1].iteration,
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
