"""Rows of presets beside random images: what they hold, what is skipped, and the page of them."""

from dataclasses import replace

import pytest

import kdistill
from benchmarks import preset_rows, presets
from benchmarks.preset_rows import PresetRow
from benchmarks.presets import Settings
from benchmarks.row_files import filled, interval, read_rows, write_rows
from kdistill.errors import ConfigError
from kdistill.evaluation import Protocol


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))
    return Settings(
        data=("digits",),
        methods=("dm",),
        ipc=(1,),
        seeds=(0,),
        options={"iterations": 2, "width": 4},
        protocol=Protocol(name="tiny", width=4, epochs=2, full_epochs=1),
        nets=2,
        plan=True,
        results=tmp_path / "presets.csv",
        runs=tmp_path / "runs",
        command="python -m benchmarks.presets",
    )


def test_a_row_is_paired_with_random_images_and_is_skipped_the_next_time(settings, monkeypatch):
    assert presets.run(settings)
    (row,) = read_rows(PresetRow, settings.results)
    assert (row.data, row.method, row.options) == ("digits", "dm", "iterations=2 width=4")
    differences = list(map(float, row.differences.split()))
    gap = float(row.mean) - float(row.random)
    assert len(differences) == 2 and sum(differences) / 2 == pytest.approx(gap, abs=0.02)
    assert row.nets == "2" and row.iterations == "2" and row.seconds_experts == ""
    assert float(row.planned) > 0 and row.validation and row.commit and row.machine
    monkeypatch.setattr(kdistill, "distill", None)
    assert presets.run(settings)
    other = replace(settings, options={"iterations": 3, "width": 4})  # a row of its own
    with pytest.raises(TypeError):
        presets.run(other)


def test_a_call_begins_no_row_after_its_time(settings):
    assert not presets.run(replace(settings, minutes=-1.0))
    assert read_rows(PresetRow, settings.results) == []


def test_unknown_options_are_refused_before_anything_is_loaded(settings):
    wrong = replace(settings, data=("nowhere",), options={"first_mov": 0.1})
    with pytest.raises(ConfigError, match="did you mean 'first_move'"):
        presets.run(wrong)


def test_the_page_has_means_and_intervals_over_seeds(settings):
    columns = {"data": "digits", "method": "mtt", "preset": "fast", "protocol": "bench", "ipc": 50}
    columns |= {"random": "80", "validation": "70", "validation_random": "71", "nets": 2}
    columns |= {"seconds_distil": "100", "planned": "80", "commit": "abc", "threads": "1"}
    rows = [
        filled(PresetRow, {**columns, "seed": seed, "mean": 80 + seed, "differences": text})
        for seed, text in enumerate(("-1 1", "0 2", "1 3"))
    ]
    write_rows(PresetRow, settings.results, [replace(rows[0], mean="1"), *rows[1:]])
    write_rows(PresetRow, settings.results, rows[:1])
    text = preset_rows.tables(read_rows(PresetRow, settings.results))
    low, high = interval([0.0, 1.0, 2.0])
    assert low == pytest.approx(1.0 - 4.303 / 3**0.5) and interval([1.0]) is None
    assert (
        f"| 50 | mtt |  | 81.0 ± 1.0 | 80.0 | +1.0 | {low:+.1f} to {high:+.1f} | 3 | -1.0 | 100 "
        "| 0.80 |" in text
    )
    assert "1 thread, protocol bench" in " ".join(text.split())


def test_the_committed_page_is_that_of_the_committed_rows(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(preset_rows.PAGE.read_text())
    preset_rows.write_page(page)
    assert page.read_text() == preset_rows.PAGE.read_text()


def test_the_command_line():
    settings = presets.parsed(
        ["--methods", "mtt", "--ipc", "50", "--set", "first_move=0.01", "--set", "schedule=cosine"]
    )
    assert settings.options == {"first_move": 0.01, "schedule": "cosine"}
    assert (settings.methods, settings.ipc, settings.preset) == (["mtt"], [50], "fast")
    named = {"data": "d", "method": "mtt", "ipc": 50, "seed": 1, "options": "a=1 b=2"}
    assert presets.folder_of(named) == "d-mtt-ipc50-seed1-a-1-b-2"
