"""Rows of ``benchmarks.presets``, and the page that is made of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from benchmarks.growth_report import paragraph
from benchmarks.result_rows import PRESETS
from benchmarks.result_rows import RESULTS as FOLDER
from benchmarks.row_files import interval, read_rows

RESULTS = FOLDER / PRESETS
PAGE = Path(__file__).parents[1] / "docs" / "results" / "presets.md"
BEGIN = "<!-- generated from results/presets.csv by python -m benchmarks.presets -->"
END = "<!-- end of the generated part -->"


@dataclass(frozen=True, kw_only=True)
class PresetRow:  # a line of a file: every field is a column
    """Accuracy of one set in per cent beside random images; all columns are text.

    ``differences`` are those of the networks to the networks with the same initial weights on
    random images, joined by spaces; ``planned`` is the time that ``kdistill plan`` foretold for the
    distillation.
    """

    data: str
    ipc: str
    method: str
    preset: str
    options: str
    seed: str
    mean: str
    random: str
    differences: str
    validation: str
    validation_random: str
    nets: str
    iterations: str
    seconds_experts: str
    seconds_distil: str
    seconds_networks: str
    planned: str
    protocol: str
    machine: str
    threads: str
    versions: str
    commit: str
    command: str

    @property
    def key(self) -> tuple[str, ...]:
        """What a new measurement replaces."""
        what = (self.data, self.ipc, self.method, self.preset, self.options)
        return (*what, self.protocol, self.seed)


def write_page(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Replace the part between the markers by a table for every data set."""
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{tables(read_rows(PresetRow, results))}\n{END}{after}")


def tables(rows: Sequence[PresetRow]) -> str:
    """Return a table for every data set, presets alone before those with other options."""
    if not rows:
        return "Not yet measured.\n"
    parts = []
    for data in sorted({row.data for row in rows}):
        chosen = [row for row in rows if row.data == data]
        parts.append(f"### {data}\n\n{_table(chosen)}")
    conditions = dict.fromkeys(
        f"commit {row.commit}, {row.machine}, {row.threads} "
        f"thread{'' if row.threads == '1' else 's'}, protocol {row.protocol}, {row.versions}, "
        f"`{row.command}`"
        for row in rows
    )
    return "\n".join([*parts, *(paragraph(f"{one}.") + "\n" for one in conditions)])


def _table(rows: Sequence[PresetRow]) -> str:
    lines = [
        "| per class | method | options | test % | random | difference | 95 % interval | seeds "
        "| validation, difference | distillation, s | planned / measured |",
        "| ---: | --- | --- |" + " ---: |" * 8,
    ]
    groups: dict[tuple[int, str, str, str], list[PresetRow]] = defaultdict(list)
    for row in rows:
        groups[int(row.ipc), row.options, row.method, row.preset].append(row)
    for (ipc, options, method, preset), group in sorted(groups.items()):
        own = [float(row.mean) for row in group]
        differences = [mean(map(float, row.differences.split())) for row in group]
        between = interval(differences)
        cells = [
            str(ipc),
            method if preset == "fast" else f"{method} ({preset})",
            options,
            f"{mean(own):.1f}" + (f" ± {stdev(own):.1f}" if len(own) > 1 else ""),
            f"{mean(float(row.random) for row in group):.1f}",
            f"{mean(differences):+.1f}",
            f"{between[0]:+.1f} to {between[1]:+.1f}" if between else "",
            str(len(group)),
            _validation(group),
            f"{mean(float(row.seconds_distil) for row in group):.0f}",
            _planned(group),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _validation(rows: Sequence[PresetRow]) -> str:
    gaps = [
        float(row.validation) - float(row.validation_random)
        for row in rows
        if row.validation and row.validation_random
    ]
    return f"{mean(gaps):+.1f}" if gaps else ""


def _planned(rows: Sequence[PresetRow]) -> str:
    ratios = [float(row.planned) / float(row.seconds_distil) for row in rows if row.planned]
    return f"{mean(ratios):.2f}" if ratios else ""
