from dataclasses import replace

import pytest
import torch

from benchmarks import growth, growth_report, readme_tables, result_rows
from benchmarks.growth_report import Line
from tests.benchmarks.test_result_rows import ROW

STEPS = [
    replace(
        ROW,
        op="trajectory_growth",
        shape=f"n{n}_b10",
        metric=f"steps: {what}",
        unit=unit,
        median=value,
    )
    for what, unit, values in (
        ("time", "ms", (310.0, 610.0, 1205.0, 3010.0)),
        ("memory", "MB", (20.0, 45.0, 190.0, 1200.0)),
    )
    for n, value in zip((5, 10, 20, 50), values, strict=True)
]


def test_a_line_is_found_with_its_worst_point():
    straight = Line.through((1, 2, 4), (13.0, 16.0, 22.0))
    assert (straight.per_unit, straight.at_zero, straight.worst) == pytest.approx((3.0, 10.0, 0.0))
    assert Line.through((1, 2, 4, 8), (1.0, 4.0, 16.0, 64.0)).exponent == pytest.approx(2.0)
    assert Line.through((1, 2, 4, 8), (1.0, 4.0, 16.0, 64.0)).worst > 0.3


def test_the_statement_follows_from_the_numbers():
    time, memory = growth_report.series(STEPS)
    assert time.points[0] == (5.0, 310.0) and time.fixed == "b10"
    assert time.sentence().startswith("linear: ")
    assert memory.sentence().startswith("not linear: ")


def test_the_page_gets_table_and_picture(tmp_path):
    result_rows.write_rows(tmp_path / "machine.csv", [ROW, *STEPS])
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme_tables.BEGIN}\nold\n{readme_tables.END}\nafter")
    readme_tables.write_readme(page, tmp_path)
    text = page.read_text()
    assert (
        "| trajectory, time | steps N | batch 10 | 5: 310 ms, 10: 610 ms, 20: 1205 ms, 50: 3010 ms "
        "| linear: " in text
    )
    assert text.count("trajectory_growth") == 0 and "### class_mean_sqdist" in text
    drawn = (tmp_path / growth_report.PICTURE).read_text()
    assert drawn.count("trajectory: ") == 2 and drawn.endswith("</svg>\n")
    growth_report.write_picture([ROW, *STEPS], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_no_rows_no_section(tmp_path):
    assert growth_report.section([ROW]) == ""
    growth_report.write_picture([ROW], tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


@pytest.mark.parametrize("op", ["trajectory_growth", "dm_growth"])
def test_every_axis_runs(op, monkeypatch):
    monkeypatch.setattr(growth, "WIDTH", 4)
    small = {name: replace(axis, values=(2, 3, 4)) for name, axis in growth.AXES.items()}
    monkeypatch.setattr(growth, "AXES", small)

    def once(calls, seconds, clock):
        return {name: {"": call()} for name, call in calls.items()}

    monkeypatch.setattr(growth, "interleaved", once)
    rows = list(growth.run_growth(op, torch.device("cpu"), torch.float32, 0.0, True, False))
    assert len(rows) == 4 and {row.metric.split(": ")[1] for row in rows} == {"time"}
    assert not list(growth.run_growth(op, torch.device("cpu"), torch.float32, 0.0, False, True))
