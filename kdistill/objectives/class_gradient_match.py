"""Gradient matching: the distance between a network's gradients on real and synthetic images."""

import torch
from torch import Tensor

from kdistill.augment import Augment
from kdistill.engine.gradient_distance import class_gradients, gradient_match
from kdistill.engine.students import Student
from kdistill.errors import DataError, ShapeError

GRADIENTS_NBYTES = (
    64 << 20
)  # real gradients held at a time: all ten classes of a usual ConvNet, a part of two hundred


def class_gradient_match(
    student: Student,
    theta: Tensor,
    real: Tensor,
    real_labels: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    distance: str = "cosine_rows",
    mask: Tensor | None = None,
    augment: Augment | None = None,
    step: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return ``sum_c D(g_c(A(images)), g_c(A(real)))`` and its gradient in ``images``.

    g_c is the network's gradient on class c.

    Args:
        student: The network.
        theta: Its parameters, ``[P]``.
        real: Real images, normalised, ``[N, C, H, W]``, class-major.
        real_labels: int64 ``[N]``, ascending; on the device of ``real`` or, so that nothing waits
            for a GPU, on the host, like ``labels``.
        images: Synthetic images in the same space, ``[M, C, H, W]``, class-major with equally many
            of each class.
        labels: int64 ``[M]``, ascending.
        distance: Name of the distance, as for ``kdistill.engine.gradient_match``.
        mask: 0 or 1, ``[P]``: which parameters are compared; None compares all.
        augment: A keyed augmentation, siamese per class (the real and the synthetic images of a
            class get the same transformation at the same step), or None.
        step: The draw of the augmentation.

    Returns:
        The loss, a scalar in float64, and ``dL/dimages [M, C, H, W]``.  No graph is built.

    Raises:
        ShapeError: Labels do not ascend, or classes have unequally many synthetic images.
        DataError: A class has synthetic images and no real one.

    Cost: a training step over the N real images; the distance and its gradient over the M synthetic
        ones; memory of at most 64 MB (one class at the least) of real gradients beside one class in
        work.

    References: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021, eq.
        8; siamese augmentation: Zhao and Bilen, Dataset Condensation with Differentiable Siamese
        Augmentation, ICML 2021, eq. 6.
    """
    classes, ipc, sizes = _layout(real_labels, labels)
    if augment is not None:
        real, augmented = augment(real, step, real_labels), augment(images, step, labels)
    else:
        augmented = images
    by_class, labels_by_class = (
        augmented.unflatten(0, (classes, ipc)),
        labels.to(images.device, non_blocking=True).view(classes, ipc),
    )
    truth = real_labels.to(real.device, non_blocking=True)
    classes_per_call = max(1, GRADIENTS_NBYTES // (student.num_params * theta.element_size()))
    losses, grads, first = [], [], 0
    for c in range(0, classes, classes_per_call):
        counts = sizes[c : c + classes_per_call]
        rows = slice(first, first + sum(counts))
        real_grad = class_gradients(student, theta, real[rows], truth[rows], counts)
        part = slice(c, c + len(counts))
        loss, grad = gradient_match(
            student,
            theta,
            by_class[part],
            labels_by_class[part],
            real_grad,
            distance=distance,
            mask=mask,
        )
        losses.append(loss)
        grads.append(grad)
        first = rows.stop
    grad_images = torch.cat(grads).flatten(0, 1)
    return torch.cat(losses).sum(), grad_images if augment is None else augment.vjp(
        grad_images, step, labels
    )


def _layout(real_labels: Tensor, labels: Tensor) -> tuple[int, int, list[int]]:
    """Return the number of classes, synthetic images of each, and real images of each."""
    present, counts = torch.unique_consecutive(labels, return_counts=True)
    real_present, real_counts = torch.unique_consecutive(real_labels, return_counts=True)
    if (
        bool((labels.diff() < 0).any())
        or bool((real_labels.diff() < 0).any())
        or bool((counts != counts[:1]).any())
    ):
        raise ShapeError(
            "class_gradient_match: expected ascending labels with equally many synthetic images "
            f"of each class, got {counts.tolist()} images of the classes {present.tolist()}; sort "
            "images by label"
        )
    missing = sorted(set(present.tolist()) ^ set(real_present.tolist()))
    if missing:
        raise DataError(
            "class_gradient_match: expected real and synthetic images of the same classes, got "
            f"class {missing[0]} on one side only; leave it out or add images"
        )
    return len(present), len(labels) // max(len(present), 1), real_counts.tolist()
