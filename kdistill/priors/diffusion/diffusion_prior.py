"""Images as latents and conditioning of a frozen diffusion model.

Paper: Moser et al., "Unlocking Dataset Distillation with Diffusion Models" (LD3M), NeurIPS 2025.

A plain sampler of S steps forgets where it began, and the gradient that reaches its beginning
fades.  LD3M mixes the learned latent into every step (the residual):

    x0 <- (1 - w_i) x0 + w_i Q(z),  w_i = i / (S - 1)           the published code (eq. 7 differs)

Symbols: M images, c latent channels, s their side, S steps numbered i = S-1 ... 0.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.priors.base import Noise, RenderedPrior, State
from kdistill.priors.diffusion.model import DiffusionModel
from kdistill.priors.diffusion.sampler import SamplerOptions, denoise
from kdistill.priors.latents import GeneratorAdapter

Source = Literal["quantised", "clean", "noisy"]
Target = Literal["x0", "mean"]
ResidualSchedule = Literal["linear", "linear_from_one", "none"]


@dataclass(frozen=True)
class Residual:
    """What of the learned latent is mixed into every step of the sampler.

    Attributes:
        source: ``"quantised"``: the nearest codes of the learned latent (it itself, where the
            autoencoder has no codebook); ``"clean"``: the learned latent; ``"noisy"``: the latent
            that the sampler begins with.
        target: ``"x0"``: it is mixed into the clean latent that a step predicts; ``"mean"``: into
            the latent that the next step begins with.
        schedule: Its share of a step. ``"linear"``: ``i / (S - 1)``, from 1 at the first step to 0
            at the last; ``"linear_from_one"``: ``(i + 1) / S``, which ends at ``1 / S`` (equation
            7); ``"none"``: plain DDIM.
    """

    source: Source = "quantised"
    target: Target = "x0"
    schedule: ResidualSchedule = "linear"

    def weight(self, i: int, steps: int) -> float:
        """Return the share of the latent in step ``i`` of ``steps``, S-1 for the first one."""
        if self.schedule == "none":
            return 0.0
        if self.schedule == "linear_from_one":
            return (i + 1) / steps
        return i / (steps - 1) if steps > 1 else 1.0


@dataclass(frozen=True, eq=False)
class DiffusionPrior(RenderedPrior):
    """The images of a diffusion model's sampler, from learned latents and conditioning.

    The state holds ``z [M, c, s, s]``, the latents, and ``c [M, ...]``, the conditioning.  The
    sampler begins with ``sqrt(a) z + sqrt(1 - a) eps`` at its largest timestep; eps is keyed by
    image and iteration.

    Attributes:
        model: The diffusion model.
        adapter: From its images to normalised ones.
        sampler: Steps and guidance; DDIM.
        residual: What of ``z`` is mixed into every step.
        chunk: Images that have a graph at one time.
        key: Key of the noise.
        shares_noise: Whether the vector-Jacobian product belongs to the images that the objective
            had; False draws other noise for it, as the published code does by mistake.

    Raises:
        ConfigError: A number of steps that the noise schedule does not have, another solver than
            DDIM, or guidance without a null class.
    """

    model: DiffusionModel
    adapter: GeneratorAdapter
    sampler: SamplerOptions
    residual: Residual
    chunk: int
    key: int
    shares_noise: bool = True

    def __post_init__(self) -> None:
        self.model.schedule.grid(self.sampler.steps)
        if self.sampler.solver != "ddim":
            raise ConfigError(
                f"solver: expected ddim for learned latents, got '{self.sampler.solver}'; leave "
                "it out"
            )
        if self.sampler.guidance != 1.0 and self.model.denoiser.null_condition() is None:
            raise ConfigError(
                f"guidance: expected 1 for a model without a null class, got "
                f"{self.sampler.guidance:g}; set guidance=1"
            )

    def vjp(self, state: State, grad_images: Tensor, iteration: int) -> State:
        """Return the gradient in ``z`` and ``c``; as ``RenderedPrior.vjp``.

        Cost: S passes through the denoiser, again S, and their backward passes; memory of one pass
            of a chunk and of its S latents.
        """
        if self.shares_noise:
            return super().vjp(state, grad_images, iteration)
        return super().vjp(state, grad_images, -1 - iteration)

    def is_per_image(self, name: str) -> bool | None:
        """Say that ``z`` and ``c`` have a row per image."""
        return True if name in ("z", "c") else None

    def draw(self, state: State, noise: Noise) -> Tensor:
        """Return the normalised images of a chunk; differentiable."""
        latents = self.latents(state["z"], state["c"], noise)
        return self.adapter(self.model.autoencoder.decode(latents))

    def latents(self, z: Tensor, c: Tensor, noise: Noise) -> Tensor:
        """Return the clean latents that the decoder turns into images."""
        schedule, residual = self.model.schedule, self.residual
        grid = schedule.grid(self.sampler.steps)
        levels = [schedule.final, *(float(schedule.alphas_cumprod[t]) for t in grid)]
        eps = noise.normal("x_T", tuple(z.shape[1:]), z)
        x = math.sqrt(levels[-1]) * z + math.sqrt(1.0 - levels[-1]) * eps
        source = {"noisy": x, "clean": z}.get(residual.source)
        if source is None:
            source = self.model.autoencoder.quantise(z)

        def mix(i: int, _t: int, _x: Tensor, eps: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
            weight = residual.weight(i, len(grid))
            if residual.target == "x0":
                return eps, (1.0 - weight) * x0 + weight * source
            # the next latent is sqrt(level)*x0 + sqrt(1 - level)*eps, and is to be mixed itself
            scaled = source / math.sqrt(levels[i])
            return (1.0 - weight) * eps, (1.0 - weight) * x0 + weight * scaled

        denoiser = self.model.denoiser
        return denoise(denoiser, schedule, x, c, self.sampler, hook=mix, checkpoint=True)
