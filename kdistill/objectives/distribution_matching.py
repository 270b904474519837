"""Distribution matching: the distance between class means of embedded real and synthetic images."""

from torch import Tensor

from kdistill.augment import Augment
from kdistill.engine.features import embed, embed_with_pullback
from kdistill.engine.students import Student
from kdistill.ops.class_mean_sqdist import class_mean_sqdist_and_grad


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
    """Return ``sum_c |mean_c psi(A(real)) - mean_c psi(A(images))|^2`` and its gradient in ``images``.

    All classes go through the network in one batch.  ``A`` is siamese per class: the real and the synthetic images of a class
    get the same transformation at the same step.

    Args:
        student: The embedding network psi (features before the classifier).
        theta: Its parameters, ``[P]``.
        real: Real images as the network sees them (normalised), ``[N, C, H, W]``.
        real_labels: int64 ``[N]``.
        images: Synthetic images in the same space, ``[M, C, H, W]``.
        labels: int64 ``[M]``.
        augment: A keyed augmentation, or None.
        step: The draw of the augmentation.

    Returns:
        The loss, a scalar in squared feature units, and ``dL/dimages [M, C, H, W]``.  No graph is built.

    Cost: a forward pass over ``N + M`` images and a backward pass to the pixels over ``M``.

    References: Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023, eq. 5; augmentation as in their
    section 3.3.
    """
    if augment is not None:
        real, images = augment(real, step, real_labels), augment(images, step, labels)
    real_features = embed(student, theta, real)
    features, pull_back = embed_with_pullback(student, theta, images)
    loss, grad_features = class_mean_sqdist_and_grad(real_features, real_labels, features, labels, student.classes)
    grad = pull_back(grad_features)
    return loss, grad if augment is None else augment.pull_back(grad, step, labels)
