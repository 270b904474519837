"""Rows that can be set beside a paper's: what is run, what was published, and what is accepted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.growth_report import paragraph
from benchmarks.result_rows import PUBLISHED
from benchmarks.result_rows import RESULTS as FOLDER
from benchmarks.row_files import read_rows

RESULTS = FOLDER / PUBLISHED
PAGE = Path(__file__).parents[1] / "docs" / "results" / "published.md"
BEGIN = "<!-- generated from results/published.csv by python -m benchmarks.published -->"
END = "<!-- end of the generated part -->"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row, as it was written down before it was run.

    Attributes:
        data: Data set of the published number.
        method: Name of the method; empty takes random real images, new ones for every network.
        ipc: Images per class.
        preset: Preset of the method.
        options: Options on top of it.
        normalisation: Normalisation of the data.
        protocol: Protocol of the evaluation.
        nets: Networks.
        published: The published figures, with their sources.
        low: Smallest accuracy in per cent that is accepted, or None: reported without a bound.
        high: Largest one, or None.
    """

    data: str = "CIFAR-10"
    method: str
    ipc: int
    preset: str = "paper"
    options: Mapping[str, Any] = field(default_factory=dict)
    normalisation: str = "standard"
    protocol: str = "dsa"
    nets: int
    published: str
    low: float | None = None
    high: float | None = None

    @property
    def bound(self) -> str:
        """The accepted accuracies in words."""
        if self.low is None:
            return "none"
        return f"≥ {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"

    def accepts(self, accuracy: float) -> str:
        """Return ``"yes"`` or ``"no"``, or nothing where there is no bound."""
        if self.low is None:
            return ""
        return "yes" if self.low <= accuracy <= (self.high or 100.0) else "no"


FEW_REAL = {"batch_real": 64}
FASHION = {"data": "Fashion-MNIST", "nets": 5}
EXPERIMENTS = {
    "random, 10, DSA": Experiment(
        method="", ipc=10, nets=5, published="31 (with DSA)", low=29.5, high=32.5
    ),
    "random, 10": Experiment(
        method="", ipc=10, protocol="dc", nets=5, published="26.0 (DC)", low=24.5, high=27.5
    ),
    "DM, 1": Experiment(
        method="dm",
        ipc=1,
        options={**FEW_REAL, "iterations": 2000},
        nets=10,
        published="26.0 (DM), 26.5 (DC-Bench)",
        low=25.5,
        high=27.5,
    ),
    "DSA, 1": Experiment(
        method="dsa", ipc=1, nets=20, published="28.8 (DSA), 27.8 (DC-Bench)", low=27.0, high=30.0
    ),
    "DC, 1": Experiment(
        method="dc",
        ipc=1,
        protocol="dc",
        nets=20,
        published="28.3 (DC), 29.3 (DC-Bench)",
        low=27.0,
        high=29.5,
    ),
    "DM, 10": Experiment(
        method="dm",
        ipc=10,
        options={**FEW_REAL, "iterations": 8000},
        nets=5,
        published="48.9 (DM), 47.6 (DC-Bench)",
        low=48.0,
    ),
    "DM, 50": Experiment(
        method="dm",
        ipc=50,
        options={**FEW_REAL, "iterations": 3000},
        nets=3,
        published="63.0 (DM), 62.0 (DC-Bench)",
        low=57.0,
    ),
    "MTT, 1": Experiment(
        method="mtt",
        ipc=1,
        preset="cifar10_ipc1",
        options={"num_experts": 20, "iterations": 1000},
        normalisation="zca",
        protocol="mtt",
        nets=10,
        published="46.3 (MTT), 44.2 (DC-Bench)",
        low=43.0,
    ),
    "MTT, 10": Experiment(
        method="mtt",
        ipc=10,
        preset="cifar10_ipc10",
        options={"num_experts": 5, "iterations": 300},
        normalisation="zca",
        protocol="mtt",
        nets=3,
        published="65.3 (MTT), 63.7 (DC-Bench)",
        low=55.0,
    ),
    "DC, 1, Fashion": Experiment(
        method="dc", ipc=1, protocol="dc", published="70.5 (DC)", low=69.0, high=72.0, **FASHION
    ),
    "DSA, 1, Fashion": Experiment(
        method="dsa", ipc=1, published="70.6 (DSA)", low=69.1, high=72.1, **FASHION
    ),
    "DC, 10, Fashion": Experiment(
        method="dc",
        ipc=10,
        options={"iterations": 30},
        protocol="dc",
        published="82.3 (DC)",
        **FASHION,
    ),
    "DSA, 10, Fashion": Experiment(
        method="dsa", ipc=10, options={"iterations": 30}, published="84.6 (DSA)", **FASHION
    ),
}


@dataclass(frozen=True, kw_only=True)
class PublishedRow:  # a line of a file: every field is a column
    """What was reached, beside what was published; all columns are text.

    ``networks`` holds the accuracy of every network in per cent, joined by spaces; a row with fewer
    than ``wanted`` is not complete.
    """

    row: str
    data: str
    published: str
    bound: str
    mean: str
    std: str
    networks: str
    wanted: str
    within: str
    iterations: str
    seconds_experts: str
    seconds_distil: str
    seconds_networks: str
    settings: str
    machine: str
    threads: str
    versions: str
    commit: str
    command: str

    @property
    def key(self) -> tuple[str, ...]:
        """What a new measurement replaces."""
        return (self.row, self.data)


def write_page(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Replace the part between the markers by a table of all rows."""
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{table(read_rows(PublishedRow, results))}\n{END}{after}")


def table(rows: Sequence[PublishedRow]) -> str:
    """Return the rows in the order of the experiments, and the conditions of each."""
    if not rows:
        return "Not yet measured.\n"
    lines = [
        "| row | data | published % | accepted | reached % | within | networks | experts, s "
        "| distillation, s | networks, s |",
        "| --- | --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    order = list(EXPERIMENTS)
    rows = sorted(rows, key=lambda row: (order.index(row.row), row.data))
    for row in rows:
        count = len(row.networks.split())
        cells = [
            row.row,
            row.data,
            row.published,
            row.bound,
            f"{row.mean} ± {row.std}" if row.std else row.mean,
            row.within,
            row.wanted if count == int(row.wanted) else f"{count} of {row.wanted}",
            row.seconds_experts,
            row.seconds_distil,
            row.seconds_networks,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    conditions = [
        paragraph(
            f"{row.row}: {row.settings}; commit {row.commit}, {row.machine}, {row.threads} "
            f"thread{'' if row.threads == '1' else 's'}, {row.versions}, `{row.command}`."
        )
        for row in rows
    ]
    return "\n".join([*lines, "", *(f"{one}\n" for one in conditions)])
