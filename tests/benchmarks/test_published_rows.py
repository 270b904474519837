"""Rows beside published ones: calls that end early, what a row holds, and the page."""

from dataclasses import replace

import pytest

import kdistill
from benchmarks import published, published_rows
from benchmarks.published import Settings
from benchmarks.published_rows import EXPERIMENTS, Experiment, PublishedRow
from benchmarks.row_files import read_rows, write_rows
from kdistill import methods
from kdistill.errors import ConfigError
from kdistill.evaluation import PROTOCOLS, protocols

TINY = {"width": 4, "iterations": 6}
MTT = {**TINY, "iterations": 2, "syn_steps": 2, "max_start_epoch": 1, "expert_epochs": 1}
ROWS = {
    "DM, 1": Experiment(
        method="dm", ipc=1, options={**TINY, "batch_real": 8}, nets=2, published="50", low=0.0
    ),
    "MTT, 1": Experiment(
        method="mtt", ipc=1, options={**MTT, "num_experts": 2}, nets=1, published="60"
    ),
    "random, 10": Experiment(method="", ipc=10, nets=2, published="26", low=99.9),
}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "EXPERIMENTS", ROWS)
    tiny = protocols.get("quick", epochs=1, full_epochs=1, width=4)
    monkeypatch.setitem(PROTOCOLS, "dsa", replace(tiny, name="dsa"))
    return Settings(
        row="DM, 1",
        data="digits",
        title="digits (8 px)",
        results=tmp_path / "published.csv",
        runs=tmp_path / "runs",
        command="python -m benchmarks.published",
    )


def test_a_row_is_completed_by_as_many_calls_as_it_takes(settings, monkeypatch):
    assert not published.run(replace(settings, minutes=0.0))
    assert read_rows(PublishedRow, settings.results) == []
    tested, evaluate = [], kdistill.evaluate

    def once(*arguments, **options):
        if len(tested) == 1:
            raise KeyboardInterrupt
        tested.append(options["seed"])
        return evaluate(*arguments, **options)

    monkeypatch.setattr(kdistill, "evaluate", once)
    with pytest.raises(KeyboardInterrupt):
        published.run(settings)
    (row,) = read_rows(PublishedRow, settings.results)
    assert (len(row.networks.split()), row.wanted, row.within) == (1, "2", "")
    assert "| 1 of 2 |" in published_rows.table([row])
    monkeypatch.setattr(kdistill, "evaluate", evaluate)
    monkeypatch.setattr(kdistill, "distill", None)  # the set is there
    assert published.run(settings)
    (row,) = read_rows(PublishedRow, settings.results)
    first, second = map(float, row.networks.split())
    assert float(row.mean) == pytest.approx((first + second) / 2, abs=0.01)
    assert (row.within, row.iterations, row.data) == ("yes", "6", "digits (8 px)")
    assert "nothing held out" in row.settings and row.seconds_experts == ""
    small = kdistill.DistilledDataset.from_pretrained(settings.runs / "dm-1" / "set")
    assert small.recorded("run", "validation") == 0.0


def test_experts_are_trained_one_after_another(settings):
    settings = replace(settings, row="MTT, 1")
    assert published.run(settings)
    (row,) = read_rows(PublishedRow, settings.results)
    assert row.within == "" and row.bound == "none" and row.seconds_experts != ""


def test_random_images_are_others_for_every_network_and_a_miss_is_said(settings):
    settings = replace(settings, row="random, 10")
    assert published.run(settings)
    (row,) = read_rows(PublishedRow, settings.results)
    assert row.within == "no" and row.seconds_distil == ""
    data = kdistill.load_data("digits", quiet=True)
    one, two = (published.random_images(data, 3, seed) for seed in (0, 1))
    assert one.counts == (3,) * 10 and not one.images.equal(two.images)


def test_the_options_of_every_row_are_known():
    for name, experiment in EXPERIMENTS.items():
        protocols.get(experiment.protocol)
        if experiment.method:
            method = methods.get(experiment.method)
            config = method.options(experiment.preset, experiment.options)
            assert (method.experts is None) == ("num_experts" not in experiment.options), name
            assert config.width == 128


def test_an_unknown_row_is_refused(settings):
    with pytest.raises(ConfigError, match="row: expected a known one, got 'DM'; choose among 'DM,"):
        published.run(replace(settings, row="DM"))


def test_the_page_is_in_the_order_of_the_experiments(settings):
    empty = dict.fromkeys(PublishedRow.__dataclass_fields__, "")
    shared = {**empty, "data": "d", "mean": "48.2", "std": "0.3", "wanted": "2", "networks": "48 4"}
    rows = [PublishedRow(**{**shared, "row": name}) for name in ("MTT, 1", "DM, 10", "DSA, 1")]
    write_rows(PublishedRow, settings.results, rows)
    text = published_rows.table(read_rows(PublishedRow, settings.results))
    assert text.index("| DSA, 1 |") < text.index("| DM, 10 |") < text.index("| MTT, 1 |")
    assert "| 48.2 ± 0.3 |" in text


def test_the_committed_page_is_that_of_the_committed_rows(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(published_rows.PAGE.read_text())
    published_rows.write_page(page)
    assert page.read_text() == published_rows.PAGE.read_text()


def test_the_command_line_names_the_file_and_not_its_place():
    settings = published.parsed(["DM, 1", "--data", "/some/where/cifar10.npz", "--minutes", "5"])
    assert (settings.row, settings.data) == ("DM, 1", "/some/where/cifar10.npz")
    assert (
        settings.command == "python -m benchmarks.published 'DM, 1' --data cifar10.npz --minutes 5"
    )
