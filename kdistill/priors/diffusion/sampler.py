"""The sampler: from noise to a clean latent, by DDIM or DPM-Solver++(2M), with a hook per step.

Papers: Song et al., "Denoising Diffusion Implicit Models", ICLR 2021 (eq. 12 with eta = 0); Lu et
    al., "DPM-Solver++", 2022 (algorithm 2); Ho and Salimans, "Classifier-Free Diffusion Guidance",
    2022, in the form ``eps_null + s*(eps_class - eps_null)``.

Symbols: S steps, numbered i = S-1 ... 0; a = alphas_cumprod of a step; B rows, c channels, s side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from kdistill.errors import ConfigError
from kdistill.priors.diffusion.denoiser import Denoiser, noise_and_latent
from kdistill.priors.diffusion.noise_schedule import NoiseSchedule

Solver = Literal["ddim", "dpm++"]
# (i, timestep, x, eps, x0) -> (eps, x0): changes what a step goes on with
StepHook = Callable[[int, int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SamplerOptions:
    """How a sampler walks from noise to a latent.

    Attributes:
        steps: S, passes through the denoiser.
        guidance: Scale of classifier-free guidance; 1 is none, and costs half of any other.
        solver: ``"ddim"`` or ``"dpm++"`` (second order, fewer steps for the same quality).
    """

    steps: int
    guidance: float = 1.0
    solver: Solver = "ddim"


def denoise(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    condition: Tensor,
    options: SamplerOptions,
    *,
    hook: StepHook | None = None,
    checkpoint: bool = False,
) -> Tensor:
    """Return the clean latents ``[B, c, s, s]``; differentiable in ``x`` and ``condition``.

    Args:
        denoiser: The network.
        schedule: The noise schedule that it was trained with.
        x: Latents at the noise of the largest timestep of the grid, ``[B, c, s, s]``.
        condition: Conditioning of every row.
        options: Steps, guidance, solver.
        hook: Changes noise and clean latent of every step.
        checkpoint: Keep only the latents of the steps for the backward pass and run the denoiser
            again there: memory of one pass and S latents.

    Raises:
        ConfigError: A number of steps that the schedule does not have, or guidance of a denoiser
            without a null class.

    Cost: S passes, of twice the rows under guidance.
    """
    grid = schedule.grid(options.steps)
    null = _null_condition(denoiser, options.guidance)

    def predict(x: Tensor, timestep: int) -> Tensor:
        rows = x if null is None else torch.cat([x, x])
        said = condition if null is None else torch.cat([null.expand_as(condition), condition])
        timesteps = torch.full((len(rows),), timestep, dtype=torch.int64, device=x.device)
        output = denoiser.predict(rows, timesteps, said)
        if null is None:
            return output
        without, with_class = output.chunk(2)
        return without + options.guidance * (with_class - without)

    before: tuple[Tensor, float] | None = None  # clean latent and log-SNR of the step before
    for i in reversed(range(len(grid))):
        if checkpoint and torch.is_grad_enabled():
            # a frozen denoiser draws nothing: no state of a generator is kept for its second pass
            output = checkpointed(
                predict, x, grid[i], use_reentrant=False, preserve_rng_state=False
            )
        else:
            output = predict(x, grid[i])
        a = float(schedule.alphas_cumprod[grid[i]])
        a_next = float(schedule.alphas_cumprod[grid[i - 1]]) if i else schedule.final
        signal, sigma = math.sqrt(a), math.sqrt(1.0 - a)
        eps, x0 = noise_and_latent(denoiser.prediction, output, x, signal, sigma)
        if hook is not None:
            eps, x0 = hook(i, grid[i], x, eps, x0)
        if options.solver == "ddim":
            x = math.sqrt(a_next) * x0 + math.sqrt(1.0 - a_next) * eps
        else:
            x, before = _second_order(x, x0, a, a_next, before), (x0, _log_snr(a))
    return x


def _null_condition(denoiser: Denoiser, guidance: float) -> Tensor | None:
    """Return the conditioning of no class where guidance needs it."""
    if guidance == 1.0:
        return None
    null = denoiser.null_condition()
    if null is None:
        raise ConfigError(
            f"guidance: expected 1 for a model without a null class, got {guidance:g}; train one "
            "with label dropout, or set guidance=1"
        )
    return null


def _second_order(
    x: Tensor, x0: Tensor, a: float, a_next: float, before: tuple[Tensor, float] | None
) -> Tensor:
    """Return the next latent of DPM-Solver++(2M); of first order at the first and the last step."""
    if a_next >= 1.0:
        return x0
    h = _log_snr(a_next) - _log_snr(a)
    if before is not None:
        x0_before, log_snr_before = before
        half_ratio = 0.5 * h / (_log_snr(a) - log_snr_before)
        x0 = x0 + half_ratio * (x0 - x0_before)
    factor = math.sqrt((1.0 - a_next) / (1.0 - a))
    return factor * x - math.sqrt(a_next) * math.expm1(-h) * x0


def _log_snr(a: float) -> float:
    """Return ``log(sqrt(a) / sqrt(1 - a))``."""
    return 0.5 * (math.log(a) - math.log1p(-a))
