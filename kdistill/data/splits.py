"""Stratified splits that are a pure function of the labels and a seed."""

import numpy as np
import torch
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.keys import make_key, permutation

# of every hold-out: distillation, training of generators and evaluation hold out the same images
HOLDOUT_SEED = 0


def stratified_split(
    labels: Tensor, fraction: float, *, seed: int, purpose: str
) -> tuple[Tensor, Tensor]:
    """Split row numbers into a large and a small part with the same class shares.

    ``ceil(fraction * N)`` rows are shared out over the classes by largest remainder; a class of two
    or more images has at least one in each part, a class of one keeps it in the large part.  Which
    rows go is drawn by (seed, purpose, class).

    Args:
        labels: int64 ``[N]``, not negative.
        fraction: Share of the small part, in (0, 1).
        seed: Seed of the draw.
        purpose: Different purposes give unrelated draws, e.g. ``"split test"``.

    Returns:
        Two int64 index tensors, each ascending, together ``0..N-1``.

    Raises:
        ConfigError: ``fraction`` is not between 0 and 1.

    Cost: one sort of N labels.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(
            f"split: expected a share between 0 and 1, got {fraction}; 0.1 takes a tenth"
        )
    labels = labels.cpu()
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    shares = _shares(counts.numpy(), fraction)
    for label, rows in enumerate(order.split(counts.tolist())):
        drawn = permutation(make_key(seed, purpose, label), len(rows))
        chosen[rows[drawn[: int(shares[label])]]] = True
    return torch.nonzero(~chosen).squeeze(1), torch.nonzero(chosen).squeeze(1)


def _shares(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Return how many rows of each class the small part takes."""
    tiny = 1e-9  # 0.1 * 4000 is 400.00000000000006
    total = int(np.ceil(fraction * counts.sum() - tiny))
    quota = fraction * counts
    shares = np.floor(quota + tiny).astype(np.int64)
    by_remainder = np.argsort(-np.round(quota - shares, 9), kind="stable")
    shares[by_remainder[: max(0, total - int(shares.sum()))]] += 1
    return np.clip(shares, (counts > 1).astype(np.int64), np.maximum(counts - 1, 0))
