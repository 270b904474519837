"""How many images are drawn from a generator: by an evaluation, a table of runs, a command."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import kdistill
from kdistill.api.distilled_generator import sample_set
from kdistill.cli import app
from kdistill.errors import ConfigError, DataError
from kdistill.evaluation import protocols
from kdistill.keys import generator as keyed
from kdistill.keys import make_key
from kdistill.priors.network_files import save_generator
from kdistill.priors.stylegan import new_stylegan2

TINY = {
    "iterations": 1, "gan_iterations": 1, "generator_width": 4, "critic_width": 4, "noise": 5,
    "label_embedding": 3, "gan_batch": 8, "batch_size": 6, "width": 4, "net_steps": 1,
    "net_batch": 8,
}  # fmt: skip
PER_CLASS = 8


@pytest.fixture(scope="module")
def data():
    images = torch.rand(3 * PER_CLASS, 8, 8, 1, generator=keyed(1))
    labels = torch.arange(3 * PER_CLASS) % 3
    loaded = kdistill.load_data((images.numpy(), labels.numpy()), test=0, quiet=True)
    return replace(loaded, test=loaded.train)


def distilled(data, **changes):
    settings = {"method": "dim", "ipc": 1, "validation": 0.0, "options": TINY, "quiet": True}
    return kdistill.distill(data, **{**settings, **changes})


@pytest.fixture(scope="module")
def small(data):
    return distilled(data)


@pytest.fixture
def protocol():
    return replace(protocols.get("quick"), epochs=2, full_epochs=1, nets=2, width=4)


def test_an_evaluation_draws_as_many_images_as_it_is_asked_for(data, small, protocol):
    remembered = dict(small.metrics)
    settings = {"protocol": protocol, "baselines": ("random",), "quiet": True}
    result = kdistill.evaluate(small, data, ipc=3, **settings)
    assert {row.images for row in result.rows} == {9}
    assert result.row("dim, fresh").drawn == 2 * 2 * 9  # networks, epochs, images
    assert small.metrics == remembered
    drawn = small.sample(3, seed=0)  # the images of the seed of the evaluation
    same = kdistill.evaluate(drawn, data, **settings)
    assert result.row("dim").accuracies == same.row("dim").accuracies
    with pytest.raises(ConfigError, match=r"ipc: expected a generator, .* set of 3 images"):
        kdistill.evaluate(drawn, data, ipc=2, **settings)
    with pytest.raises(ConfigError, match="expected at least 1 image per class"):
        kdistill.evaluate(small, data, ipc=0, **settings)


def test_a_table_of_runs_has_a_line_of_fresh_images(data, protocol, tmp_path):
    for seed in (0, 1):
        one = distilled(data, seed=seed)
        kdistill.evaluate(one, data, protocol=protocol, baselines=("random",), quiet=True)
        one.save_pretrained(tmp_path / str(seed))
    table = kdistill.compare([tmp_path])
    entries = {entry.name: entry for entry in table.entries}
    assert list(entries) == ["dim", "dim, fresh", "random"]
    fresh = entries["dim, fresh"]
    assert set(fresh.accuracies) == {0, 1} and fresh.against is not None
    assert fresh.seconds == entries["dim"].seconds


def test_a_generator_may_have_more_images_per_class_than_there_are_real_ones(data):
    assert distilled(data, ipc=PER_CLASS + 1).ipc == PER_CLASS + 1
    with pytest.raises(DataError, match="at least ipc=9 training images per class"):
        distilled(data, ipc=PER_CLASS + 1, method="dm", options={"width": 4})
    with pytest.raises(DataError, match="at least ipc=9 training images per class"):
        distilled(data, ipc=PER_CLASS + 1, options={**TINY, "objective": "dm"})


def test_more_images_than_fit_in_memory_are_refused(small):
    with pytest.raises(ConfigError, match=r"fit in memory .*3,000,000,000,000"):
        small.sample(10**12)


def test_a_sample_of_a_prior_has_the_names_of_its_classes(tmp_path):
    network = new_stylegan2(
        size=8, channels=1, classes=2, z_dim=4, w_dim=4, channel_base=64, channel_max=8,
        generator=keyed(0),
    )  # fmt: skip
    about = {"source": {"classes": ["cat", "dog"]}}
    save_generator(network, tmp_path / "named", about)
    assert sample_set(tmp_path / "named", 2).classes == ("cat", "dog")
    for number, source in enumerate((["cat"], "cat", [1, 2])):  # another number, or no names
        folder = tmp_path / str(number)
        save_generator(network, folder, {"source": {"classes": source}})
        assert sample_set(folder, 2).classes == ("0", "1")


def test_the_commands(small, data, tmp_path):
    small.save_pretrained(tmp_path / "dim")
    run = CliRunner()
    arguments = ["sample", str(tmp_path / "dim"), "--ipc", "1", "--out", str(tmp_path / "s")]
    drawn = run.invoke(app, [*arguments, "--device", "cpu", "--threads", "1"])
    assert drawn.exit_code == 0, drawn.output
    refused = run.invoke(app, [*arguments, "--force", "--device", "gpu"])
    assert refused.exit_code != 0 and "device" in refused.output + str(refused.exception)
    images = kdistill.DistilledDataset.from_pretrained(tmp_path / "s").images
    assert torch.equal(images, small.network.sample(torch.arange(3), make_key(0, "sample")))
