"""Loss, gradient, their tangents and features of a student, without an autograd graph."""

from collections.abc import Callable, Sequence

from torch import Tensor

from kdistill.engine.students import GradJvp, Student
from kdistill.engine.students.base import JVPS


def loss_and_grad(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy and its gradient in theta, without an autograd graph.

    Args:
        student: The network.
        theta: ``[P]`` or ``[G, P]``.
        images: Normalised, ``[B, C, S, S]`` or ``[G, B, C, S, S]``; four dimensions are shared by
            the group.
        labels: int64 ``[B]`` (hard), or float LOGITS ``[B, K]`` of soft labels; with a G in front
            if the images have one.

    Returns:
        (loss ``[]`` or ``[G]`` in nats, gradient shaped like theta).

    Cost: a forward and a backward pass; no gradient in the images.
    """
    return student.loss_and_grad(theta, images, labels)


def grad_jvp(
    student: Student,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    v: Tensor,
    *,
    want: Sequence[str] = JVPS,
) -> GradJvp:
    """Return the mean cross-entropy l, g = dl/dtheta and their derivatives in the direction v.

    The derivatives are d/de at e = 0 of l, g, dl/dimages and dl/dz at theta + e*v.

    One ordinary forward and backward pass that carries tangents along (forward over reverse): no
    ``create_graph``, and for a ConvNet no graph beyond a block that is not the standard one.  By
    the symmetry of second derivatives the tangents are H v and the gradients of <g, v> in images
    and labels, which is what trajectory matching, gradient matching and Hessian products need.

    Args:
        student: The network; ``convnet`` runs on dual layers, its standard block (instance norm,
            ReLU, average pooling) on the fused kernels; any other network goes through a double
            backward pass.
        theta: ``[P]`` or ``[G, P]``, float32 or float64.
        images: Normalised, ``[B, C, S, S]`` or ``[G, B, C, S, S]``; four dimensions are shared by
            the group.
        labels: int64 ``[B]`` (hard), or float LOGITS z ``[B, N]`` of soft labels softmax(z); with a
            G in front if the images have one.
        v: The direction, like theta.
        want: Names of the results that are needed, of ``"grad"`` (g itself), ``"hvp"`` and
            ``"images"`` (their tangent); each costs convolutions.

    Returns:
        loss, loss_tangent = <g, v>, grad, hvp = H v, images_tangent, labels_tangent.  At a ReLU's
        kink its second derivative is taken as 0, as autograd does.  Images and labels that a group
        shares get the sum over the group.

    Raises:
        ShapeError: Shapes, dtypes or devices do not fit.
        ConfigError: ``want`` is unknown.

    Cost: nine products per convolution where a training step has three (eight without ``"grad"``);
        memory of one chunk of images and their tangents.

    References: Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation 6, 1994.
    """
    return student.grad_jvp(theta, images, labels, v, want=want)


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
    """Return the vectors before the classifier and their vjp, dL/dfeatures to dL/dimages.

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
