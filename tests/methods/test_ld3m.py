"""ld3m from a folder to an artefact, under several objectives."""

import pytest
import torch

import kdistill
from kdistill import methods
from kdistill.api.run import resolve
from kdistill.errors import ConfigError, DataError, NonFiniteError
from kdistill.methods.latent.ld3m import Ld3mConfig, first_state
from kdistill.priors.network_files import save_generator
from kdistill.priors.stylegan import new_stylegan2
from tests.priors.original_files import rng
from tests.priors.tiny_diffusion import tiny_diffusion

SMALL = {"iterations": 3, "width": 4, "steps": 2, "init": "real", "settings": {"batch_real": 8}}
OBJECTIVES = {
    "dm": {},
    "dsa": {"settings": {"batch_real": 8, "outer_steps": 2, "inner_epochs": 1}},
    "mtt": {
        "settings": {
            "syn_steps": 2,
            "expert_epochs": 1,
            "max_start_epoch": 1,
            "num_experts": 1,
            "batch_syn": None,
        }
    },
}


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A folder with an untrained diffusion model of 8x8 grey images of ten classes."""
    return str(save_generator(tiny_diffusion(classes=10), tmp_path_factory.mktemp("prior")))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "ld3m-cache"))


def run(digits, folder, given=None, **options):
    return kdistill.distill(
        digits,
        method="ld3m",
        ipc=1,
        options={**SMALL, "prior": folder, **options},
        quiet=True,
        **(given or {}),
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_latents_and_conditioning_are_learned_under_any_objective(digits, prior, objective):
    options = {**SMALL, "prior": prior, "objective": objective, **OBJECTIVES[objective]}
    config = resolve("ld3m", "fast", options)
    problem = methods.calibrate(methods.get("ld3m").build(config, digits, 1, 0, None))
    first = problem.state
    last = methods.optimize(problem).last.state
    for name in ("z", "c"):
        assert not torch.equal(first[name], last[name]), name
    small = run(digits, prior, objective=objective, **OBJECTIVES[objective])
    assert small.images.shape == (10, 1, 8, 8)
    assert small.config["prior"]["kind"] == "diffusion"
    assert ("lr" in last) == (small.learned_lr is not None) == (objective == "mtt")


@pytest.mark.parametrize(
    ("learn", "moves"),
    [("both", {"z", "c"}), ("latents", {"z"}), ("conditioning", {"c"})],
)
def test_what_is_learned_is_an_option(digits, prior, learn, moves):
    config = resolve("ld3m", "fast", {**SMALL, "prior": prior, "learn": learn})
    problem = methods.calibrate(methods.get("ld3m").build(config, digits, 1, 0, None))
    last = methods.optimize(problem).last.state
    assert {
        name for name in ("z", "c") if not torch.equal(problem.state[name], last[name])
    } == moves


def test_first_latents_are_encoded_real_images_of_the_class(digits, prior):
    config = Ld3mConfig(prior=prior)
    model = config.model(digits, None)
    state = first_state(config, model, digits, 2, 0)
    images = 0.5 * (state["z"] + 1.0)
    labels = torch.arange(10).repeat_interleave(2)
    for image, label in zip(images, labels, strict=True):
        same = digits.train.images[digits.train.labels == label]
        assert float((same - image).abs().amax((1, 2, 3)).min()) < 1e-6
    assert torch.equal(state["c"], model.denoiser.condition(labels))
    drawn = first_state(Ld3mConfig(prior=prior, begin="normal"), model, digits, 2, 0)["z"]
    assert abs(float(drawn.std()) - 1.0) < 0.1


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(digits, prior, tmp_path):
    whole = run(digits, prior, {"out": tmp_path / "whole"}, iterations=12)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(digits, prior, {"out": tmp_path / "run", "callbacks": [stop]}, iterations=12)
    resumed = run(digits, prior, {"out": tmp_path / "run", "resume": True}, iterations=12)
    assert torch.equal(whole.images, resumed.images)


def test_a_model_of_other_images_is_mapped(digits, tmp_path):
    folder = str(save_generator(tiny_diffusion(channels=3, size=4), tmp_path))
    with pytest.raises(ConfigError, match="the data's 10 classes, got one of 3"):
        run(digits, folder)
    mapping = {"classes": tuple(k % 3 for k in range(10))}
    with pytest.raises(ConfigError, match="set channels='convert'"):
        run(digits, folder, **mapping)
    mapping |= {"channels": "convert", "resize": True}
    assert run(digits, folder, **mapping).images.shape == (10, 1, 8, 8)


def test_latents_that_are_not_finite_are_named(digits, prior, tmp_path):
    with pytest.raises(NonFiniteError, match=r"a finite (z|c|loss|gradient).*lower lr.*is saved"):
        run(digits, prior, {"out": tmp_path / "run"}, iterations=20, lr=1e30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": ""}, "kdistill prior train DATA --kind diffusion"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"steps": 2000}, "steps: expected 1 to 1000 steps of the sampler, got 2000"),
        ({"guidance": -1.0}, "guidance: expected a number of 0 or more"),
        ({"objective": "ld3m"}, "expected a method on pixels"),
        ({"objective": "dim"}, "expected a method on pixels"),
        ({"init": "noise"}, "set begin=normal"),
        ({"residual_schedule": "no"}, "did you mean 'none'"),
        ({"classes": (1, 2)}, "expected 10 numbers from 0 to 9"),
    ],
)
def test_bad_options_are_refused(digits, prior, options, message):
    with pytest.raises(ConfigError, match=message):
        run(digits, prior, **options)


def test_folders_without_a_diffusion_model_are_refused(digits, prior, tmp_path):
    with pytest.raises(DataError, match=r"expected a diffusion model in .*, got none"):
        run(digits, str(tmp_path))
    stylegan = new_stylegan2(
        size=8, channels=1, classes=10, generator=rng(), z_dim=8, w_dim=8, channel_max=8
    )
    folder = str(save_generator(stylegan, tmp_path / "stylegan"))
    with pytest.raises(DataError, match=r"got a StyleGAN in .* use it with --method glad or hglad"):
        run(digits, folder)
    with pytest.raises(DataError, match=r"got a diffusion model in .* use it with --method ld3m"):
        kdistill.distill(digits, method="glad", ipc=1, options={"prior": prior}, quiet=True)


@pytest.mark.parametrize("preset", ["paper", "paper_dc", "paper_mtt", "paper_equation_7"])
def test_published_presets_resolve(preset):
    config = resolve("ld3m", preset, {"prior": "x"})
    method, options = config.pixel_method()
    assert (config.iterations, config.steps, config.guidance, config.momentum) == (
        10_000,
        10,
        3,
        0.5,
    )
    if preset == "paper_mtt":
        assert (method.name, config.lr, options.syn_steps) == ("mtt", 500.0, 10)
