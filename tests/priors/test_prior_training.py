"""Training a generator: the parts against their definitions, then whole trainings of a second."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import kdistill
from kdistill.api.prior import _strategy
from kdistill.cli import app
from kdistill.errors import ConfigError, DataError, NonFiniteError
from kdistill.keys import generator as keyed
from kdistill.priors.gan_training import PriorSpec, fit
from kdistill.priors.gan_training.adversarial_training import new_gan_training
from kdistill.priors.gan_training.discriminator import Discriminator, _spread, group_size
from kdistill.priors.gan_training.training_loop import CHECKPOINT
from kdistill.priors.network_files import load_generator
from tests.files.test_locks import elsewhere

TINY = {
    "iterations": 12, "batch_size": 4, "channel_base": 64, "channel_max": 8, "z_dim": 4, "w_dim": 4, "r1_every": 3,
    "quality_images": 60, "quality_steps": 2, "quality_width": 4,
}  # fmt: skip
FILES = {
    "generator.safetensors",
    "config.json",
    "samples.png",
    "metrics.json",
    "metrics.jsonl",
    "README.md",
    CHECKPOINT,
}


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


@pytest.fixture(scope="module")
def colours():
    """Two classes that a generator learns at once: dark red and bright blue."""
    images = (
        torch.tensor([[0.3, 0.0, 0.0], [0.2, 0.5, 1.0]])
        .repeat_interleave(60, 0)[:, :, None, None]
        .expand(-1, -1, 8, 8)
    )
    images = (
        (images + 0.05 * torch.randn(120, 3, 8, 8, generator=keyed(1)))
        .clamp(0.0, 1.0)
        .permute(0, 2, 3, 1)
    )
    labels = torch.arange(2).repeat_interleave(60)
    return kdistill.load_data((images.numpy(), labels.numpy()), quiet=True)


def tiny_training(data, **options):
    spec = PriorSpec(**{**TINY, **options})
    return new_gan_training(spec, data, "crop_scale")


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def test_the_discriminator_can_be_differentiated_twice():
    opponent = Discriminator(size=8, channels=2, classes=3, channel_base=32, channel_max=3)
    tensors = {name: x.double() for name, x in opponent.new(keyed(0)).items()}
    tensors["classes"] = torch.randn(3, 3, dtype=torch.float64, generator=keyed(1))
    names, labels = list(tensors), torch.tensor([0, 2, 1, 1])
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=keyed(2)).requires_grad_()
    some = [name for name in names if name.startswith(("b4", "classes", "label", "out"))]
    inputs = [tensors[name].requires_grad_() for name in some]

    def judged(images, *values):
        judged = opponent.apply({**tensors, **dict(zip(some, values, strict=True))}, images, labels)
        return torch.cat([judged.logits, judged.class_logits.flatten(), judged.spread])

    assert torch.autograd.gradcheck(judged, (images, *inputs), fast_mode=True)
    assert torch.autograd.gradgradcheck(judged, (images, *inputs), fast_mode=True)


def test_logits_depend_on_the_class_and_scores_do_not():
    opponent = Discriminator(size=8, channels=1, classes=2, channel_base=64, channel_max=8)
    tensors = opponent.new(keyed(0))
    images = torch.randn(4, 1, 8, 8, generator=keyed(1))
    tensors["classes"] = torch.randn(2, 8, generator=keyed(2))
    first = opponent.apply(tensors, images, torch.zeros(4, dtype=torch.int64))
    second = opponent.apply(tensors, images, torch.ones(4, dtype=torch.int64))
    assert not torch.equal(first.logits, second.logits)
    assert torch.equal(first.class_logits, second.class_logits)


def test_the_step_is_adam_without_momentum(digits):
    training = tiny_training(digits, lr=0.01)
    state = training.init()
    theta = torch.nn.Parameter(state["generator"].clone())
    adam = torch.optim.Adam([theta], lr=0.01, betas=(0.0, 0.99), eps=1e-8)
    for iteration in range(5):
        theta.grad = torch.randn(theta.shape, generator=keyed(iteration))
        state = training._stepped(state, "generator", theta.grad, iteration)
        adam.step()
    torch.testing.assert_close(state["generator"], theta.data)
    assert torch.equal(state["discriminator"], training.init()["discriminator"])


def test_an_iteration_is_a_function_of_its_state(digits):
    for options in ({}, {"path_length": 2.0, "augment_p": 0.5, "r1": 1.0}):
        training = tiny_training(digits, **options)
        state, _ = training.iterate(training.init(), 0)
        before = {name: x.clone() for name, x in state.items()}
        first, second = (training.iterate(state, 1)[0] for _ in range(2))
        assert first.keys() == state.keys()
        for name, x in first.items():
            assert torch.equal(x, second[name]), name
            assert torch.equal(state[name], before[name]), name
            assert torch.isfinite(x).all()


def test_penalties_are_left_out_between_their_turns(digits):
    training = tiny_training(digits, path_length=2.0, path_every=2, r1=1.0)
    state, has_penalties = training.init(), []
    for iteration in range(6):
        state, losses = training.iterate(state, iteration)
        has_penalties.append((float(losses["r1"]) > 0.0, float(losses["path"]) > 0.0))
    assert has_penalties == [(i % 3 == 0, i % 2 == 0) for i in range(6)]


def test_the_average_follows_with_its_half_life(digits):
    training = tiny_training(digits, ema_images=8)
    state = training.init()
    after, _ = training.iterate(state, 10_000)
    decay = 0.5 ** (4 / 8)
    torch.testing.assert_close(
        after["average"], decay * state["average"] + (1 - decay) * after["generator"]
    )


def test_the_probability_of_augmentation_follows_the_sign(digits):
    training = tiny_training(
        digits, augment_images=64, augment_target=0.5
    )  # 4 iterations of 4 images: a quarter up or down
    for sign_sum, expected in ((2.1, 0.75), (1.9, 0.25)):
        state = training.init() | {"augment_p": scalar(0.5), "sign_sum": scalar(sign_sum)}
        after = training._adjusted(state, 4)
        numbers = [float(after[name]) for name in ("augment_p", "sign_sum", "sign")]
        assert numbers == [expected, 0.0, sign_sum / 4]
        assert float(training._adjusted(state, 5)["augment_p"]) == 0.5
    assert float(training._adjusted(state | {"augment_p": scalar(0.1)}, 4)["augment_p"]) == 0.0
    assert float(tiny_training(digits, augment_p=1.0).init()["augment_p"]) == 1.0


def test_augmentation_that_is_off_or_improbable_changes_nothing(digits):
    training = tiny_training(digits)
    images = training.images[:4]
    assert training._augmented(images, 0.0, "real", 0) is images
    torch.testing.assert_close(training._augmented(images, 1e-12, "real", 0), images)
    assert not torch.allclose(training._augmented(images, 1.0, "real", 0), images)


def test_classes_are_learned(colours):
    training = new_gan_training(PriorSpec(**{**TINY, "lr": 0.02, "batch_size": 8}), colours, "none")
    state = training.init()
    for iteration in range(80):
        state, _ = training.iterate(state, iteration)
    network, z = training.generator_of(state["generator"]), torch.randn(20, 4, generator=keyed(3))
    red, green, blue = (
        network.forward(network.mapping(z, torch.ones(20, dtype=torch.int64))).mean((0, 2, 3))
        - network.forward(network.mapping(z, torch.zeros(20, dtype=torch.int64))).mean((0, 2, 3))
    ).tolist()
    assert blue > 0.7 and green > red, (
        red,
        green,
        blue,
    )  # on the scale from -1 to 1; truth: 2, 1 and -0.2


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
    assert kdistill.distill(digits, method="glad", ipc=1, options=options).images.shape == (
        10,
        1,
        8,
        8,
    )


def test_without_withheld_images_that_part_is_not_measured(digits, tmp_path):
    made = kdistill.train_prior(
        digits, out=tmp_path / "prior", options={**TINY, "iterations": 1}, validation=0.0
    )
    assert made.quality.generated_validation is None and made.quality.generated_test is not None
    assert "| not measured |" in (tmp_path / "prior/README.md").read_text()


def test_a_killed_training_resumes_with_the_same_bits(digits, tmp_path):
    training = tiny_training(digits, augment_p=0.3, path_length=1.0)

    def copied(state, iteration):
        if iteration == 7:
            shutil.copytree(
                tmp_path / "whole", tmp_path / "killed"
            )  # what a kill would leave there

    (tmp_path / "whole").mkdir()
    kwargs = {"identity": {"settings": 1}, "checkpoint_minutes": 0.0}
    whole = fit(training, tmp_path / "whole", on_checkpoint=copied, **kwargs)
    again = fit(training, tmp_path / "killed", resume=True, **kwargs)
    assert whole.iteration == again.iteration == 12
    assert whole.state.keys() == again.state.keys()
    for name, x in whole.state.items():
        assert torch.equal(x, again.state[name]), name


def test_a_stopped_training_resumes_to_the_same_files(digits, tmp_path):
    kdistill.train_prior(digits, out=tmp_path / "whole", options=TINY)
    part = kdistill.train_prior(digits, out=tmp_path / "part", options=TINY, max_minutes=0)
    assert not part.finished and part.iterations == 1
    made = kdistill.train_prior(digits, out=tmp_path / "part", options=TINY, resume=True)
    assert made.finished
    for name in ("generator.safetensors", "samples.png", "metrics.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (
            tmp_path / "part" / name
        ).read_bytes(), name
    longer = kdistill.train_prior(
        digits, out=tmp_path / "part", options={**TINY, "iterations": 14}, resume=True
    )
    assert longer.iterations == 14


def test_ctrl_c_keeps_the_state(tmp_path, interrupted):
    out = tmp_path / "prior"
    tiny = [f"--set={name}={value}" for name, value in {**TINY, "iterations": 100_000}.items()]
    command = [
        sys.executable,
        "-m",
        "kdistill",
        "prior",
        "train",
        "digits",
        "--out",
        str(out),
        "--threads",
        "1",
        *tiny,
    ]
    status, said = interrupted(command, out / "metrics.jsonl")
    assert status == 130
    assert "continue with --resume" in said
    done = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["iteration"]
    shown = CliRunner().invoke(app, [*command[3:], "--set", f"iterations={done + 20}", "--resume"])
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
            match="expected a folder in which nothing else works, got one that another run is using",
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
    with pytest.raises(DataError, match="checkpoint of a generator's training, got another"):
        kdistill.train_prior(digits, out=out, options=TINY, resume=True)


def test_a_training_that_blows_up_keeps_the_last_good_state(digits, tmp_path):
    with pytest.raises(
        NonFiniteError,
        match=r"prior train: expected at iteration \d+ a finite .*lower lr .*last good one",
    ):
        kdistill.train_prior(digits, out=tmp_path / "prior", options={**TINY, "lr": 1e30})
    assert (tmp_path / "prior" / CHECKPOINT).exists()


def test_what_is_not_finite_is_named(digits, tmp_path, monkeypatch):
    training = tiny_training(digits)
    train_generator = type(training)._train_generator

    def broken(self, state, iteration, *rest):
        state, losses = train_generator(self, state, iteration, *rest)
        factor = float("nan") if iteration == 4 else 1.0
        return state, losses | {"loss_generator": factor * losses["loss_generator"]}

    monkeypatch.setattr(type(training), "_train_generator", broken)
    with pytest.raises(
        NonFiniteError,
        match=r"at iteration 5 a finite generator loss, got nan; .* after iteration 4, the last",
    ):
        fit(training, tmp_path, identity={})


def test_groups_of_a_batch_are_of_one_class_and_classes_come_as_often_as_they_are(colours):
    few = colours.train.take(torch.cat([torch.arange(30), torch.arange(90, 96)]))
    training = new_gan_training(
        PriorSpec(**{**TINY, "batch_size": 8}), replace(colours, train=few), "none"
    )
    rows = torch.stack([training._rows(iteration) for iteration in range(400)])
    labels = training.labels[rows].view(400, 4, 2)  # images 2 and more apart are a group of four
    assert (labels == labels[:, :1]).all()
    share = len(few.labels[few.labels == 1]) / len(few)
    assert abs(float((labels == 1).double().mean()) - share) < 0.05
    assert set(rows.flatten().tolist()) == set(range(len(few)))


def test_the_spread_is_that_of_a_group():
    x = torch.randn(8, 3, 4, 4, generator=keyed(0))
    wanted = torch.stack(
        [x[group::2].std(0, correction=0).mean() for group in (0, 1)]
    )  # images 2 apart are a group of four
    torch.testing.assert_close(_spread(x), wanted)
    assert float(_spread(x[:1].expand(8, -1, -1, -1)).max()) < 1e-3
    assert [group_size(count) for count in (2, 3, 8, 10)] == [2, 1, 4, 2]


def test_grey_images_keep_their_brightness(digits, colours):
    assert _strategy(PriorSpec(), digits) == "crop_cutout_scale_rotate"
    assert _strategy(PriorSpec(), colours) == "color_crop_cutout_flip_scale_rotate"
    assert _strategy(PriorSpec(augment="color"), digits) == "color"
