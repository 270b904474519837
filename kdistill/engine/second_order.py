"""The one second-order primitive: derivatives of loss and gradient in a direction of the weights."""

from collections.abc import Sequence

from torch import Tensor

from kdistill.engine.students import GradJvp, Student
from kdistill.engine.students.base import JVPS


def grad_jvp(
    student: Student,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    v: Tensor,
    *,
    want: Sequence[str] = JVPS,
) -> GradJvp:
    """Return the mean cross-entropy l and g = dl/dtheta, and d/de at e = 0 of l, g, dl/dimages and dl/dz at theta + e*v.

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
        want: Of ``"grad"`` (g itself), ``"hvp"`` and ``"images"`` (their tangent) those that are
            needed; each costs convolutions.

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
