"""Images that are the state themselves: any values, or those that pictures of 8 bits hold."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import kdistill
from kdistill.artifacts.export import eight_bit_note
from kdistill.cli import app
from kdistill.errors import ConfigError
from kdistill.priors import EightBitPrior, PixelPrior, eight_bits
from kdistill.transforms import fit

SHORT = {"iterations": 3, "width": 4, "lr_images": 30.0}
METHODS = {
    "dm": {**SHORT, "batch_real": 8},
    "dc": {**SHORT, "batch_real": 8, "outer_steps": 1, "inner_epochs": 1},
    "mtt": {
        **SHORT, "syn_steps": 2, "num_experts": 1, "max_start_epoch": 1, "expert_epochs": 1,
        "skip_move": None,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))


def levels(images):
    return 255.0 * images


@pytest.mark.parametrize("kind", ["standard", "zca", "none"])
def test_the_objective_sees_whole_levels_and_their_gradient_is_the_state_s(kind):
    torch.manual_seed(0)
    real = torch.rand(40, 1, 4, 4)
    transform = fit(kind, real)
    pixels = 1.4 * torch.rand(6, 1, 4, 4, dtype=torch.float64) - 0.2
    state = {"images": transform.apply(pixels)}
    prior = EightBitPrior(transform)
    seen = transform.invert(prior.render(state, 0))
    expected = torch.from_numpy(np.rint(pixels.clamp(0, 1).numpy() * 255) / 255)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)
    assert torch.equal(eight_bits(seen), eight_bits(expected))
    grad = torch.randn(6, 1, 4, 4)
    assert torch.equal(prior.vjp(state, grad, 0)["images"], grad)
    assert torch.equal(PixelPrior().render(state, 0), state["images"])


@pytest.mark.parametrize(
    ("method", "kind"),
    [("dm", "standard"), ("dm", "zca"), ("dc", "standard"), ("mtt", "zca")],
)
def test_a_set_of_eight_bits_loses_nothing_as_pictures(method, kind, tmp_path):
    data = kdistill.load_data("digits", normalisation=kind, quiet=True)
    options = {**METHODS[method], "eight_bit": True}
    small = kdistill.distill(data, method=method, ipc=1, options=options, quiet=True)
    assert (levels(small.images) - levels(small.images).round()).abs().max() < 0.01
    assert small.images.min() >= -1e-5 and small.images.max() <= 1 + 1e-5
    assert eight_bit_note(small) is None
    pictures = kdistill.load_data(small.to_imagefolder(tmp_path / "pictures"), quiet=True)
    torch.testing.assert_close(pictures.train.images, small.images, atol=1e-5, rtol=0)
    other = {**METHODS[method], "eight_bit": False}
    free = kdistill.distill(data, method=method, ipc=1, options=other, quiet=True)
    assert (levels(free.images) - levels(free.images).round()).abs().max() > 0.1
    assert "kdistill evaluate measures it" in eight_bit_note(free)


def test_a_run_of_eight_bits_resumes_with_the_same_bits(tmp_path):
    data = kdistill.load_data("digits", quiet=True)
    run = {"method": "dm", "ipc": 1, "quiet": True}
    options = {**METHODS["dm"], "eight_bit": True, "iterations": 6}
    whole = kdistill.distill(data, options=options, **run)
    kdistill.distill(data, options=options, out=tmp_path / "r", max_minutes=0.0, **run)
    again = kdistill.distill(data, options=options, out=tmp_path / "r", resume=True, **run)
    assert torch.equal(again.images, whole.images)


def test_the_images_of_a_generator_have_no_such_option(tmp_path):
    data = kdistill.load_data("digits", quiet=True)
    options = {"objective": "dm", "settings": {"eight_bit": True}}
    with pytest.raises(ConfigError, match=r"settings.eight_bit: expected false for images that"):
        kdistill.distill(data, method="dim", ipc=1, options=options, quiet=True)


def test_an_export_says_what_was_measured(tmp_path):
    images = 2.0 * torch.rand(4, 1, 8, 8)
    labels = torch.tensor([0, 0, 1, 1])
    scores = {"convnet": {"eight_bit_cost": 0.082}, "vit": {"eight_bit_cost": -0.01}}
    evaluation = {"scores": scores, "protocol": {"name": "bench"}}
    small = kdistill.DistilledDataset(
        images=images, labels=labels, metrics={"evaluation": evaluation}
    )
    said = eight_bit_note(small)
    assert said.startswith("8 bits cost this set 8.2 points of accuracy (evaluation by protocol be")
    helped = {**evaluation, "scores": {"convnet": {"eight_bit_cost": -0.02}}}
    said = eight_bit_note(small.with_metrics(evaluation=helped))
    assert said.startswith("8 bits cost this set no accuracy")
    small.save_pretrained(tmp_path / "set")
    export = ["export", str(tmp_path / "set"), str(tmp_path / "png")]
    said = CliRunner().invoke(app, export)
    assert said.exit_code == 0 and "8.2 points" in " ".join(said.output.split())
    exact = CliRunner().invoke(app, ["export", str(tmp_path / "set"), "x.npz", "--to", "nowhere"])
    assert exact.exit_code != 0
    quiet = CliRunner().invoke(app, [*export[:2], str(tmp_path / "x.npz"), "--to", "npz"])
    assert quiet.exit_code == 0 and "points" not in quiet.output
