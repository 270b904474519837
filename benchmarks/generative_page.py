"""``docs/results/generative.md``: its tables, from the rows of ``benchmarks.generative``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.generative_rows import RESULTS, SystemRow
from benchmarks.growth_report import paragraph
from benchmarks.row_files import read_rows

PAGE = Path(__file__).parents[1] / "docs" / "results" / "generative.md"
BEGIN = "<!-- generated from results/generative.csv by python -m benchmarks.generative -->"
END = "<!-- end of the generated part -->"
PRIOR = "prior: "  # begins the names of priors among the systems


def write_page(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Replace the part between the markers by tables of all rows."""
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{tables(read_rows(SystemRow, results))}\n{END}{after}")


def tables(rows: Sequence[SystemRow]) -> str:
    """Return a table of the priors, and one for every data set and number of images per class."""
    if not rows:
        return "Not yet measured.\n"
    parts = []
    if priors := [row for row in rows if row.system.startswith(PRIOR)]:
        parts.append(f"### Priors\n\n{_prior_table(priors)}")
    others = [row for row in rows if not row.system.startswith(PRIOR)]
    groups = sorted({(row.data, row.ipc) for row in others}, key=lambda g: (g[0], _number(g[1])))
    for data, ipc in groups:
        chosen = [row for row in others if (row.data, row.ipc) == (data, ipc)]
        parts.append(f"### {_heading(data, ipc)}\n\n{_system_table(chosen)}")
    return "\n".join([*parts, _origin(rows)])


def _heading(data: str, ipc: str) -> str:
    return f"{data}, {ipc if ipc == 'all' else f'{ipc} per class'}"


def _number(ipc: str) -> int:
    return int(ipc) if ipc.isdigit() else 10**9


def _prior_table(rows: Sequence[SystemRow]) -> str:
    lines = [
        "| data | prior | iterations | training, s | generated images alone, test % |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        kind = row.system.removeprefix(PRIOR)
        lines.append(
            f"| {row.data} | {kind} | {row.iterations} | {row.seconds_distil} | {row.mean} |"
        )
    return "\n".join([*lines, ""])


def _system_table(rows: Sequence[SystemRow]) -> str:
    """Return a line for every system: its network, the others, and the seconds of each stage."""
    others = sorted({row.model for row in rows if row.network == "other"})
    same = next((row.model for row in rows if row.network == "same"), "")
    lines = [
        f"| set | {same} | on validation | {' | '.join([*others, 'mean of the others'])} "
        "| iterations | experts, s | distillation, s | networks, s |",
        "| --- | --- |" + " ---: |" * (6 + len(others)),
    ]
    for system, name in sorted({(row.system, row.row) for row in rows}):
        chosen = [row for row in rows if (row.system, row.row) == (system, name)]
        ours = [row for row in chosen if row.network == "same"]
        by_model = {model: [row for row in chosen if row.model == model] for model in others}
        cells = [
            name,
            _spread(ours),
            _mean(row.validation for row in ours),
            *(_mean(row.mean for row in group) for group in by_model.values()),
            _mean(row.mean for group in by_model.values() for row in group),
            _mean((row.iterations for row in ours), digits=0),
            _mean((row.seconds_experts for row in ours), digits=0),
            _mean((row.seconds_distil for row in ours), digits=0),
            _total(chosen),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _spread(rows: Sequence[SystemRow]) -> str:
    """Return mean ± standard deviation: over seeds where there are several, else over networks."""
    means = [float(row.mean) for row in rows]
    if len(means) > 1:
        return f"{mean(means):.1f} ± {stdev(means):.1f} ({len(means)} seeds)"
    if not means or not rows[0].std:  # one network has no spread
        return f"{means[0]:.1f}" if means else ""
    return f"{means[0]:.1f} ± {float(rows[0].std):.1f} ({rows[0].nets} networks)"


def _mean(values: Iterable[str], digits: int = 1) -> str:
    """Return the mean of the numbers that are known, or nothing."""
    known = [float(value) for value in values if value]
    return f"{mean(known):.{digits}f}" if known else ""


def _total(rows: Sequence[SystemRow]) -> str:
    """Return the seconds of all networks of one seed."""
    seeds = len({row.seed for row in rows})
    return f"{sum(float(row.seconds_networks or 0) for row in rows) / seeds:.0f}"


def _origin(rows: Sequence[SystemRow]) -> str:
    """Return a sentence for every set of conditions that rows were measured under."""
    conditions = dict.fromkeys(
        f"commit {row.commit}, {row.machine}, {row.threads} "
        f"thread{'' if row.threads == '1' else 's'}, protocol {row.protocol}, {row.versions}, "
        f"`{row.command}`"
        for row in rows
    )
    return "\n".join(paragraph(f"{condition}.") + "\n" for condition in conditions)
