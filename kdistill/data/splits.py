"""Row numbers that are drawn by key: stratified splits and class-balanced batches."""

import numpy as np
import torch
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.keys import make_key, permutation, uniforms

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


class ClassSampler:
    """Draw ``per_class`` images of every class at once, without replacement.

    Args:
        labels: int64 ``[N]``, values ``0..num_classes-1``.
        num_classes: Number of classes, K.
    """

    def __init__(self, labels: Tensor, num_classes: int):
        self.order = torch.argsort(labels, stable=True)
        counts = torch.bincount(labels, minlength=num_classes)
        self.starts = [0, *counts.cumsum(0).tolist()]

    def draw(self, per_class: int, key: int) -> Tensor:
        """Return indices int64 ``[<= K*per_class]``, class-major.

        A smaller class gives all it has.  The draw is a pure function of ``key``.
        """
        drawn = uniforms(key, len(self.order))
        rows = []
        for first, last in zip(self.starts, self.starts[1:], strict=False):
            count = min(per_class, last - first)
            smallest = np.empty(0, dtype=np.int64)
            if count:
                smallest = np.argpartition(drawn[first:last], count - 1)[:count]
            # sorted: the same set whatever order argpartition leaves
            rows.append(first + np.sort(smallest))
        return self.order[torch.from_numpy(np.concatenate(rows))]
