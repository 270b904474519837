"""The sampler against diffusers' schedulers and against data whose denoiser is known exactly."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from kdistill.errors import ConfigError
from kdistill.priors.diffusion import (
    DiffusionModel,
    NoiseSchedule,
    PixelAutoencoder,
    SamplerOptions,
    denoise,
)


class GaussianDenoiser:
    """The exact denoiser of normal data with a mean per class and one deviation."""

    def __init__(self, schedule, means, std, prediction="epsilon", has_null=True):
        self.schedule, self.means, self.std = schedule, means, std
        self.prediction, self.has_null = prediction, has_null

    def condition(self, classes):
        return self.means[classes]

    def null_condition(self):
        return self.means.mean(0, keepdim=True) if self.has_null else None

    def predict(self, x, timesteps, condition):
        signal, sigma = self.schedule.scales(timesteps, x)
        mean = condition.view(-1, 1, 1, 1)
        x0 = mean + signal * self.std**2 / (signal**2 * self.std**2 + sigma**2) * (
            x - signal * mean
        )
        eps = (x - signal * x0) / sigma
        return {"epsilon": eps, "x0": x0, "v": signal * eps - sigma * x0}[self.prediction]


MEANS = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)


def noise(rows=6):
    random = torch.Generator().manual_seed(0)
    return torch.randn(rows, 1, 4, 4, dtype=torch.float64, generator=random)


def with_scheduler(scheduler, denoiser, x, condition, steps):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        timesteps = torch.full((len(x),), int(t))
        x = scheduler.step(denoiser.predict(x, timesteps, condition), t, x).prev_sample
    return x, [int(t) for t in scheduler.timesteps]


@pytest.mark.parametrize(
    ("prediction", "name"), [("epsilon", "epsilon"), ("v", "v_prediction"), ("x0", "sample")]
)
@pytest.mark.parametrize("steps", [1, 7, 10])
def test_ddim_equals_diffusers(prediction, name, steps):
    schedule = NoiseSchedule.scaled_linear(offset=1, final=None)
    denoiser = GaussianDenoiser(schedule, MEANS, 0.3, prediction)
    condition = denoiser.condition(torch.tensor([0, 1, 2, 0, 1, 2]))
    scheduler = DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=name,
    )
    theirs, timesteps = with_scheduler(scheduler, denoiser, noise(), condition, steps)
    assert schedule.grid(steps) == timesteps[::-1]
    ours = denoise(denoiser, schedule, noise(), condition, SamplerOptions(steps))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)  # their table is float32


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
def test_dpm_solver_equals_diffusers():
    schedule = NoiseSchedule.linear()
    denoiser = GaussianDenoiser(schedule, MEANS, 0.3)
    condition = denoiser.condition(torch.tensor([0, 1, 2, 0, 1, 2]))
    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, timestep_spacing="leading", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(10)
    # their leading grid divides by S + 1; ours takes the same timesteps by hand
    grid = [int(t) for t in scheduler.timesteps][::-1]

    class SameGrid(NoiseSchedule):
        def grid(self, steps):
            return grid

    theirs, _ = with_scheduler(scheduler, denoiser, noise(), condition, 10)
    ours = denoise(
        denoiser,
        SameGrid(schedule.alphas_cumprod),
        noise(),
        condition,
        SamplerOptions(10, solver="dpm++"),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_samples_have_the_distribution_of_the_data(prediction, solver):
    schedule = NoiseSchedule.cosine()
    denoiser = GaussianDenoiser(schedule, MEANS, 0.3, prediction)
    model = DiffusionModel(
        denoiser=denoiser,
        autoencoder=PixelAutoencoder(),
        schedule=schedule,
        latent_shape=(1, 8, 8),
        classes=3,
        channels=1,
        size=8,
        sampler=SamplerOptions(50, solver=solver),
        tensors={"means": MEANS},
        config={},
    )
    labels = torch.tensor([0, 1]).repeat(150)
    images = 2 * model.sample(labels, 7) - 1
    pixels = images[labels == 1]
    assert abs(float(pixels.mean()) - 0.5) < 0.02
    # class 0 has its mean at black, where pixels are clamped
    assert abs(float((images[labels == 0] > -1).double().mean()) - 0.5) < 0.02
    again = model.sample(labels[:120], 7)
    assert torch.equal(again, (0.5 * (images + 1))[:120])


def test_guidance_moves_away_from_the_mean_of_all_classes():
    schedule = NoiseSchedule.cosine()
    denoiser = GaussianDenoiser(schedule, MEANS, 0.3)
    condition = denoiser.condition(torch.tensor([2] * 6))
    plain = denoise(denoiser, schedule, noise(), condition, SamplerOptions(20))
    guided = denoise(denoiser, schedule, noise(), condition, SamplerOptions(20, 2.0))
    assert float(guided.mean()) > float(plain.mean()) + 0.2


def test_a_model_without_a_null_class_has_no_guidance():
    schedule = NoiseSchedule.cosine()
    denoiser = GaussianDenoiser(schedule, MEANS, 0.3, has_null=False)
    condition = denoiser.condition(torch.tensor([2] * 6))
    with pytest.raises(ConfigError, match="guidance: expected 1 for a model without a null class"):
        denoise(denoiser, schedule, noise(), condition, SamplerOptions(5, 1.5))


def test_a_trailing_grid_ends_where_only_noise_is_left():
    schedule = NoiseSchedule.cosine(spacing="trailing")
    assert schedule.grid(4) == [249, 499, 749, 999]
    assert schedule.grid(1) == [999]


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_a_number_of_steps_that_the_schedule_lacks_is_refused(steps):
    with pytest.raises(ConfigError, match="steps: expected 1 to 1000 steps"):
        NoiseSchedule.cosine().grid(steps)


def test_checkpointing_changes_no_gradient():
    schedule = NoiseSchedule.scaled_linear()
    network = torch.nn.Conv2d(1, 1, 3, padding=1).double().requires_grad_(False)
    denoiser = GaussianDenoiser(schedule, MEANS, 0.3)
    inner = denoiser.predict
    denoiser.predict = lambda x, t, c: inner(network(x).tanh(), t, c)
    grads = []
    for checkpoint in (False, True):
        x = noise().requires_grad_()
        condition = denoiser.condition(torch.tensor([0, 1, 2, 0, 1, 2])).requires_grad_()
        latents = denoise(
            denoiser, schedule, x, condition, SamplerOptions(6, 1.5), checkpoint=checkpoint
        )
        grads.append(torch.autograd.grad(latents.square().sum(), [x, condition]))
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=0)
