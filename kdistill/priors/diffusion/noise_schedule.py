"""The noise schedule of a diffusion model, and the grid of timesteps that a sampler walks.

Papers: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020; Nichol and Dhariwal,
    "Improved Denoising Diffusion Probabilistic Models", ICML 2021 (the cosine schedule).

Symbols: T timesteps, alphas_cumprod_t = prod_{s<=t} (1 - beta_s).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kdistill.errors import ConfigError

LARGEST_BETA = 0.999  # of the cosine schedule, whose last step would otherwise divide by zero


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Share of the image that is left at each timestep.

    Attributes:
        alphas_cumprod: Decreasing, float64 ``[T]``.
        offset: First timestep of a leading grid, 0 or 1.
        spacing: ``"leading"``: a grid begins at the first timesteps, as in the published latent
            diffusion models; ``"trailing"``: it ends at the last one, where only noise is left.
        final: Value that stands for the clean image after the last step of a sampler.
    """

    alphas_cumprod: Tensor
    offset: int = 0
    final: float = 1.0
    spacing: Literal["leading", "trailing"] = "leading"

    @classmethod
    def from_betas(
        cls, betas: Tensor, *, final: float | None = 1.0, **grid: Any
    ) -> "NoiseSchedule":
        """Return the schedule of these ``betas [T]``; ``final=None`` takes the first value."""
        alphas_cumprod = (1.0 - betas.double()).cumprod(0)
        final = float(alphas_cumprod[0]) if final is None else final
        return cls(alphas_cumprod, final=final, **grid)

    @classmethod
    def linear(
        cls, first: float = 1e-4, last: float = 0.02, count: int = 1000, **grid: Any
    ) -> "NoiseSchedule":
        """Return the schedule whose betas rise linearly (DDPM, DiT)."""
        betas = torch.linspace(first, last, count, dtype=torch.float64)
        return cls.from_betas(betas, **grid)

    @classmethod
    def scaled_linear(
        cls, first: float = 0.0015, last: float = 0.0195, count: int = 1000, **grid: Any
    ) -> "NoiseSchedule":
        """Return the schedule whose roots of the betas rise linearly (latent diffusion)."""
        roots = torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64)
        return cls.from_betas(roots.square(), **grid)

    @classmethod
    def cosine(cls, count: int = 1000, **grid: Any) -> "NoiseSchedule":
        """Return the schedule whose ``alphas_cumprod`` fall as a squared cosine."""
        times = torch.arange(count + 1, dtype=torch.float64) / count
        signal = ((times + 0.008) / 1.008 * math.pi / 2).cos().square()
        betas = (1.0 - signal[1:] / signal[:-1]).clamp(max=LARGEST_BETA)
        return cls.from_betas(betas, **grid)

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    def grid(self, steps: int) -> list[int]:
        """Return the timesteps of a sampler of S steps, rising.

        Leading: ``offset + j*(T // S)``; trailing: ``round((j + 1)*T / S) - 1``.

        Raises:
            ConfigError: Fewer than one step, or more than there are timesteps.
        """
        if not 1 <= steps <= self.timesteps:
            raise ConfigError(
                f"steps: expected 1 to {self.timesteps} steps of the sampler, got {steps}; 10 "
                "to 50 are usual"
            )
        if self.spacing == "trailing":
            return [round((j + 1) * self.timesteps / steps) - 1 for j in range(steps)]
        stride = self.timesteps // steps
        return [min(self.offset + j * stride, self.timesteps - 1) for j in range(steps)]

    def add_noise(self, x: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``sqrt(a_t)*x + sqrt(1 - a_t)*noise`` with one timestep per row, int64 ``[B]``."""
        signal, sigma = self.scales(timesteps, x)
        return signal * x + sigma * noise

    def scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``sqrt(a_t)`` and ``sqrt(1 - a_t)``, ``[B, 1, ...]`` in the dtype of ``like``."""
        a = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, *[1] * (like.ndim - 1))
        return a.sqrt().to(like), (1.0 - a).sqrt().to(like)
