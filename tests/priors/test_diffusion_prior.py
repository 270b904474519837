"""Latents of a diffusion model as a prior: the residual, the gradient, its memory."""

import math
from dataclasses import replace

import pytest
import torch

from kdistill.errors import ConfigError
from kdistill.priors import GeneratorAdapter
from kdistill.priors.diffusion import SamplerOptions, denoise
from kdistill.priors.diffusion.diffusion_prior import DiffusionPrior, Residual
from kdistill.testing.peak_memory import peak_tensor_bytes
from tests.priors.tiny_diffusion import Codebook, tiny_diffusion

NONE = Residual(schedule="none")
EQUATION_7 = Residual("noisy", "mean", "linear_from_one")


class WideDenoiser(torch.nn.Module):
    """A denoiser in few operations, whose graph is far larger than a latent."""

    prediction = "v"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.widen, self.narrow = torch.nn.Conv2d(1, 24, 3, padding=1), torch.nn.Conv2d(24, 1, 1)
        self.requires_grad_(False)

    def condition(self, classes):
        return classes[:, None, None, None].to(self.narrow.weight)

    def null_condition(self):
        return None

    def predict(self, x, timesteps, condition):
        return self.narrow((self.widen(x) + condition).tanh())


def new_prior(model=None, *, steps=4, guidance=1.0, residual=None, chunk=2, **changes):
    return DiffusionPrior(
        model=model or tiny_diffusion(dtype=torch.float64),
        adapter=GeneratorAdapter(),
        sampler=SamplerOptions(steps, guidance),
        residual=residual or Residual(),
        chunk=chunk,
        key=5,
        **changes,
    )


def new_state(prior, count=5):
    random = torch.Generator().manual_seed(1)
    z = 0.5 * torch.randn(count, *prior.model.latent_shape, generator=random).double()
    classes = torch.arange(count) % prior.model.classes
    return {"z": z, "c": prior.model.denoiser.condition(classes).clone()}


def gradient(prior, state, iteration=3, seed=2):
    images = prior.render(state, iteration)
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    return prior.vjp(state, weights, iteration), weights


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [
        ("linear", [0.0, 1 / 3, 2 / 3, 1.0]),
        ("linear_from_one", [0.25, 0.5, 0.75, 1.0]),
        ("none", [0.0] * 4),
    ],
)
def test_weights_of_the_residual(schedule, weights):
    assert [Residual(schedule=schedule).weight(i, 4) for i in range(4)] == pytest.approx(weights)


def test_one_step_is_the_residual_alone():
    prior = new_prior(steps=1)
    state = new_state(prior)
    torch.testing.assert_close(prior.render(state, 0), 0.5 * (state["z"] + 1.0))
    grads, weights = gradient(prior, state)
    torch.testing.assert_close(grads["z"], 0.5 * weights)  # the identity, by the first step
    assert not grads["c"].any()


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_without_a_residual_it_is_plain_ddim(guidance):
    prior = new_prior(residual=NONE, guidance=guidance, chunk=5)
    state = new_state(prior)
    model = prior.model
    noise = next(prior.parts(state, 3))[1].normal("x_T", (1, 8, 8), state["z"])
    a = float(model.schedule.alphas_cumprod[model.schedule.grid(4)[-1]])
    x = math.sqrt(a) * state["z"] + math.sqrt(1 - a) * noise
    latents = denoise(model.denoiser, model.schedule, x, state["c"], SamplerOptions(4, guidance))
    torch.testing.assert_close(prior.render(state, 3), 0.5 * (latents + 1.0), rtol=0, atol=1e-12)


def test_equation_7_mixes_the_noisy_latent_into_the_mean():
    prior = new_prior(residual=EQUATION_7, steps=3, chunk=5)
    state, model = new_state(prior), prior.model
    noise = next(prior.parts(state, 3))[1].normal("x_T", (1, 8, 8), state["z"])
    grid = model.schedule.grid(3)
    a = [float(model.schedule.alphas_cumprod[t]) for t in grid]
    begin = math.sqrt(a[2]) * state["z"] + math.sqrt(1 - a[2]) * noise
    x = begin
    for i in (2, 1, 0):
        v = model.denoiser.predict(x, torch.full((5,), grid[i]), state["c"])
        x0, eps = a[i] ** 0.5 * x - (1 - a[i]) ** 0.5 * v, (1 - a[i]) ** 0.5 * x + a[i] ** 0.5 * v
        following = a[i - 1] if i else 1.0
        mean = following**0.5 * x0 + (1 - following) ** 0.5 * eps
        weight = (i + 1) / 3
        x = (1 - weight) * mean + weight * begin
    torch.testing.assert_close(prior.render(state, 3), 0.5 * (x + 1.0), rtol=0, atol=1e-10)


def test_the_code_s_form_mixes_the_nearest_codes_into_the_clean_latent():
    model = replace(tiny_diffusion(dtype=torch.float64), autoencoder=Codebook())
    prior = new_prior(model, steps=3, chunk=5)
    state, levels = new_state(prior), model.schedule
    codes = (4 * state["z"]).round() / 4
    noise = next(prior.parts(state, 0))[1].normal("x_T", (1, 8, 8), state["z"])
    grid = levels.grid(3)
    a = [float(levels.alphas_cumprod[t]) for t in grid]
    x = math.sqrt(a[2]) * state["z"] + math.sqrt(1 - a[2]) * noise
    for i in (2, 1, 0):
        v = model.denoiser.predict(x, torch.full((5,), grid[i]), state["c"])
        x0, eps = a[i] ** 0.5 * x - (1 - a[i]) ** 0.5 * v, (1 - a[i]) ** 0.5 * x + a[i] ** 0.5 * v
        x0 = (1 - i / 2) * x0 + i / 2 * codes
        following = a[i - 1] if i else 1.0
        x = following**0.5 * x0 + (1 - following) ** 0.5 * eps
    decoded = 2.0 * ((4 * x).round() / 4)
    torch.testing.assert_close(prior.render(state, 0), 0.5 * (decoded + 1.0), rtol=0, atol=1e-10)
    grads, _ = gradient(prior, state)
    assert float(grads["z"].abs().max()) > 0.0  # straight through both quantisations


@pytest.mark.parametrize("residual", [Residual(), NONE, EQUATION_7])
def test_the_gradient_is_that_of_the_images_in_one_pass(residual):
    prior = new_prior(residual=residual, guidance=1.5)
    state = new_state(prior)
    grads, weights = gradient(prior, state)
    leaves = {name: x.clone().requires_grad_() for name, x in state.items()}
    whole = replace(prior, chunk=5)
    part, noise = next(whole.parts(leaves, 3))
    images = whole.draw(part, noise)
    expected = torch.autograd.grad((images * weights).sum(), list(leaves.values()))
    for name, grad in zip(leaves, expected, strict=True):
        torch.testing.assert_close(grads[name], grad, rtol=1e-10, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences():
    prior = new_prior(guidance=1.5)
    state = new_state(prior)
    grads, weights = gradient(prior, state)
    random = torch.Generator().manual_seed(9)
    for name, x in state.items():
        step = 1e-6 * torch.randn(x.shape, generator=random).double()
        ends = [
            (prior.render({**state, name: x + sign * step}, 3) * weights).sum() for sign in (1, -1)
        ]
        expected = 0.5 * (ends[0] - ends[1])
        torch.testing.assert_close((grads[name] * step).sum(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_change_no_image_and_no_gradient(dtype):
    model = tiny_diffusion(dtype=dtype)
    results, within = [], {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for chunk in (1, 2, 5):
        prior = new_prior(model, steps=3, chunk=chunk)
        state = {name: x.to(dtype) for name, x in new_state(prior).items()}
        results.append({"images": prior.render(state, 3), **gradient(prior, state)[0]})
    for name, whole in results[-1].items():
        bound = within * float(whole.abs().max())
        for in_chunks in results[:-1]:
            torch.testing.assert_close(in_chunks[name], whole, rtol=0, atol=bound)


def test_noise_is_new_in_every_iteration_and_shared_by_both_passes():
    prior = new_prior(residual=NONE)
    state = new_state(prior)
    assert not torch.equal(prior.render(state, 0), prior.render(state, 1))
    shared, weights = gradient(prior, state)
    published = replace(prior, shares_noise=False).vjp(state, weights, 3)
    assert not torch.allclose(shared["z"], published["z"])


def test_the_residual_keeps_the_gradient_of_a_long_sampler_alive():
    model = replace(tiny_diffusion(), denoiser=WideDenoiser().double())
    state, norms = None, {}
    for name, residual in (("residual", Residual()), ("none", NONE)):
        prior = new_prior(model, steps=50, residual=residual)
        state = state or new_state(prior, 2)
        norms[name] = float(gradient(prior, state)[0]["z"].norm())
    assert norms["residual"] >= norms["none"] > 0.0


def test_memory_grows_with_the_steps_by_their_latents_alone():
    model = replace(tiny_diffusion(), denoiser=WideDenoiser())
    chunk, peaks = 4, {}
    for steps in (10, 50):
        prior = new_prior(model, steps=steps, chunk=chunk)
        state = {name: x.float() for name, x in new_state(prior, 8).items()}
        grad = torch.randn(8, 1, 8, 8)
        peaks[steps] = peak_tensor_bytes(
            lambda prior=prior, state=state, grad=grad: prior.vjp(state, grad, 0)
        )
    latents = 4 * chunk * 64
    assert peaks[10] > 24 * latents  # the graph of one pass
    assert peaks[50] <= 1.1 * peaks[10] + 40 * latents


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SamplerOptions(0), "steps: expected 1 to 1000 steps"),
        (SamplerOptions(5, solver="dpm++"), "solver: expected ddim for learned latents"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        replace(new_prior(), sampler=options)


def test_guidance_without_a_null_class_is_refused():
    model = tiny_diffusion()
    model.denoiser.null_condition = lambda: None
    with pytest.raises(ConfigError, match="guidance: expected 1 for a model without a null class"):
        new_prior(model, guidance=2.0)
