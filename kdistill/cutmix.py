"""CutMix as a pure function of a key: a box of every image is that of another image.

Paper: Yun, Han, Oh, Chun, Choe and Yoo, "CutMix: Regularization Strategy to Train Strong
    Classifiers with Localizable Features", ICCV 2019.

Symbols: B images of a batch, C channels, S their side, K classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.keys import make_key, permutation, uniforms

TINY = 1e-30  # probability of a class that no image of a pair has: its logarithm is finite


@dataclass(frozen=True)
class CutMix:
    """Mixes the images of a batch and their labels.

    Attributes:
        probability: Probability that a batch is mixed.
        classes: Number of classes, K.
        key: Stream of the draws, from ``kdistill.keys.make_key``.
    """

    probability: float
    classes: int
    key: int

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return images and labels of a step; as they are where the batch is not mixed.

        A share l ~ U(0, 1) of the area, which is Beta(1, 1), remains: the box has sides
        ``S*sqrt(1 - l)`` around a uniform centre, and is cut off at the border.  The label of a
        mixed image is ``a*y_i + (1 - a)*y_j``, a being the share of pixels that are its own.

        Args:
            images: ``[B, C, S, S]``.
            labels: int64 ``[B]``, or float LOGITS ``[B, K]`` of soft labels.
            step: Number of the step; decides everything.

        Returns:
            Images, and the labels or the LOGITS ``[B, K]`` of mixed ones.
        """
        chance, area, *centre = uniforms(make_key(self.key, "cutmix", step), 4).tolist()
        if chance >= self.probability:
            return images, labels
        height, width = images.shape[-2:]
        cut = math.sqrt(1.0 - area)
        rows, columns = _span(height, cut, centre[0]), _span(width, cut, centre[1])
        partner = permutation(make_key(self.key, "cutmix partner", step), len(images))
        partner = partner.to(images.device)
        mixed = images.clone()
        mixed[..., rows, columns] = images[partner][..., rows, columns]
        other = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        targets = self._probabilities(labels, images.dtype)
        return mixed, targets.lerp(targets[partner], other).clamp_(min=TINY).log_()

    def _probabilities(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        if labels.is_floating_point():
            return labels.softmax(1)
        return F.one_hot(labels, self.classes).to(dtype)


def _span(side: int, cut: float, centre: float) -> slice:
    """Return the pixels of a box along one side: length ``cut*side``, cut off at the border."""
    middle, length = int(centre * side), int(cut * side)
    return slice(max(middle - length // 2, 0), min(middle - length // 2 + length, side))
