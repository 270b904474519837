"""Distribution matching: the distance between class means of embedded real and synthetic images."""

import torch
from torch import Tensor

from kdistill.augment import Augment
from kdistill.engine.student_functions import embed, embed_with_vjp
from kdistill.engine.students import Student
from kdistill.objectives.masks import deepest
from kdistill.ops.class_mean_sqdist import class_mean_sqdist, class_mean_sqdist_and_grad

CHUNK = 128  # real images whose feature maps are in memory at a time


def distribution_match(
    student: Student,
    theta: Tensor,
    real: Tensor,
    real_labels: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    augment: Augment | None = None,
    step: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return ``sum_c |mean_c psi(A(real)) - mean_c psi(A(images))|^2`` and its gradient.

    All classes go through the network in one batch.  ``A`` is siamese per class: the real and the
    synthetic images of a class get the same transformation at the same step.

    Args:
        student: The embedding network psi (features before the classifier).
        theta: Its parameters, ``[P]``.
        real: Real images, normalised, ``[N, C, H, W]``.
        real_labels: int64 ``[N]``, on the device of ``real`` or on the host: with ``augment``
            nothing waits for a GPU where both labels are on the host.
        images: Synthetic images in the same space, ``[M, C, H, W]``.
        labels: int64 ``[M]``, likewise.
        augment: A keyed augmentation, or None.
        step: The draw of the augmentation.

    Returns:
        The loss, a scalar in squared feature units, and ``dL/dimages [M, C, H, W]``.  No graph is
        built.

    Cost: a forward pass over ``N + M`` images and a backward pass to the pixels over ``M``.

    References: Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023, eq. 5;
        augmentation as in their section 3.3.
    """
    if augment is not None:
        real, images = augment(real, step, real_labels), augment(images, step, labels)
    real_features = embed(student, theta, real)
    features, vjp = embed_with_vjp(student, theta, images)
    loss, grad_features = class_mean_sqdist_and_grad(
        real_features,
        real_labels.to(real.device, non_blocking=True),
        features,
        labels.to(images.device, non_blocking=True),
        student.classes,
    )
    grad = vjp(grad_features)
    return loss, grad if augment is None else augment.vjp(grad, step, labels)


def layered_distribution_match(
    student: Student,
    theta: Tensor,
    real: Tensor,
    real_labels: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    mask_ratio: float = 0.0,
    augment: Augment | None = None,
    step: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return ``distribution_match`` summed over the feature maps of the deepest blocks.

    Args:
        student: The embedding network; feature maps are those of every block after its activation
            and before its pooling.
        theta: As for ``distribution_match``, and so are the others.
        real: As for ``distribution_match``.
        real_labels: As for ``distribution_match``.
        images: As for ``distribution_match``.
        labels: As for ``distribution_match``.
        mask_ratio: Share of the blocks, shallow ones first, that is not compared
            (``kdistill.objectives.masks.deepest``).
        augment: As for ``distribution_match``.
        step: As for ``distribution_match``.

    Returns:
        The loss and ``dL/dimages [M, C, H, W]``.

    Cost: as ``distribution_match``, by plain autograd; memory of the feature maps of M synthetic
        images and of 128 real ones.

    References: Li et al., Prioritize Alignment in Dataset Distillation, 2024, appendix A.1 (FIEM
        for distribution matching).
    """
    if augment is not None:
        real, images = augment(real, step, real_labels), augment(images, step, labels)
    means, present = _layer_means(student, theta, real, real_labels, mask_ratio)
    on_device = labels.to(images.device)
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        features = student.features(theta, leaf, layers="all")
        compared = [features[level].flatten(1) for level in deepest(len(features), mask_ratio)]
        pairs = zip(means, compared, strict=True)
        total = sum(
            (class_mean_sqdist(mean, present, x, on_device, student.classes) for mean, x in pairs),
            leaf.new_zeros(()),
        )
        (grad,) = torch.autograd.grad(total, leaf)
    return total.detach(), grad if augment is None else augment.vjp(grad, step, labels)


@torch.no_grad()
def _layer_means(
    student: Student, theta: Tensor, real: Tensor, real_labels: Tensor, mask_ratio: float
) -> tuple[list[Tensor], Tensor]:
    """Return class means ``[K', F_l]`` of the compared layers, and the K' classes with images."""
    counts = torch.bincount(real_labels, minlength=student.classes)
    present = counts.nonzero().flatten()
    real_labels, counts, present = (x.to(real.device) for x in (real_labels, counts, present))
    sums: list[Tensor] = []
    for part, part_labels in zip(real.split(CHUNK), real_labels.split(CHUNK), strict=True):
        features = student.features(theta, part, layers="all")
        compared = [features[level].flatten(1) for level in deepest(len(features), mask_ratio)]
        sums = sums or [x.new_zeros((student.classes, x.shape[1])) for x in compared]
        for total, x in zip(sums, compared, strict=True):
            total.index_add_(0, part_labels, x)
    return [(total / counts.clamp(min=1)[:, None])[present] for total in sums], present
