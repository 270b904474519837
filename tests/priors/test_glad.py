"""glad from a network file to an artefact, under several objectives."""

import json

import pytest
import torch

import kdistill
from kdistill import methods
from kdistill.api.plan import plan
from kdistill.api.run import resolve
from kdistill.cli import app
from kdistill.errors import ConfigError, NonFiniteError
from kdistill.methods.latent.glad import GladConfig, prior_for
from kdistill.methods.matching import dm
from kdistill.priors.network_files import load_generator, save_generator
from kdistill.priors.stylegan import new_stylegan2
from kdistill.testing.peak_memory import peak_tensor_bytes
from tests.priors.original_files import rng, tiny_stylegan2, tiny_stylegan3, write

SMALL = {
    "iterations": 20,
    "width": 4,
    "chunk": 3,
    "layer": 1,
    "objective_preset": "fast",
    "n_avg": 20,
    "settings": {"batch_real": 16},
}
MTT = {
    "objective": "mtt",
    "settings": {
        "syn_steps": 2,
        "expert_epochs": 1,
        "max_start_epoch": 1,
        "num_experts": 1,
        "batch_syn": None,
    },
    "lr_f": 100.0,
    "lr_w": 1.0,
}
DC = {"objective": "dsa", "settings": {"batch_real": 8, "outer_steps": 2, "inner_epochs": 1}}


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A folder with an untrained generator of 8x8 grey images of ten classes."""
    generator = new_stylegan2(
        size=8, channels=1, classes=10, generator=rng(), z_dim=8, w_dim=8, channel_max=8
    )
    return str(save_generator(generator, tmp_path_factory.mktemp("prior")))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "glad-cache"))


def run(digits, folder, ipc=1, given=None, **options):
    return kdistill.distill(
        digits,
        method="glad",
        ipc=ipc,
        options={**SMALL, "prior": folder, **options},
        **(given or {}),
    )


def test_the_loss_of_dm_falls(digits, prior):
    losses = []
    settings = {"iterations": 40, "strategy": "none", "avg_w": True, "lr_f": 1.0, "chunk": 20}
    small = run(digits, prior, 2, {"callbacks": [lambda p: losses.append(p.loss)]}, **settings)
    assert losses[-1] < 0.7 * losses[0]
    assert small.images.shape == (20, 1, 8, 8)
    assert small.config["prior"]["layers"] == 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer": None},
        {"learn_g": True},
        {"rand_f": True},
        MTT,
        {**MTT, "objective": "ftd"},
        DC,
    ],
)
def test_every_form_runs_and_moves(digits, prior, options):
    before, after = (run(digits, prior, iterations=n, **options).images for n in (0, 3))
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    "options",
    [{"lr_f": None, "lr_w": 0.0}, {"lr_f": 0.0, "lr_w": None}, {"layer": None, "lr_w": None}],
)
@pytest.mark.parametrize("objective", [{}, {**DC, "strategy": "none"}], ids=["dm", "dsa"])
def test_the_first_step_moves_the_images_by_the_same_share(digits, prior, options, objective):
    given = {"strategy": "none", **objective, **options}
    before, after = (run(digits, prior, iterations=n, **given) for n in (0, 1))
    first, then = (small.transform.apply(small.images) for small in (before, after))
    share = 0.01 if objective else 0.03
    assert (
        0.4 * share < float((then - first).norm() / first.norm()) < 3.0 * share
    )  # the mean of three draws, here the first
    rates = after.metrics["distillation"]["learning_rates"]
    named = {"lr_w": rates["ws"], "lr_f": rates.get("f", 0.0)}
    assert torch.equal(
        run(digits, prior, iterations=3, **{**given, **named}).images,
        run(digits, prior, iterations=3, **given).images,
    )


@pytest.mark.parametrize(
    ("factor", "message"),
    [(0.0, "got zeros in 3"), (float("nan"), "expected finite gradients in ws")],
)
def test_without_gradients_a_learning_rate_has_to_be_named(
    digits, prior, monkeypatch, factor, message
):
    match = dm.distribution_match

    def scaled(*args, **kwargs):
        loss, grad = match(*args, **kwargs)
        return loss, torch.nan_to_num(grad * factor, nan=float("nan"))

    monkeypatch.setattr(dm, "distribution_match", scaled)
    with pytest.raises(ConfigError, match=message):
        run(digits, prior, lr_f=None, lr_w=None)


@pytest.mark.parametrize("name", ["glad", "hglad"])
def test_published_presets_hold_the_published_values_of_the_objectives(name):
    published = {
        preset: resolve(name, preset, {"prior": "x"})
        for preset in methods.get(name).presets
        if preset != "fast"
    }
    for config in published.values():
        _, base = config.pixel_method()
        if (
            config.objective == "dc"
        ):  # T_o = 1, not the ten steps of the pixel method at 10 per class
            assert base.loops(10) == (1, 1)
        if config.objective == "mtt":
            assert (
                base.lr_init,
                base.lr_lr,
                base.syn_steps,
                base.expert_epochs,
                base.grad_mode,
            ) == (0.01, 1e-6, 20, 3, "tesla")
    assert {"dm", "dc", "mtt"} == {config.objective for config in published.values()}


def test_latents_without_influence_stay(digits, prior):
    small = run(
        digits, prior, iterations=1, layer=3, lr_f=None, lr_w=None
    )  # the last layer is behind all of W+
    rates = small.metrics["distillation"]["learning_rates"]
    assert rates["ws"] == 0.0 < rates["f"]


def test_the_learning_rate_of_the_student_is_learned_too(digits, prior):
    small = run(digits, prior, iterations=3, **MTT)
    assert small.learned_lr not in (None, methods.get("mtt").presets["fast"]["lr_init"])


def test_chunks_do_not_change_the_images(digits, prior):
    one, all_at_once = (run(digits, prior, iterations=3, chunk=n).images for n in (1, 10))
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"learn_g": True, "noise": "random"}, MTT], ids=["dm", "mtt"])
def test_a_resumed_run_has_the_same_bits(digits, prior, tmp_path, options):
    def stop(progress):
        if progress.iteration == 10:
            raise KeyboardInterrupt

    whole = run(digits, prior, given={"out": tmp_path / "whole"}, **options)
    with pytest.raises(KeyboardInterrupt):
        run(digits, prior, given={"out": tmp_path / "parts", "callbacks": [stop]}, **options)
    parts = run(digits, prior, given={"out": tmp_path / "parts", "resume": True}, **options)
    assert torch.equal(whole.images, parts.images)


def test_a_run_cannot_be_resumed_with_another_generator(digits, prior, tmp_path):
    changed = load_generator(prior)
    changed = changed.with_tensors(
        {"synthesis.b4.const": changed.tensors["synthesis.b4.const"] + 1}
    )
    other = save_generator(load_generator(prior), tmp_path / "prior")

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(digits, str(other), given={"out": tmp_path / "run", "callbacks": [stop]})
    save_generator(changed, other)
    with pytest.raises(ConfigError, match=r"got another prior\.sha256"):
        run(digits, str(other), given={"out": tmp_path / "run", "resume": True})


def test_latents_that_blow_up_are_named_and_the_last_good_state_is_kept(digits, prior, tmp_path):
    with pytest.raises(
        NonFiniteError,
        match=r"lower lr_f or lr_w \(now ws 0.01, f 1e\+38\); iteration 0 is saved in",
    ):
        run(digits, prior, lr_f=1e38, lr_w=0.01, given={"out": tmp_path})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prior": ""},
            "expected the folder of a generator, got none; make one with kdistill prior train",
        ),
        (
            {"layer": 9},
            "expected 0 to 3, .* got 9; layers: 0 input, 1 b4.conv1, 2 b8.conv0, 3 b8.conv1",
        ),
        ({"objective": "glad"}, "expected a method on pixels"),
        ({"objective": "dmm"}, "did you mean 'dm'"),
        ({"objective_preset": "slow"}, "expected one of dm's, got 'slow'"),
        ({"settings": {"width": 8}}, "got 'width'; set it beside settings"),
        ({"settings": {"batch_reel": 8}}, "did you mean 'batch_real'"),
        ({"channels": "grey"}, "channels: expected one of 'same', 'convert', got 'grey'"),
        ({"noise": "constant"}, "noise: expected one of .*; did you mean 'const'"),
        ({"glad_norm": "repo"}, "expected colour images for 'repo', got 1 channel"),
        ({"classes": (1, 2)}, "expected 10 numbers from 0 to 9"),
        ({"chunk": 0}, "chunk: expected at least 1"),
        ({"lr_f": -1.0}, "lr_f: expected a number of 0 or more, got -1.0"),
    ],
)
def test_bad_options_are_refused(digits, prior, options, message):
    with pytest.raises(ConfigError, match=message):
        run(digits, prior, **options)


def test_images_to_begin_with_are_refused(digits, prior):
    first = run(digits, prior, iterations=0)
    with pytest.raises(ConfigError, match="latents begin from draws, leave init out"):
        run(digits, prior, given={"init": first})


def test_a_generator_of_other_images_is_mapped(digits, tmp_path):
    folder = str(save_generator(tiny_stylegan3(), tmp_path))
    with pytest.raises(ConfigError, match="the data's 10 classes, got one of 3"):
        run(digits, folder)
    mapping = {"classes": tuple(k % 3 for k in range(10)), "channels": "convert", "resize": True}
    assert run(digits, folder, iterations=1, **mapping).images.shape == (10, 1, 8, 8)


def test_the_peak_of_a_step_is_that_of_the_objective_or_of_one_chunk(tmp_path):
    data = kdistill.load_data(
        (torch.rand(60, 3, 16, 16, generator=rng()), torch.arange(60) % 3), quiet=True
    )
    folder = save_generator(tiny_stylegan2(channel_base=512, channel_max=32), tmp_path)
    options = {
        **SMALL,
        "layer": 1,
        "width": 16,
        "chunk": 6,
        "prior": str(folder),
        "settings": {"batch_real": 4},
    }
    config = resolve("glad", "fast", options)
    problem = methods.calibrate(methods.get("glad").build(config, data, 8, 0, None))
    opt_state = problem.optimizer.init(problem.state)
    chunk = {name: x[:6] for name, x in problem.state.items()}
    images = problem.prior.render(problem.state, 0)

    def step():
        images = problem.prior.render(problem.state, 0)
        found = problem.objective(0, images, problem.state)
        grads = problem.prior.vjp(problem.state, found.grad_images, 0)
        problem.optimizer.update(grads, opt_state, problem.state, 0)

    with torch.no_grad():
        objective = peak_tensor_bytes(lambda: problem.objective(0, images, problem.state))
        one_chunk = peak_tensor_bytes(lambda: problem.prior.vjp(chunk, images[:6], 0))
        assert peak_tensor_bytes(step) <= 1.15 * max(objective, one_chunk)


def test_published_normalisation_is_an_option():
    random = torch.rand(30, 3, 16, 16, generator=rng())
    data = kdistill.load_data((random, torch.arange(30) % 3), quiet=True)
    same, other = (
        prior_for(GladConfig(layer=1, glad_norm=norm), tiny_stylegan3(), data, 0)
        for norm in ("data", "repo")
    )
    state = same.init(torch.arange(3))
    pixels = data.transform.invert(same.render(state, 0))
    mean, std = torch.tensor([0.4377, 0.4438, 0.4728]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(
        other.render(state, 0),
        (pixels - mean[:, None, None]) / std[:, None, None],
        rtol=1e-4,
        atol=1e-4,
    )


def test_presets_resolve():
    for preset in methods.get("glad").presets:
        resolve("glad", preset, {})


def test_plan_and_experts_follow_the_objective(digits, prior):
    found = plan(
        digits,
        method="glad",
        options={**SMALL, "prior": prior, **MTT, "settings": {**MTT["settings"], "num_experts": 2}},
    )
    assert found.num_params > 0
    assert found.expert_seconds > 0
    with pytest.raises(ConfigError, match="such as mtt"):
        kdistill.train_experts(digits, method="glad", options={**SMALL, "prior": prior})


def test_convert_and_distill_from_the_command_line(tmp_path):
    from typer.testing import CliRunner

    file = write(
        tmp_path / "net.pkl",
        new_stylegan2(size=8, channels=1, classes=10, generator=rng(), z_dim=8, w_dim=8),
    )
    shown = CliRunner().invoke(app, ["prior", "convert", str(file), str(tmp_path / "prior")])
    assert shown.exit_code == 0
    assert "StyleGAN2, 8x8, 1 channel, 10 classes, 3 layers" in shown.output
    assert "1 b4.conv1" in shown.output
    given = {**SMALL, "iterations": 1, "prior": tmp_path / "prior", "settings.batch_real": 8}
    options = [f"--set={key}={value}" for key, value in given.items() if key != "settings"]
    command = [
        "distill",
        "digits",
        "--method",
        "glad",
        "--ipc",
        "1",
        "--out",
        str(tmp_path / "run"),
        *options,
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["run"]["options"]["layer"] == 1
    (tmp_path / "bad.pkl").write_bytes(b"no")
    shown = CliRunner().invoke(
        app, ["prior", "convert", str(tmp_path / "bad.pkl"), str(tmp_path / "prior2")]
    )
    assert shown.exit_code == 2
    assert "expected a network file" in shown.output
    assert "Examples" in CliRunner().invoke(app, ["prior", "convert", "--help"]).output
