"""diffusion_gen: images in rounds, a choice among them, labels of a teacher."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

import kdistill
from kdistill import methods
from kdistill.api.plan import plan
from kdistill.api.run import resolve
from kdistill.cli import app
from kdistill.errors import ConfigError
from kdistill.keys import make_key
from kdistill.methods.generator.diffusion_gen import Generation
from kdistill.priors.image_generators import load_image_generator
from kdistill.priors.network_files import save_generator
from kdistill.priors.stylegan import new_stylegan2
from kdistill.selection import select
from tests.priors.original_files import rng
from tests.priors.tiny_diffusion import tiny_diffusion

SMALL = {"width": 4, "teacher_epochs": 1, "steps": 2}


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A folder with an untrained diffusion model of 8x8 grey images of ten classes."""
    return str(save_generator(tiny_diffusion(classes=10), tmp_path_factory.mktemp("prior")))


def run(digits, folder, given=None, ipc=2, **options):
    return kdistill.distill(
        digits,
        method="diffusion_gen",
        ipc=ipc,
        options={**SMALL, "prior": folder, **options},
        quiet=True,
        **(given or {}),
    )


def test_images_are_the_generator_s(digits, prior, tmp_path):
    small = run(digits, prior, given={"out": tmp_path})
    model = load_image_generator(prior).sampling(steps=2)
    drawn = model.sample(torch.arange(10).repeat(2), make_key(0, "generated", 0))
    expected = drawn.view(2, 10, 1, 8, 8).transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(small.images, expected, rtol=0, atol=1e-6)
    assert torch.equal(small.labels, torch.arange(10).repeat_interleave(2))
    assert small.config["prior"]["kind"] == "DiffusionModel"
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["metrics"]["images_per_second"] > 0.0
    card = (tmp_path / "README.md").read_text()
    assert "drawn from a generator" in card and "optimised" not in card


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(digits, prior, tmp_path):
    options = {"ipc": 105}  # eleven rounds and the choice
    whole = run(digits, prior, **options)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(digits, prior, given={"out": tmp_path, "callbacks": [stop]}, **options)
    resumed = run(digits, prior, given={"out": tmp_path, "resume": True}, **options)
    assert torch.equal(whole.images, resumed.images)
    assert bool((whole.images.flatten(1).std(1) > 0).all())


def generation(digits, prior, **options):
    config = resolve("diffusion_gen", "fast", {**SMALL, "prior": prior, **options})
    generator = config.sampling(load_image_generator(prior))
    job = Generation(config, digits, 2, config.pool(2), generator, 0)
    state = job.start()
    for iteration in range(job.iterations):
        state = {**state, **job.objective(iteration, state["images"], state).updates}
    return job, state


@pytest.mark.parametrize("selection", ["herding", "k_means", "k_center"])
def test_a_coreset_is_that_of_a_direct_selection(digits, prior, selection):
    _, state = generation(digits, prior, selection=selection)
    pool = state["candidates"].transpose(0, 1).flatten(0, 1)
    labels = torch.arange(10).repeat_interleave(8)
    pixels = digits.transform.invert(pool).flatten(1)
    rows = select(selection, pixels, labels, 2, make_key(0, "selection"))
    assert torch.equal(state["images"], pool[rows])


def test_the_confident_ones_are_right_first(digits, prior):
    job, state = generation(digits, prior, selection="confident", candidates=5)
    student, theta = job._teacher
    for label in range(10):
        candidates = state["candidates"][:, label]
        probabilities = student.infer(theta, candidates).softmax(1)
        scores = [
            (int(p.argmax()) == label, float(p[label])) for p in probabilities
        ]  # fmt: skip
        best = sorted(range(5), key=lambda i: scores[i], reverse=True)[:2]
        assert torch.equal(state["images"][2 * label : 2 * label + 2], candidates[best])


def test_the_labels_of_a_teacher_are_its_logits(digits, prior):
    job, state = generation(digits, prior, labels="teacher", temperature=2.0)
    student, theta = job._teacher
    expected = student.infer(theta, state["images"]) / 2.0
    torch.testing.assert_close(state["label_logits"], expected)
    small = run(digits, prior, {"validation": 0.0}, labels="teacher", temperature=2.0)
    torch.testing.assert_close(small.label_logits, expected, rtol=1e-5, atol=1e-5)


def test_no_candidate_is_begun_when_the_time_is_up(digits, prior):
    job, state = generation(digits, prior, selection="herding", candidates=40, minutes=1e-9)
    assert int(state["drawn"]) == job.per_round == 10
    _, state = generation(digits, prior, selection="herding", candidates=40, minutes=60.0)
    assert int(state["drawn"]) == 40


def test_a_stylegan_is_a_baseline(digits, tmp_path):
    stylegan = new_stylegan2(
        size=8, channels=1, classes=10, generator=rng(), z_dim=8, w_dim=8, channel_max=8
    )
    folder = str(save_generator(stylegan, tmp_path))
    assert run(digits, folder, steps=None).images.shape == (20, 1, 8, 8)
    with pytest.raises(ConfigError, match="steps: expected a diffusion model, got a generator"):
        run(digits, folder)


def test_a_model_of_other_classes_is_mapped(digits, tmp_path):
    folder = str(save_generator(tiny_diffusion(), tmp_path))
    with pytest.raises(ConfigError, match="the data's 10 classes, got one of 3"):
        run(digits, folder)
    classes = tuple(k % 3 for k in range(10))
    small = run(digits, folder, ipc=1, classes=classes)
    model = load_image_generator(folder).sampling(steps=2)
    drawn = model.sample(torch.tensor(classes), make_key(0, "generated", 0))
    torch.testing.assert_close(small.images, drawn, rtol=0, atol=1e-6)


def test_a_run_is_planned(digits, prior):
    options = {**SMALL, "prior": prior}
    assert plan(digits, method="diffusion_gen", ipc=1, options=options).seconds > 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": ""}, "kdistill prior train DATA --kind diffusion"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"candidates": 1}, "candidates: expected at least the 2 images per class"),
        ({"candidates": 9}, "candidates: expected 2 without a selection, got 9"),
        ({"selection": "herdin"}, "did you mean 'herding'"),
        ({"labels": "soft"}, "labels: expected one of"),
        ({"minutes": 0.0}, "minutes: expected a number above 0"),
        ({"temperature": -1.0}, "temperature: expected a number above 0"),
    ],
)
def test_bad_options_are_refused(digits, prior, options, message):
    with pytest.raises(ConfigError, match=message):
        run(digits, prior, **options)


def test_the_command_shows_images_per_second(prior, tmp_path):
    arguments = ["distill", "digits", "--method", "diffusion_gen", "--ipc", "1"]
    arguments += ["--set", f"prior={prior}", "--set", "steps=2", "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert re.search(r"[\d.]+ images/s", shown.output), shown.output
    assert "reconstruction from the abstract" in methods.get("diffusion_gen").title
