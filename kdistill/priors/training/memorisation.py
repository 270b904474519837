"""The memorisation check: how near generated images are to the images that were trained on.

A generator that copies draws images nearer to its training images than other real images of the
same kind are.  The held-out real images are the measure.

Symbols: M generated images, N training images, H held-out images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 256  # images whose distances to all training images are in memory
NEAR = 0.01  # quantile of the held-out distances below which an image counts as a near copy
COPIES = 0.1  # share of near copies from which the card says that the model copies


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Distances to the nearest training image, as root mean square of pixels of 0 to 1.

    Attributes:
        generated_median: Median over the generated images.
        held_out_median: Median over the held-out real images.
        near_distance: The distance that 1 % of the held-out images fall below.
        near_share: Share of the generated images below it.
    """

    generated_median: float
    held_out_median: float
    near_distance: float
    near_share: float

    def described(self) -> str:
        """Return the finding in one sentence."""
        share = f"{100 * self.near_share:.1f} % of the generated images are nearer to a training"
        finding = f"{share} image than 99 % of the held-out real images are"
        if self.near_share >= COPIES:
            return f"{finding}: the model copies some of its training images."
        if self.generated_median < 0.8 * self.held_out_median:
            return f"{finding}, but all are nearer on average: it stays close to what it learned."
        return f"{finding}: no sign of copies."


def nearest(images: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance to the nearest training image, and its number, both ``[M]``.

    Args:
        images: ``[M, C, S, S]`` in pixel space.
        training: ``[N, C, S, S]``.

    Cost: ``M * N * C * S^2`` multiplications; memory of 256 rows of distances.
    """
    rows = training.flatten(1)
    found = [torch.cdist(part, rows).min(1) for part in images.flatten(1).split(CHUNK)]
    scale = rows.shape[1] ** 0.5
    return torch.cat([x.values for x in found]) / scale, torch.cat([x.indices for x in found])


def memorisation(generated: Tensor, training: Tensor, held_out: Tensor) -> Memorisation | None:
    """Return how near generated images are to training images; None without held-out images.

    Args:
        generated: ``[M, C, S, S]`` in pixel space.
        training: ``[N, C, S, S]``.
        held_out: ``[H, C, S, S]``.

    Cost: ``(M + H) * N * C * S^2`` multiplications.
    """
    if not len(held_out):
        return None
    ours, _ = nearest(generated, training)
    theirs, _ = nearest(held_out, training)
    near = float(torch.quantile(theirs, NEAR))
    return Memorisation(
        generated_median=float(ours.median()),
        held_out_median=float(theirs.median()),
        near_distance=near,
        near_share=float((ours < near).double().mean()),
    )
