"""Class-balanced batches of real images, drawn by key."""

import numpy as np
import torch
from torch import Tensor

from kdistill.keys import uniforms


class ClassSampler:
    """Draw ``per_class`` images of every class at once, without replacement.

    Args:
        labels: int64 ``[N]``, values ``0..num_classes-1``.
        num_classes: K.
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
