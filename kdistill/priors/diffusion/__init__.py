"""Diffusion models as priors: noise schedule, denoiser, sampler, model."""

from kdistill.priors.diffusion.denoiser import Denoiser, Prediction
from kdistill.priors.diffusion.model import Autoencoder, DiffusionModel, PixelAutoencoder
from kdistill.priors.diffusion.noise_schedule import NoiseSchedule
from kdistill.priors.diffusion.sampler import SamplerOptions, Solver, StepHook, denoise

__all__ = [
    "Autoencoder",
    "Denoiser",
    "DiffusionModel",
    "NoiseSchedule",
    "PixelAutoencoder",
    "Prediction",
    "SamplerOptions",
    "Solver",
    "StepHook",
    "denoise",
]
