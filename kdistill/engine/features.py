"""Embedding images with a student, and pulling a gradient back to the pixels, without an autograd graph."""

from collections.abc import Callable

from torch import Tensor

from kdistill.engine.students import Student


def embed(student: Student, theta: Tensor, images: Tensor, batch_size: int | None = None) -> Tensor:
    """Return the vectors before the classifier, ``[B, F]``; nothing is kept for a backward pass.

    Args:
        student: The network.
        theta: ``[P]`` or ``[G, P]``.
        images: As the network sees them (normalised), ``[B, C, S, S]`` or ``[G, B, C, S, S]``.
        batch_size: Most images at a time; None leaves it to the student.

    Cost: one forward pass; memory of one chunk of images beside the result.
    """
    return student.infer(theta, images, to="features", batch_size=batch_size)


def embed_with_vjp(
    student: Student, theta: Tensor, images: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the vectors before the classifier and the function that takes dL/dfeatures to dL/dimages.

    Args:
        student: The network.
        theta: ``[P]`` or ``[G, P]``; it and the images must not change before the pull-back.
        images: ``[B, C, S, S]`` or ``[G, B, C, S, S]``.

    Returns:
        (features ``[B, F]`` or ``[G, B, F]``, vjp: gradient of the features → gradient shaped like
        the images).  The pull-back may be called several times; the activations live as long as it
        does.

    Cost: one forward pass, and per pull-back one backward pass without weight gradients.
    """
    features, saved = student.forward(theta, images, to="features")

    def vjp(grad_features: Tensor) -> Tensor:
        grad = student.backward(saved, grad_features, want=("images",))[1]
        assert grad is not None  # it was asked for
        return grad

    return features, vjp
