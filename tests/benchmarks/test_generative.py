"""The rows of the generative systems: what they hold, what is skipped, and the page of them."""

from dataclasses import replace
from pathlib import Path

import pytest

import kdistill
from benchmarks import generative, generative_page
from benchmarks.generative import Settings
from benchmarks.generative_rows import SystemRow
from benchmarks.generative_systems import STAGE_1, SYSTEMS
from benchmarks.row_files import read_rows, write_rows
from kdistill.errors import ConfigError
from kdistill.evaluation import Protocol

TINY = {"iterations": 2, "width": 4}
MTT = {"syn_steps": 2, "num_experts": 1, "max_start_epoch": 1, "expert_epochs": 1}
GAN = {"generator_width": 4, "critic_width": 4, "gan_batch": 8, "gan_iterations": 1}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))
    protocol = Protocol(name="tiny", width=4, epochs=1, full_epochs=1, nets=2, eight_bit=False)
    return Settings(
        data=("digits",),
        ipc=(1,),
        systems=("pixels, DM",),
        size=8,
        options={"dm": TINY, "mtt": {**TINY, **MTT}, "dim": {**TINY, **GAN}},
        protocol=protocol,
        other_networks=("mlp",),
        results=tmp_path / "generative.csv",
        runs=tmp_path / "runs",
        command="python -m benchmarks.generative",
    )


def test_a_row_has_its_conditions_and_is_skipped_the_next_time(settings, monkeypatch):
    assert generative.run(settings)
    rows = {(row.system, row.model): row for row in read_rows(SystemRow, settings.results)}
    assert set(rows) == {
        *((name, model) for name in ("pixels, DM", "random") for model in ("mlp", "convnet")),
        ("herding", "convnet"),
        ("full", "convnet"),
    }
    row = rows["pixels, DM", "convnet"]
    assert (row.network, row.nets, row.iterations) == ("same", "2", "2")
    assert (rows["pixels, DM", "mlp"].network, rows["pixels, DM", "mlp"].nets) == ("other", "1")
    assert float(row.mean) > 0 and float(row.seconds_distil) > 0 and float(row.seconds_networks) > 0
    assert row.machine and row.commit and row.threads and "torch" in row.versions
    before = settings.results.read_bytes()
    monkeypatch.setattr(kdistill, "distill", None)
    assert generative.run(settings)
    assert settings.results.read_bytes() == before


def test_one_generator_serves_every_number_of_images(settings, monkeypatch):
    generator = replace(settings, systems=("DiM",))
    assert generative.run(generator)
    monkeypatch.setattr(kdistill, "distill", None)
    assert generative.run(replace(generator, ipc=(2,)))
    ours = [row for row in read_rows(SystemRow, settings.results) if row.system == "DiM"]
    assert {row.ipc for row in ours} == {"1", "2"}
    assert {row.row for row in ours} == {"DiM", "DiM, fresh"}
    assert len({row.seconds_distil for row in ours}) == 1


def test_systems_that_match_begin_with_the_generator_of_their_seed(settings, monkeypatch):
    began = []
    distill = kdistill.distill

    def spy(*arguments, **options):
        began.append(options["options"].get("generator", ""))
        return distill(*arguments, **options)

    monkeypatch.setattr(kdistill, "distill", spy)
    assert generative.run(replace(settings, systems=("DiM", STAGE_1), seeds=(3,)))
    first = settings.runs / "digits-conditional-gan-seed3"
    assert began == ["", str(first)]
    rows = {
        row.row: row for row in read_rows(SystemRow, settings.results) if row.model == "convnet"
    }
    assert rows[STAGE_1].iterations == "1"  # stage 1 alone
    assert rows["DiM"].iterations == "2"  # stage 2 alone
    assert "generator=digits-conditional-gan-seed3 " in f"{rows['DiM'].options} "


def test_a_part_ends_before_a_row_that_does_not_fit(settings):
    assert not generative.run(replace(settings, minutes=0.0))
    assert read_rows(SystemRow, settings.results) == []
    assert generative.run(replace(settings, minutes=1.0, minutes_per_row=0.5))


def test_the_seconds_of_the_experts_stand_in_the_row_that_trained_them(settings):
    assert generative.run(replace(settings, systems=("pixels, MTT",)))
    (row,) = (
        r
        for r in read_rows(SystemRow, settings.results)
        if r.system == "pixels, MTT" and r.model == "convnet"
    )
    assert row.seconds_experts == "" or float(row.seconds_experts) >= 1.0


def test_unknown_systems_are_refused_before_anything_is_loaded(settings):
    with pytest.raises(
        ConfigError, match="systems: expected known ones, got 'pixel'; choose among"
    ):
        generative.run(replace(settings, data=("nowhere",), systems=("pixel",)))


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_options_of_every_system_are_known(name):
    system = generative.system_of(Settings(), name)
    kdistill.methods.get(system.method).options(system.preset, system.options)
    assert bool(system.prior) == (system.method in ("glad", "hglad", "ld3m", "diffusion_gen"))


def test_a_new_measurement_replaces_the_old_one_and_the_page_has_means_over_seeds(
    settings, tmp_path
):
    part = generative.Part(settings)
    data = kdistill.load_data("digits", quiet=True)
    columns = {
        "model": "convnet",
        "std": "1",
        "nets": "5",
        "iterations": "100",
        "seconds_networks": "8",
    }
    rows = [
        part.row(data, 1, "DiM", seed=seed, mean=mean, **columns)
        for seed, mean in ((0, "80"), (1, "84"))
    ]
    other = {**columns, "model": "vit", "network": "other"}
    rows += [part.row(data, 1, "DiM", seed=0, mean="50", **other)]
    rows += [part.row(data, "", "prior: gan", seed=0, mean="95", seconds_distil="1200")]
    write_rows(SystemRow, settings.results, [replace(rows[0], mean="10"), *rows[1:]])
    write_rows(SystemRow, settings.results, rows[:1])
    write_rows(
        SystemRow,
        settings.results,
        [part.row(data, 1, "random", seed=0, model="convnet", mean="40")],
    )
    text = generative_page.tables(read_rows(SystemRow, settings.results))
    assert "| random | 40.0 |  |" in text  # one network: no spread
    assert "| DiM | 82.0 ± 2.8 (2 seeds) |  | 50.0 | 50.0 | 100 |  |  | 12 |" in text
    assert "| digits | gan |  | 1200 | 95 |" in text
    assert settings.command in text


def test_the_committed_page_is_that_of_the_committed_rows(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(generative_page.PAGE.read_text())
    generative_page.write_page(page)
    assert page.read_text() == generative_page.PAGE.read_text()


def test_the_command_line():
    settings = generative.parsed(
        ["--data", "mnist5k", "--seeds", "0", "1", "--set", "dm.iterations=5", "--minutes", "20"]
    )
    assert (settings.data, settings.seeds, settings.minutes) == (["mnist5k"], [0, 1], 20.0)
    assert settings.options == {"dm": {"iterations": 5}}
    assert settings.command.startswith("python -m benchmarks.generative --data mnist5k")
    assert Path(settings.gan.format(data="mnist5k")).name == "mnist5k-gan"
