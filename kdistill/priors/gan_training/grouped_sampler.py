"""Batches of real images in which the images of a group are of one class."""

import torch
from torch import Tensor

from kdistill.data.class_sampler import ClassSampler
from kdistill.keys import make_key, uniforms
from kdistill.priors.gan_training.discriminator import group_size


class GroupedSampler:
    """Draws batches whose groups, as the discriminator forms them, are of one class.

    Args:
        labels: Classes of the real images, int64 ``[N]``.
        num_classes: Number of classes.
    """

    def __init__(self, labels: Tensor, num_classes: int):
        sampler = ClassSampler(labels.cpu(), num_classes)
        self.rows_by_class, self.class_starts = sampler.order, torch.tensor(sampler.starts)

    def draw(self, count: int, key: int) -> Tensor:
        """Return ``count`` row numbers, drawn with replacement; pure in ``key``.

        Classes come as often as they are in the data.
        """
        size = group_size(count)
        firsts = uniforms(make_key(key, "first"), count // size) * len(self.rows_by_class)
        firsts = torch.from_numpy(firsts).long()
        classes = torch.searchsorted(self.class_starts, firsts, right=True).sub(1).repeat(size)
        starts, stops = self.class_starts[classes], self.class_starts[classes + 1]
        ranks = (torch.from_numpy(uniforms(key, count)) * (stops - starts)).long()
        return self.rows_by_class[starts + ranks]
