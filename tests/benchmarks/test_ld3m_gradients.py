"""Gradient norms of LD3M: what is measured, the file, the table and the picture."""

from dataclasses import replace

import pytest
import torch

import kdistill
from benchmarks import ld3m_gradients
from benchmarks.ld3m_gradients import RESIDUALS, Gradient
from kdistill import methods
from kdistill.api.run import resolve
from kdistill.priors.diffusion import denoise
from kdistill.priors.network_files import save_generator
from tests.priors.tiny_diffusion import tiny_diffusion

OPTIONS = {"width": 4, "init": "real", "settings": {"batch_real": 8}}


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = save_generator(tiny_diffusion(classes=10), tmp_path_factory.mktemp("prior"))
    return ld3m_gradients.Plan(prior=folder, steps=(2, 4), iterations=2, options=OPTIONS)


@pytest.fixture(scope="module")
def gradients(digits, plan):
    problem = ld3m_gradients.problem_of(digits, plan)
    return list(ld3m_gradients.measured(problem, "digits", plan))


def test_every_residual_and_number_of_steps_is_measured(gradients):
    measured = [(one.residual, one.steps, one.iteration) for one in gradients]
    assert measured == [(name, k, i) for name in RESIDUALS for k in (2, 4) for i in (0, 1)]
    assert all(one.norm > 0.0 and one.gain > 0.0 for one in gradients)


def test_the_norm_is_that_of_a_run_with_these_options(digits, plan, gradients):
    options = {**OPTIONS, "prior": str(plan.prior), "steps": 4, "residual_schedule": "none"}
    config = resolve("ld3m", "fast", options)
    problem = methods.get("ld3m").build(config, digits, 1, 0, None)
    images = problem.prior.render(problem.state, 1)
    grad = problem.objective(1, images, problem.state).grad_images
    norm = float(problem.prior.vjp(problem.state, grad, 1)["z"].norm())
    expected = next(x for x in gradients if (x.residual, x.steps, x.iteration) == ("none", 4, 1))
    assert (expected.norm, expected.gain) == pytest.approx((norm, norm / float(grad.norm())))


def test_the_norm_at_the_start_is_that_of_its_gradient(digits, plan, gradients):
    problem = ld3m_gradients.problem_of(digits, plan)
    prior = ld3m_gradients.sampling_prior(problem, RESIDUALS["none"], 2)
    grad = problem.objective(0, prior.render(problem.state, 0), problem.state).grad_images
    (part, noise), model = next(prior.parts(problem.state, 0)), prior.model
    a = model.schedule.alphas_cumprod[model.schedule.grid(2)[-1]].float()
    eps = noise.normal("x_T", model.latent_shape, part["z"])
    x = (a.sqrt() * part["z"] + (1 - a).sqrt() * eps).requires_grad_()
    latents = denoise(model.denoiser, model.schedule, x, part["c"], prior.sampler)
    images = prior.adapter(model.autoencoder.decode(latents))
    norm = float(torch.autograd.grad(images, x, grad)[0].norm())
    expected = next(one for one in gradients if (one.residual, one.steps) == ("none", 2))
    assert expected.norm_at_start == pytest.approx(norm, rel=1e-4)


def test_file_table_and_picture(gradients, tmp_path, capsys):
    other = [replace(one, data="other", norm=2 * one.norm) for one in gradients]
    path = tmp_path / "a" / "b.csv"
    ld3m_gradients.write(path, [*gradients, *other])
    again = ld3m_gradients.read(path)
    expected = [one.norm for one in [*gradients, *other]]
    assert [one.norm for one in again] == pytest.approx(expected, rel=1e-5)
    picture = tmp_path / "a.svg"
    ld3m_gradients.main(["--table", str(path), "--picture", str(picture)])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split(" | ")[3:] == ["2 steps", "4 steps |"]
    assert len([line for line in shown if line.startswith("| ")]) == 2 + 2 * (2 + 3 + 3)
    drawn = picture.read_text()
    assert drawn.count("norm of dL/dz over") == 2 and drawn.endswith("</svg>\n")
    ld3m_gradients.write_picture(again, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_means_and_deviations_are_over_the_iterations():
    one = Gradient(data="d", residual="none", steps=5, iteration=0, norm=1.0, gain=2.0, signal=0.5)
    lines = ld3m_gradients.table([one, replace(one, iteration=1, norm=3.0)]).splitlines()
    assert lines[2] == "| d | none | norm of dL/dz | 2 ± 1.4 |"
    assert lines[4] == "| d | none | norm of dL/dx_T | 4 ± 2.8 |"


def test_the_command_line_measures_and_writes(digits, plan, tmp_path, capsys, monkeypatch):
    small = (torch.cat([digits.train.images[digits.train.labels == k][:12] for k in range(10)]),)
    small += (torch.arange(10).repeat_interleave(12),)
    data = kdistill.load_data(small, quiet=True, name="few")
    monkeypatch.setattr(kdistill, "load_data", lambda *_, **__: data)
    options = f"--steps 2 --iterations 1 --width 4 --out {tmp_path}"
    ld3m_gradients.main([str(plan.prior), *options.split()])
    shown = capsys.readouterr().out
    assert "norm of dL/dz" in shown and "memory of a gradient: 2 steps" in shown
    assert len(ld3m_gradients.read(tmp_path / "few.csv")) == 3
    with pytest.raises(SystemExit):
        ld3m_gradients.main([])
