"""What the sampler asks of a denoiser, and its prediction as noise and clean latent.

Symbols: B rows of a batch, c latent channels, s their side, a = alphas_cumprod of the timestep.
"""

from typing import Literal, Protocol

from torch import Tensor

Prediction = Literal["epsilon", "x0", "v"]


class Denoiser(Protocol):
    """A network that predicts the noise of a noisy latent, the clean latent, or a mixture of both.

    Attributes:
        prediction: What it predicts: ``"epsilon"`` (the noise), ``"x0"`` (the clean latent) or
            ``"v"`` (``sqrt(a)*epsilon - sqrt(1 - a)*x0``).
    """

    prediction: Prediction

    def condition(self, classes: Tensor) -> Tensor:
        """Return the conditioning ``[B, ...]`` of these classes, int64 ``[B]``."""

    def null_condition(self) -> Tensor | None:
        """Return the conditioning ``[1, ...]`` of no class; None if it was trained without one."""

    def predict(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction ``[B, c, s, s]`` for noisy latents and timesteps int64 ``[B]``."""


def noise_and_latent(
    prediction: Prediction, output: Tensor, x: Tensor, signal: float, sigma: float
) -> tuple[Tensor, Tensor]:
    """Return the noise and the clean latent that an output says the noisy latent ``x`` consists of.

    Args:
        prediction: What the network predicts.
        output: What it said, ``[B, c, s, s]``.
        x: Noisy latents, ``signal * x0 + sigma * epsilon``.
        signal: ``sqrt(a)``.
        sigma: ``sqrt(1 - a)``.
    """
    if prediction == "epsilon":
        return output, (x - sigma * output) / signal
    if prediction == "x0":
        return (x - signal * output) / sigma, output
    return sigma * x + signal * output, signal * x - sigma * output
