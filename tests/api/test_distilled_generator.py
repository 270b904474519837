"""A run whose product is a generator: its artefact, samples, fresh epochs, what is refused."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import kdistill
from kdistill.api.distilled_generator import sample_set
from kdistill.artifacts.tensors import to_json
from kdistill.cli import app
from kdistill.engine.student_training import train
from kdistill.engine.students import build_student
from kdistill.errors import ConfigError, DataError
from kdistill.evaluation import protocols
from kdistill.evaluation.result import Evaluation, merge
from kdistill.keys import generator as keyed
from kdistill.priors.conditional_gan import FILE, load_folder
from kdistill.priors.image_generators import identity, load_image_generator
from kdistill.priors.network_files import save_generator
from kdistill.priors.stylegan import new_stylegan2

TINY = {
    "iterations": 1, "gan_iterations": 2, "generator_width": 4, "critic_width": 4, "noise": 5,
    "label_embedding": 3, "gan_batch": 8, "batch_size": 6, "width": 4, "net_steps": 1,
    "net_batch": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    images = torch.rand(24, 8, 8, 1, generator=keyed(1))
    return kdistill.load_data((images.numpy(), (torch.arange(24) % 3).numpy()), test=0, quiet=True)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    return folder, kdistill.distill(
        data, method="dim", ipc=2, validation=0.0, options=TINY, out=folder, quiet=True
    )


def test_a_run_gives_a_generator_and_images_drawn_once(run):
    folder, small = run
    assert isinstance(small, kdistill.DistilledGenerator)
    assert small.images.shape == (6, 1, 8, 8) and small.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert "3 classes, images 1×8×8, 6 of them drawn once" in repr(small)
    again = kdistill.DistilledGenerator.from_pretrained(folder)
    assert torch.equal(again.images, small.images) and again.files[FILE] == small.files[FILE]
    card = (folder / "README.md").read_text()
    assert "drawn once from a distilled generator, which stands beside them" in card
    assert "kdistill sample . --ipc 50" in card
    images = kdistill.DistilledDataset.from_pretrained(folder)  # whatever takes a set takes it
    assert torch.equal(images.images, small.images)


def test_a_sample_is_a_set_of_any_size(run):
    _, small = run
    one, two = small.sample(1), small.sample(7, seed=1)
    assert type(one) is kdistill.DistilledDataset
    assert len(one) == 3 and two.counts == (7, 7, 7)
    assert torch.equal(one.images, small.sample(1, seed=0).images)
    assert not torch.equal(two.images[:1], one.images[:1])
    assert two.recorded("sample", "ipc") == 7 and two.recorded("run", "method") == "dim"
    assert float(two.images.min()) >= 0.0 and float(two.images.max()) <= 1.0


def test_a_sample_names_what_draws_it_again(run, tmp_path):
    _, small = run
    drawn = small.sample(2, seed=3)
    assert drawn.recorded("sample", "generator") == identity(small.network)
    other = replace(small.network, tensors={**small.network.tensors})
    other.tensors["image.bias"] = other.tensors["image.bias"] + 1.0
    assert identity(other)["sha256"] != identity(small.network)["sha256"]
    card = (drawn.save_pretrained(tmp_path / "drawn") / "README.md").read_text()
    assert "The images were drawn from a generator, not photographed." in card
    assert identity(small.network)["sha256"] in card
    assert "kdistill sample GENERATOR --ipc 2 --seed 3" in card
    assert "makes its generator again" in card and "makes the set again" not in card


@pytest.mark.parametrize("ipc", [0, -1, True, 1.5, "2", None])
def test_a_number_of_images_is_a_whole_one(run, ipc):
    folder, small = run
    message = "sample: expected at least 1 image per class, as a whole number, got "
    for draw in (small.sample, lambda ipc: sample_set(folder, ipc)):
        with pytest.raises(ConfigError, match=message):
            draw(ipc)


@pytest.mark.parametrize("seed", ["x", 1.5, True, None])
def test_a_seed_is_a_whole_number(run, seed):
    _, small = run
    with pytest.raises(ConfigError, match="sample: expected a whole number as seed, got"):
        small.sample(1, seed)
    with pytest.raises(ConfigError, match="to_torch: expected a whole number as seed, got"):
        small.to_torch(1, seed=seed)


def test_every_epoch_has_other_images(run):
    _, small = run
    assert len(small.to_torch()) == 6
    fresh = small.to_torch(3, seed=4)
    rows = list(fresh)
    assert len(fresh) == len(rows) == 18
    images, labels = torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])
    assert len(images.flatten(1).unique(dim=0)) == 18
    assert all(sorted(part.tolist()) == [0, 0, 1, 1, 2, 2] for part in labels.split(6))
    assert torch.equal(small.to_torch(3, seed=4)[7][0], images[7])
    assert torch.equal(fresh[0][0], images[0])  # an earlier epoch again
    normalised = small.to_torch(1, seed=4, normalised=True)
    torch.testing.assert_close(normalised[0][0], small.transform.apply(images[:1])[0])
    with pytest.raises(IndexError):
        fresh[18]
    for epochs in (0, True, 1.5, "2"):
        with pytest.raises(ConfigError, match="to_torch: expected at least 1 epoch, as a whole"):
            small.to_torch(epochs)
    with pytest.raises(DataError, match="soft"):
        small.to_torch(soft=True)


def test_a_second_run_begins_with_the_first(data, run):
    folder, small = run
    options = {**TINY, "generator": str(folder), "gan_iterations": 0, "iterations": 0}
    again = kdistill.distill(
        data, method="global_local", ipc=2, validation=0.0, options=options, quiet=True
    )
    for name in ("image.weight", "labels"):
        assert torch.equal(again.network.tensors[name], small.network.tensors[name])


def flipped(folder):
    content = bytearray((folder / FILE).read_bytes())
    content[-3] ^= 1
    (folder / FILE).write_bytes(content)


def of_another_version(folder):
    config = json.loads((folder / "config.json").read_text())
    config["artifact"]["schema_version"] = 99
    (folder / "config.json").write_text(json.dumps(config))


def without_sizes(folder):
    config = json.loads((folder / "config.json").read_text())
    config["artifact"]["files"][FILE] = 7
    del config["artifact"]["checksum"]
    checksum = hashlib.sha256(to_json(config)).hexdigest()
    config["artifact"]["checksum"] = checksum
    (folder / "config.json").write_text(json.dumps(config))


def linked(folder):
    (folder / FILE).rename(folder.parent / "elsewhere")
    (folder / FILE).symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flipped, "expected the contents that config.json names, got others"),
        (of_another_version, "expected schema version 1, got 99"),
        (without_sizes, "expected (size and sha256 of|images, labels and classes that fit)"),
        (linked, "a symbolic link, which is not followed"),
        (lambda folder: (folder / FILE).unlink(), "No such file|got the result of a run"),
        (lambda folder: (folder / FILE).write_bytes(b""), "expected [0-9]+ bytes, got 0"),
    ],
)
def test_whoever_reads_a_generator_refuses_a_damaged_one(run, tmp_path, damage, message):
    place = run[1].save_pretrained(tmp_path / "out")
    assert load_folder(place).config == run[1].network.config
    damage(place)
    for read in (kdistill.DistilledGenerator.from_pretrained, load_image_generator, load_folder):
        with pytest.raises(DataError, match=message):
            read(place)


def test_a_set_of_images_is_no_generator_and_a_changed_one_is_refused(run, tmp_path):
    folder, small = run
    small.sample(1).save_pretrained(tmp_path / "images")
    with pytest.raises(DataError, match=r"expected an artefact with generator\.safetensors, got a"):
        kdistill.DistilledGenerator.from_pretrained(tmp_path / "images")
    with pytest.raises(ConfigError, match="iteration: expected none for a generator, got 3"):
        kdistill.DistilledGenerator.from_pretrained(folder, iteration=3)
    values = {"labels": small.labels, "classes": small.classes, "files": small.files}
    with pytest.raises(DataError, match=r"expected one of 3 classes and images \[1, 4, 4\], got"):
        kdistill.DistilledGenerator(images=small.images[:, :, :4, :4], **values)
    with pytest.raises(DataError, match="expected a whole safetensors file"):
        kdistill.DistilledGenerator(images=small.images, **{**values, "files": {FILE: b"x"}})


def test_a_finished_run_is_given_back_as_a_generator(data, run):
    folder, small = run
    again = kdistill.distill(
        data, method="dim", ipc=2, validation=0.0, options=TINY, out=folder, resume=True, quiet=True
    )
    assert isinstance(again, kdistill.DistilledGenerator)
    assert again.files[FILE] == small.files[FILE]


def test_the_command_draws_a_set(run, tmp_path):
    folder, small = run
    arguments = ["sample", str(folder), "--ipc", "2", "--seed", "3", "--out", str(tmp_path / "s")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "6 images" in result.output
    drawn = kdistill.DistilledDataset.from_pretrained(tmp_path / "s")
    assert torch.equal(drawn.images, small.sample(2, seed=3).images)
    again = ["sample", str(tmp_path / "s"), "--out", str(tmp_path / "t")]
    result = CliRunner().invoke(app, again)
    assert result.exit_code != 0 and "expected an artefact with generator.safetensors" in str(
        result.output + str(result.exception)
    )


def test_a_sample_replaces_no_run(run, tmp_path):
    """The generator is the product of hours; a set drawn from it is made again in seconds."""
    folder, small = run
    place = tmp_path / "copy"
    small.save_pretrained(place)
    set_of = ["sample", str(folder), "--ipc", "1", "--out"]

    def refused(*arguments):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code != 0
        return str(result.output + str(result.exception))

    own = refused("sample", str(place), "--out", f"{place}/../copy", "--force")
    assert "expected another folder than the generator's" in own
    assert "with a finished set (dim, 2 per class, seed 0)" in refused(*set_of, str(place))
    again = kdistill.DistilledGenerator.from_pretrained(place)
    assert again.files[FILE] == small.files[FILE]
    assert CliRunner().invoke(app, [*set_of, str(place), "--force"]).exit_code == 0
    assert kdistill.DistilledDataset.from_pretrained(place).counts == (1, 1, 1)


def renamed(row):
    return replace(row, sources=(f"another {row.sources[0]}",))


def test_an_evaluation_has_a_row_of_fresh_images(data, run, tmp_path):
    """Its compute is that of the images drawn once: as many images in as many epochs."""
    (folder, small), place = run, tmp_path / "evaluated"
    tested = replace(data, test=data.train)
    protocol = replace(protocols.get("quick"), epochs=3, nets=1, width=4)
    settings = {"protocol": protocol, "baselines": (), "quiet": True}
    result = kdistill.evaluate(folder, tested, **settings)
    once, fresh = result.row("dim"), result.row("dim, fresh")
    assert (once.images, once.epochs) == (fresh.images, fresh.epochs)
    assert fresh.kind == "variant" and fresh.sources != once.sources
    assert (once.drawn, once.drawing_seconds) == (0, 0.0)
    assert fresh.drawn == 3 * 6 and 0.0 < fresh.drawing_seconds < fresh.seconds
    assert fresh.nbytes == sum(x.nbytes for x in small.network.tensors.values())
    assert any("dim, fresh (convnet): other images" in line for line in result.summary())
    assert sum("drawn in" in line for line in result.summary()) == 1
    merged = merge([result, replace(result, rows=tuple(map(renamed, result.rows)))])
    assert merged.row("dim, fresh").drawn == 2 * fresh.drawn
    card = small.with_metrics(evaluation=result.to_dict()).save_pretrained(place) / "README.md"
    assert "other images in every epoch, 18 drawn in" in card.read_text()
    assert Evaluation.from_dict(result.to_dict()).row("dim, fresh") == fresh
    again = kdistill.evaluate(small, tested, **settings)
    assert again.row("dim, fresh").accuracies == fresh.accuracies
    names = {row.name for row in kdistill.evaluate(small.sample(2), tested, **settings).rows}
    assert "dim, fresh" not in names


def test_fresh_images_differ_from_those_drawn_once_in_nothing_but_the_images(
    data, run, monkeypatch
):
    """Networks of both rows have the same weights, order of labels and augmentations."""
    seen = []

    def recorded(student, images, labels, *, images_of=None, augment=None, **how):
        def spy(batch, step):
            seen[-1].append((step, tuple(batch.shape)))
            return augment(batch, step)

        seen.append([how["key"], labels.tolist(), images_of is not None])
        return train(student, images, labels, images_of=images_of, augment=spy, **how)

    monkeypatch.setattr("kdistill.evaluation.trainer.train", recorded)
    settings = {"epochs": 3, "nets": 2, "width": 4, "batch_size": 4, "eight_bit": False}
    protocol = replace(protocols.get("quick"), **settings)
    tested = replace(data, test=data.train)
    kdistill.evaluate(run[1], tested, protocol=protocol, baselines=(), quiet=True)
    once, fresh = seen[:2], seen[2:]
    assert [row.pop(2) for row in once + fresh] == [False, False, True, True]
    assert once == fresh and len(once[0]) == 2 + 3 * 2


def test_the_images_of_an_epoch_are_drawn_once_for_all_networks():
    student = build_student("convnet", channels=1, size=8, classes=3, width=4)
    images, labels = torch.rand(2, 6, 1, 8, 8, generator=keyed(2)), torch.arange(6) % 3
    drawn = []

    def draw(epoch):
        drawn.append(epoch)
        return images[epoch]

    settings = {"epochs": 2, "lr": 0.1, "key": 5, "batch_size": 4, "nets": 2}
    theta = train(student, images[0], labels, images_of=draw, **settings)
    assert drawn == [0, 1]
    rows = {"rows_of": lambda epoch: torch.arange(6 * epoch, 6 * epoch + 6)}
    assert torch.equal(
        theta, train(student, images.flatten(0, 1), labels.repeat(2), **rows, **settings)
    )


def test_the_generator_of_a_prior_gives_a_set_too(tmp_path):
    network = new_stylegan2(
        size=8,
        channels=1,
        classes=2,
        z_dim=4,
        w_dim=4,
        channel_base=64,
        channel_max=8,
        generator=keyed(0),
    )
    save_generator(network, tmp_path)
    small = sample_set(tmp_path, 3, seed=1)
    assert small.counts == (3, 3) and torch.equal(sample_set(tmp_path, 3, 1).images, small.images)
    assert small.recorded("sample", "seed") == 1
    assert small.recorded("sample", "generator") == identity(network)
    with pytest.raises(DataError, match="expected"):
        sample_set(tmp_path / "nothing", 1)


def test_an_export_says_that_the_images_were_drawn_once(run, tmp_path):
    folder, _ = run
    shown = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "x.npz"), "--to", "npz"])
    assert shown.exit_code == 0, shown.output
    said = " ".join(shown.output.split())
    assert "these are the 6 images that the generator drew once; kdistill sample" in said
