"""The class-relevant feature distance: class means of feature maps, weighted by relevance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdistill.engine.relevance import Levels, class_statistics, levels_of
from kdistill.engine.students import Student
from kdistill.errors import DataError
from kdistill.ops import class_mean_sqdist


@dataclass(frozen=True, eq=False)
class ClassRelevantDistance:
    """The distance to real images, whose statistics ``class_relevant_distance`` took once.

    Attributes:
        levels: Parts of the networks that are compared.
        thetas: Parameters of the K networks, ``[K, P]``: the same for real and synthetic images.
        means: Class means of the real images for every network and level, ``[C, F_l]``.
        weights: ``w_c / sqrt(F_l)`` for every network and level, as ``[C, ...]`` that broadcasts to
            the level; None without weights.
        shapes: Shapes of the levels of one image.
    """

    levels: Levels
    thetas: Tensor
    means: list[list[Tensor]]
    weights: list[list[Tensor]] | None
    shapes: list[tuple[int, ...]]

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the distance of a synthetic set, a scalar; differentiable in ``images``.

        Args:
            images: Normalised images ``[M, C, S, S]``, dtype and device of the real ones.
            labels: int64 ``[M]``.  A class without images contributes 0.

        Cost: K forward passes over M images; memory of one network's levels of them.
        """
        total = images.new_zeros(())
        for net, theta in enumerate(self.thetas):
            for level, rows in enumerate(self.levels(theta, images)):
                total = total + self._level(net, level, rows.flatten(1), labels)
        return total / len(self.thetas)

    def tensors(self) -> dict[str, Tensor]:
        """Return what ``restored_distance`` needs, under plain names."""
        tensors = {"thetas": self.thetas}
        for net, means in enumerate(self.means):
            for level, mean in enumerate(means):
                tensors[f"means.{net}.{level}"] = mean.view(-1, *self.shapes[level])
                if self.weights is not None:
                    tensors[f"weights.{net}.{level}"] = self.weights[net][level]
        return tensors

    def _level(self, net: int, level: int, rows: Tensor, labels: Tensor) -> Tensor:
        means = self.means[net][level]
        own = torch.arange(len(means), device=means.device)
        if self.weights is None:
            return class_mean_sqdist(means, own, rows, labels, len(means)) / means.shape[1]
        weights = (
            self.weights[net][level].expand(len(means), *self.shapes[level]).reshape(means.shape)
        )
        return class_mean_sqdist(means, own, rows, labels, len(means), weights)


def class_relevant_distance(
    student: Student,
    thetas: Tensor,
    real: Tensor,
    real_labels: Tensor,
    *,
    layers: str = "all",
    weighting: Literal["cam", "none"] = "cam",
    batch_size: int = 64,
) -> ClassRelevantDistance:
    """Return the class-relevant feature distance to a real set.

        d(S) = 1/K sum_k sum_c sum_l 1/|A_l| | w_{k,c,l} * (mean_{x in T_c} A_{k,l}(x)
                                                           - mean_{x in S_c} A_{k,l}(x)) |^2 .

    A_{k,l} are the feature maps of the blocks of network k after activation, before pooling.  The
    last level is what the classifier reads: with a head that flattens, the vector itself with w its
    row for c (CAM); with a head that averages over positions, the map, each channel with the
    classifier's weight.  In earlier levels w has one number per channel, the derivative of the
    logit of c averaged over positions and over T_c (Grad-CAM without its ReLU), held fixed.

    Args:
        student: The network.
        thetas: ``[K, P]``: random or trained parameters, the same for real and synthetic images.
        real: Normalised images, ``[N, C, S, S]``.
        real_labels: int64 ``[N]``.
        layers: ``"all"`` blocks or the ``"last"`` level alone.
        weighting: ``"cam"``, or ``"none"``: w = 1.
        batch_size: Real images at a time.

    Raises:
        ConfigError: ``layers`` is unknown, or the network has no linear classifier.
        DataError: A class has no real image.

    Cost: once, K forward passes over N images, with ``"cam"`` K backward passes too, class by
        class; memory of ``K * C * F`` numbers.  Then ``K * M`` forward passes for every call.

    References: Zhong et al., Hierarchical Features Matter (H-GLaD), whose released distance has
        neither class weights nor the same networks on both sides; Zhou et al., CVPR 2016 (CAM);
        Selvaraju et al., ICCV 2017 (Grad-CAM).
    """
    rows = [(real_labels == label).nonzero()[:, 0] for label in range(student.classes)]
    empty = next((label for label, members in enumerate(rows) if not len(members)), None)
    if empty is not None:
        raise DataError(
            "class_relevant_distance: expected real images of every class, got none of class "
            f"{empty}; add some"
        )

    def chunks(label: int) -> Iterator[Tensor]:
        return (real[part] for part in rows[label].split(batch_size))

    levels = levels_of(student, thetas[0], real, layers)
    shapes: list[tuple[int, ...]] = []
    means: list[list[Tensor]] = []
    weights: list[list[Tensor]] = []
    for theta in thetas:
        mean, weight = class_statistics(
            levels, theta, chunks, student.classes, weighted=weighting == "cam"
        )
        shapes = [tuple(level.shape[1:]) for level in mean]
        means.append([level.flatten(1) for level in mean])
        if weight is not None:
            weights.append([w / m[0].numel() ** 0.5 for w, m in zip(weight, mean, strict=True)])
    return ClassRelevantDistance(
        levels, thetas, means, weights if weighting == "cam" else None, shapes
    )


def restored_distance(
    student: Student, real: Tensor, layers: str, tensors: Mapping[str, Tensor]
) -> ClassRelevantDistance:
    """Return the distance whose ``tensors()`` these are; ``real`` images show the levels again.

    Raises:
        KeyError: A tensor is missing.
    """
    tensors = {name: x.to(real.device) for name, x in tensors.items()}
    levels = levels_of(student, tensors["thetas"][0], real, layers)
    depth = sum(name.startswith("means.0.") for name in tensors)
    nets = range(len(tensors["thetas"]))

    def parts(kind: str) -> list[list[Tensor]]:
        return [[tensors[f"{kind}.{net}.{level}"] for level in range(depth)] for net in nets]

    means = parts("means")
    shapes = [tuple(mean.shape[1:]) for mean in means[0]]
    weights = parts("weights") if "weights.0.0" in tensors else None
    return ClassRelevantDistance(
        levels,
        tensors["thetas"],
        [[mean.flatten(1) for mean in net] for net in means],
        weights,
        shapes,
    )
