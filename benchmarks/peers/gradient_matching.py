"""Gradient matching in plain PyTorch: the published loop over classes, and torch.func.

Written from the descriptions in Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching
(ICLR 2021), and Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation (ICML
2021).  Both return (loss, gradient in the images)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, jvp

from benchmarks.peers.distribution_matching import (
    ConvNet,
    Transformation,
    draw_transformation,
    transform,
)

EPS = 1e-6


def distance(syn: list[Tensor], real: list[Tensor]) -> Tensor:
    """Return the sum over output units of 1 - cos; tensors of one dimension are left out."""
    total = syn[0].new_zeros(())
    for s, r in zip(syn, real, strict=True):
        if s.ndim >= 2:
            a, b = s.flatten(1), r.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPS)).sum()
    return total


def per_class_gradient(
    net: ConvNet, real: Tensor, images: Tensor, drawn: list[Transformation] | None
) -> tuple[Tensor, Tensor]:
    """Return loss and image gradient by one backward pass through the gradients of all classes.

    Args:
        net: The student.
        real: ``[K, N, C, H, W]``, the real images of each class.
        images: ``[K, M, C, H, W]``, the synthetic ones.
        drawn: A transformation per class, or None.
    """
    parameters = list(net.parameters())
    images = images.detach().requires_grad_()
    loss = images.new_zeros(())
    for c in range(len(real)):
        of_real, of_syn = _augmented(real[c], images[c], drawn, c)
        real_grads = torch.autograd.grad(
            F.cross_entropy(net(of_real), _labels(of_real, c)), parameters
        )
        syn_grads = torch.autograd.grad(
            F.cross_entropy(net(of_syn), _labels(of_syn, c)), parameters, create_graph=True
        )
        loss = loss + distance(list(syn_grads), [g.detach() for g in real_grads])
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def forward_over_reverse(
    net: ConvNet, real: Tensor, images: Tensor, drawn: list[Transformation] | None
) -> tuple[Tensor, Tensor]:
    """Return the same, class by class, as a tangent of the image gradient.

    Its direction is the derivative of the distance.
    """
    names, values = zip(*((name, p.detach()) for name, p in net.named_parameters()), strict=True)
    found, loss = torch.empty_like(images), images.new_zeros(())

    def cross_entropy(parameters: tuple[Tensor, ...], x: Tensor, c: int) -> Tensor:
        return F.cross_entropy(
            functional_call(net, dict(zip(names, parameters, strict=True)), (x,)), _labels(x, c)
        )

    for c in range(len(real)):
        leaf = images[c].detach().requires_grad_()
        with torch.enable_grad():
            of_real, of_syn = _augmented(real[c], leaf, drawn, c)
        of_syn_values = of_syn.detach()
        real_grads = grad(cross_entropy)(values, of_real, c)
        syn_grads = [
            g.detach().requires_grad_() for g in grad(cross_entropy)(values, of_syn_values, c)
        ]
        of_class = distance(syn_grads, list(real_grads))
        v = torch.autograd.grad(of_class, syn_grads, materialize_grads=True)
        _, tangent = jvp(
            lambda p, x=of_syn_values, c=c: grad(cross_entropy, argnums=1)(p, x, c), (values,), (v,)
        )
        found[c] = torch.autograd.grad(of_syn, leaf, tangent)[0]
        loss = loss + of_class.detach()
    return loss, found


def _augmented(
    real: Tensor, syn: Tensor, drawn: list[Transformation] | None, c: int
) -> tuple[Tensor, Tensor]:
    if drawn is None:
        return real, syn * 1  # not the leaf itself
    return transform(real, drawn[c]), transform(syn, drawn[c])


def _labels(images: Tensor, c: int) -> Tensor:
    return torch.full((len(images),), c, device=images.device)


Gradient = Callable[[ConvNet, Tensor, Tensor, list[Transformation] | None], tuple[Tensor, Tensor]]
EXACT: dict[str, Gradient] = {
    "published loop": per_class_gradient,
    "torch.func": forward_over_reverse,
}


class Iteration:
    """Matching steps at one network: new transformations, the gradient, a step on the images."""

    def __init__(self, gradient: Gradient, net: ConvNet, real: Tensor, images: Tensor):
        self.gradient, self.net, self.real, self.images = gradient, net, real, images.clone()
        self.optimiser = torch.optim.SGD([self.images], lr=0.1, momentum=0.5)
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> Tensor:
        drawn = [
            draw_transformation(self.real.shape[-1], self.generator) for _ in range(len(self.real))
        ]
        loss, self.images.grad = self.gradient(self.net, self.real, self.images, drawn)
        self.optimiser.step()
        return loss
