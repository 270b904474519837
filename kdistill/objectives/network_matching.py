"""What a network makes of generated images against what it makes of real ones of the same classes.

    logits     mean over pairs (or classes) and logits of
               (log softmax phi(x) - log softmax phi(x_f))^2
    features   sum over blocks l of |mean f_l(x) - mean f_l(x_f)|_1, means over the batch or each
               class; or mean over blocks of the mean square of that difference over that of
               mean f_l(x)
    gradients  sum over convolutions of |g(x) - g(x_f)|_1, g the gradient of the cross-entropy

Feature maps are those after a block's activation, before its pooling.

Papers: Wang et al., "DiM: Distilling Dataset into Generative Model", 2023, whose code has the three
    of them; Li et al., "Generative Dataset Distillation: Balancing Global Structure and Local
    Details", CVPR Workshops 2024, which takes logits and features together.  Class means and the
    division by the real features are of this project.

Symbols: N real and as many generated images, pairwise of one class; K classes, R groups.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.engine.students import Student, Trace
from kdistill.errors import ConfigError

Distance = Callable[[Trace, Trace], Tensor]  # traces of real and of generated images -> scalar


def group_means(labels: Tensor, classes: int, groups: Literal["batch", "class"]) -> Tensor:
    """Return the matrix ``[R, N]`` that takes means over the batch, or over each class in it."""
    if groups == "batch":
        return labels.new_ones((1, len(labels)), dtype=torch.float32) / len(labels)
    members = F.one_hot(labels, classes).T.float()  # [K, N]
    counts = members.sum(1, keepdim=True)
    return (members / counts.clamp(min=1.0))[counts[:, 0] > 0]


def logit_distance(means: Tensor | None) -> Distance:
    """Return the distance between log-probabilities: of pairs, or of ``means [R, N]`` over them."""

    def distance(real: Trace, fake: Trace) -> Tensor:
        gap = fake.logits.log_softmax(1) - real.logits.log_softmax(1)
        return (gap if means is None else means.to(gap) @ gap).square().mean()

    return distance


def feature_distance(
    means: Tensor, kind: Literal["l1", "mse"], layers: Sequence[int] | None = None
) -> Distance:
    """Return the distance between mean feature maps.

    Args:
        means: ``[R, N]``, from ``group_means``.
        kind: ``"l1"``: the sum of absolute differences, over all blocks too; ``"mse"``: the mean
            square of the difference over that of the real mean, averaged over the blocks.
        layers: Numbers of the blocks that are compared, 0 the shallowest; None compares all.
    """

    def distance(real: Trace, fake: Trace) -> Tensor:
        total = fake.logits.new_zeros(())
        chosen = range(len(real.maps)) if layers is None else layers
        if max(chosen) >= len(real.maps):
            raise ConfigError(
                f"layers: expected blocks 0 to {len(real.maps) - 1}, got {max(chosen)}; name "
                "blocks that every network of the pool has"
            )
        for layer in chosen:
            average = means.to(fake.logits)
            mean = average @ real.maps[layer].flatten(1)
            gap = average @ fake.maps[layer].flatten(1) - mean
            if kind == "l1":
                total = total + gap.abs().sum()
            else:
                # a block may be silent, where every activation is 0
                size = mean.square().mean().clamp(min=1e-12)
                total = total + gap.square().mean() / size / len(chosen)
        return total

    return distance


def match_outputs(
    student: Student,
    theta: Tensor,
    real: Tensor,
    fake: Tensor,
    distances: Sequence[Distance],
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the distances ``[D]`` and the gradient of their weighted sum in the fake images.

    Args:
        student: The network.
        theta: Its parameters ``[P]``.
        real: Real images, normalised, ``[N, C, S, S]``.
        fake: Generated images, normalised, ``[N, C, S, S]``.
        distances: The distances.
        weights: Their weights ``[D]``.

    Cost: a forward pass over the real images; a forward and a backward one over the generated.
    """
    with torch.no_grad():
        of_real = student.trace(theta, real)
    leaf = fake.detach().requires_grad_()
    with torch.enable_grad():
        of_fake = student.trace(theta, leaf)
        values = torch.stack([distance(of_real, of_fake) for distance in distances])
        (grad,) = torch.autograd.grad((weights * values).sum(), leaf)
    return values.detach(), grad


def compared_parameters(student: Student) -> Tensor:
    """Return the mask ``[P]`` of the parameters whose gradients are compared: of convolutions.

    Those of linear layers, but for the last, where there is no convolution.
    """
    shapes = [slot.shape for slot in student.slots]
    most = max(len(shape) for shape in shapes)
    linear = [i for i, shape in enumerate(shapes) if len(shape) == 2]
    dropped = linear[-1] if most == 2 else -1
    return torch.cat(
        [
            torch.full((slot.numel,), float(len(slot.shape) >= min(most, 4) and i != dropped))
            for i, slot in enumerate(student.slots)
        ]
    )


def match_gradients(
    student: Student, theta: Tensor, real: Tensor, fake: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``sum |g(real) - g(fake)|`` over the compared parameters and its gradient in ``fake``.

    Args:
        student: The network.
        theta: Its parameters ``[P]``.
        real: Real images, normalised, ``[N, C, S, S]``.
        fake: Generated images, normalised, ``[N, C, S, S]``.
        labels: Classes of both, int64 ``[N]``.

    Cost: a gradient over either batch, and the derivative of one in a direction.
    """
    mask = compared_parameters(student).to(theta)
    _, of_real = student.loss_and_grad(theta, real, labels)
    losses = []

    def direction(of_fake: Tensor) -> Tensor:
        gap = (of_fake - of_real) * mask
        losses.append(gap.abs().sum())
        return gap.sign()

    grad = student.grad_then_images_tangent(theta, fake, labels, direction)
    return losses[0], grad
