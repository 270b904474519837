"""``train_prior``: what it leaves in its folder, what it resumes, and what it refuses."""

import json

import pytest
import torch
from typer.testing import CliRunner

import kdistill
from kdistill.cli import app
from kdistill.errors import ConfigError, DataError, NonFiniteError
from kdistill.keys import generator as keyed
from kdistill.priors.gan_training import PriorSpec
from kdistill.priors.network_files import load_generator
from kdistill.priors.training.gan_kind import strategy
from kdistill.runner import CHECKPOINT
from tests.files.test_locks import elsewhere
from tests.priors.tiny_trainings import TINY

FILES = {
    "generator.safetensors",
    "config.json",
    "samples.png",
    "metrics.json",
    "metrics.jsonl",
    "nearest.png",
    "README.md",
    CHECKPOINT,
}


def test_a_training_leaves_what_glad_takes(digits, tmp_path):
    out, rows = tmp_path / "prior", []
    made = kdistill.train_prior(digits, out=out, options=TINY, callbacks=[rows.append])
    assert {path.name for path in out.iterdir()} - {CHECKPOINT + ".prev"} == FILES
    assert made.finished and made.iterations == 12
    assert [row.iteration for row in rows] == [10, 12]
    about = json.loads((out / "config.json").read_text())["about"]
    assert about["quality"]["images"] == 60
    assert about["source"]["classes"] == list(digits.classes)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == {**about["quality"], "iterations": 12}
    assert all(
        0.0 <= metrics[f"{kind}_{place}"] <= 1.0
        for kind in ("generated", "real")
        for place in ("validation", "test")
    )
    text = (out / "README.md").read_text()
    assert f"{100 * metrics['generated_test']:.1f} %" in text and "12 iterations" in text
    for name, x in load_generator(out).tensors.items():
        assert torch.equal(x, made.generator.tensors[name])
    options = {"prior": str(out), "layer": 1, "iterations": 1, "n_avg": 2, "width": 4}
    small = kdistill.distill(digits, method="glad", ipc=1, options=options)
    assert small.images.shape == (10, 1, 8, 8)


def test_without_held_out_images_that_part_is_not_measured(digits, tmp_path):
    made = kdistill.train_prior(
        digits, out=tmp_path / "prior", options={**TINY, "iterations": 1}, validation=0.0
    )
    assert made.quality.generated_validation is None and made.quality.generated_test is not None
    assert "| not measured |" in (tmp_path / "prior/README.md").read_text()


def test_a_stopped_training_resumes_to_the_same_files(digits, tmp_path):
    kdistill.train_prior(digits, out=tmp_path / "whole", options=TINY)
    part = kdistill.train_prior(digits, out=tmp_path / "part", options=TINY, max_minutes=0)
    assert not part.finished and part.iterations == 1
    made = kdistill.train_prior(digits, out=tmp_path / "part", options=TINY, resume=True)
    assert made.finished
    for name in ("generator.safetensors", "samples.png", "metrics.json"):
        whole, part = (tmp_path / folder / name for folder in ("whole", "part"))
        assert whole.read_bytes() == part.read_bytes(), name
    longer = kdistill.train_prior(
        digits, out=tmp_path / "part", options={**TINY, "iterations": 14}, resume=True
    )
    assert longer.iterations == 14


def test_ctrl_c_keeps_the_state(tmp_path, interrupted):
    out = tmp_path / "prior"
    tiny = [f"--set={name}={value}" for name, value in {**TINY, "iterations": 100_000}.items()]
    training = ["prior", "train", "digits", "--out", str(out), "--threads", "1", *tiny]
    status, said = interrupted(["-m", "kdistill", *training], out / "metrics.jsonl")
    assert status == 130
    assert "continue with --resume" in said
    done = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["iteration"]
    shown = CliRunner().invoke(app, [*training, "--set", f"iterations={done + 20}", "--resume"])
    assert shown.exit_code == 0, shown.output
    assert "generated images alone" in shown.output and "b8.conv1" in shown.output


def test_help_has_two_examples():
    shown = CliRunner().invoke(app, ["prior", "train", "--help"])
    assert shown.output.split("Examples")[1].count("kdistill prior train") == 2


def shaped(side, classes=2, per_class=15, channels=3):
    images = torch.rand(classes * per_class, side, side, channels, generator=keyed(0)).numpy()
    return kdistill.load_data(
        (images, torch.arange(classes).repeat_interleave(per_class).numpy()), quiet=True
    )


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"side": 28}, "power of two from 8 to 256, got 28x28; load them with size=32"),
        ({"side": 5, "channels": 1}, "got 5x5; load them with size=8"),
        ({"side": 16, "per_class": 10}, "at least 10 training images per class, got"),
    ],
)
def test_data_that_does_not_fit_is_refused(kwargs, message, tmp_path):
    with pytest.raises(DataError, match=message):
        kdistill.train_prior(shaped(**kwargs), out=tmp_path / "prior", options=TINY)
    assert not (tmp_path / "prior").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"iteration": 3}, "iterations"),
        ({"batch_size": 1}, "prior.batch_size: expected at least 2, got 1"),
        ({"augment_p": 1.5}, r"prior.augment_p: expected a share in \[0, 1\], got 1.5"),
        ({"r1": -1.0}, "prior.r1: expected a number of 0 or more, got -1.0; 0 changes nothing"),
        ({"lr": 0.0}, "prior.lr: expected a number above 0"),
        ({"augment": "twist"}, "twist"),
    ],
)
def test_settings_out_of_range_are_refused(digits, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        kdistill.train_prior(digits, out=tmp_path / "prior", options={**TINY, **options})


def test_folders_that_do_not_fit_are_refused(digits, colours, tmp_path):
    out = tmp_path / "prior"
    kdistill.train_prior(digits, out=out, options={**TINY, "iterations": 2})
    before = (out / CHECKPOINT).read_bytes()

    def train(data=digits, **options):
        return kdistill.train_prior(data, out=out, options={**TINY, **options}, resume=True)

    with pytest.raises(ConfigError, match="continue it with resume=True"):
        kdistill.train_prior(digits, out=out, options=TINY)
    with pytest.raises(ConfigError, match=r"got another settings.batch_size \(6, was 4\)"):
        train(batch_size=6)
    with pytest.raises(
        ConfigError, match=r"got another source.classes \(\['0', '1'\], was \['0', '1', '2'"
    ):
        train(colours)
    with pytest.raises(ConfigError, match="at most 1 iterations, got one of 2; raise iterations"):
        train(iterations=1)
    assert (out / CHECKPOINT).read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"new or empty folder, got .*other with notes.txt"):
        kdistill.train_prior(digits, out=tmp_path / "other", options=TINY)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"expected a folder that can be written, got .*file is no folder"
    ):
        kdistill.train_prior(digits, out=tmp_path / "file", options=TINY)
    (tmp_path / "early").mkdir()
    (tmp_path / "early/metrics.jsonl").write_text("")  # killed before the first checkpoint
    made = kdistill.train_prior(
        digits, out=tmp_path / "early", options={**TINY, "iterations": 1}, resume=True
    )
    assert made.finished


def test_a_folder_serves_one_training_at_a_time(digits, tmp_path):
    def refused():
        with pytest.raises(
            ConfigError,
            match="in which nothing else works, got one that another run is using",
        ):
            kdistill.train_prior(digits, out=tmp_path, options=TINY, quiet=True)
        return True

    told = []
    kdistill.train_prior(
        digits,
        out=tmp_path,
        options=TINY,
        callbacks=[lambda progress: told.append(elsewhere(refused))],
    )
    assert told == [True, True]


def test_the_checkpoint_of_something_else_is_refused(digits, tmp_path):
    out = tmp_path / "run"
    kdistill.distill(
        digits, ipc=1, out=out, options={"iterations": 1, "width": 4, "batch_real": 12}
    )
    with pytest.raises(DataError, match="checkpoint of such a run, got another in"):
        kdistill.train_prior(digits, out=out, options=TINY, resume=True)


def test_a_training_that_blows_up_keeps_the_last_good_state(digits, tmp_path):
    with pytest.raises(
        NonFiniteError,
        match=r"expected at iteration \d+ a finite .*lower lr .*; iteration \d+ is saved in",
    ):
        kdistill.train_prior(digits, out=tmp_path / "prior", options={**TINY, "lr": 1e30})
    assert (tmp_path / "prior" / CHECKPOINT).exists()


def test_grey_images_keep_their_brightness(digits, colours):
    assert strategy(PriorSpec(), digits) == "crop_cutout_scale_rotate"
    assert strategy(PriorSpec(), colours) == "color_crop_cutout_flip_scale_rotate"
    assert strategy(PriorSpec(augment="color"), digits) == "color"
