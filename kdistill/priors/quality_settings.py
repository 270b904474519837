"""Settings that every training of a generator has."""

from dataclasses import dataclass
from typing import Annotated

from kdistill.options import COUNT


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """How the quality of a trained generator is measured, and the seed.

    Attributes:
        quality_images: Most generated images that a network is trained on to measure their
            quality; never more than there are real ones.
        quality_steps: Training steps of that network.
        quality_width: Width of that network.
        seed: Seed of every random draw.
    """

    quality_images: Annotated[int, COUNT] = 5000
    quality_steps: Annotated[int, COUNT] = 600
    quality_width: Annotated[int, COUNT] = 32
    seed: int = 0
