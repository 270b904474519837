"""Trajectory matching in plain PyTorch: unroll, TESLA, and the adjoint by torch.func.

Written from the descriptions in Cazenavette et al., Dataset Distillation by Matching Training
Trajectories (CVPR 2022), and Cui et al., Scaling Up Dataset Distillation to ImageNet-1K with
Constant Memory (ICML 2023).  Every function returns (loss, gradient in the images, gradient in the
learning rate) of ``|theta_N - target|^2 / |start - target|^2`` after N steps on all images."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from benchmarks.peers import differentiable_optimisers as libraries

Gradients = tuple[Tensor, Tensor, Tensor]


class Flat:
    """A module as a function of one flat parameter vector, as in the published code."""

    def __init__(self, net: nn.Module):
        self.net = net
        self.names, tensors = zip(*net.named_parameters(), strict=True)
        self.shapes = [t.shape for t in tensors]
        self.sizes = [t.numel() for t in tensors]

    def loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        parts = (
            part.view(shape)
            for part, shape in zip(theta.split(self.sizes), self.shapes, strict=True)
        )
        return F.cross_entropy(
            functional_call(self.net, dict(zip(self.names, parts, strict=True)), (images,)), labels
        )

    def gradient(
        self, theta: Tensor, images: Tensor, labels: Tensor, create_graph: bool = False
    ) -> Tensor:
        leaf = theta if create_graph else theta.detach().requires_grad_()
        return torch.autograd.grad(
            self.loss(leaf, images, labels), leaf, create_graph=create_graph
        )[0]


def unroll(
    net: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: float,
    steps: int,
) -> Gradients:
    """Keep the graphs of all steps and differentiate through them."""
    model, images = Flat(net), images.detach().requires_grad_()
    alpha, theta = (
        torch.tensor(lr, dtype=start.dtype, device=start.device, requires_grad=True),
        start.detach().requires_grad_(),
    )
    for _ in range(steps):
        theta = theta - alpha * model.gradient(theta, images, labels, create_graph=True)
    loss = (theta - target).square().sum() / (start - target).square().sum()
    return loss.detach(), *torch.autograd.grad(loss, [images, alpha])


class Passes:
    """The two passes that the adjoint takes, by ``torch.func``, as they are or compiled."""

    def __init__(self, net: nn.Module, compiler: str | None = None):
        model = Flat(net)
        both = grad(model.loss, argnums=(0, 1))

        def tangents(
            theta: Tensor, lam: Tensor, images: Tensor, labels: Tensor
        ) -> tuple[tuple[Tensor, Tensor], ...]:
            return jvp(lambda t: both(t, images, labels), (theta,), (lam,))

        self.gradient, self.tangents = model.gradient, tangents
        if compiler:
            self.gradient = torch.compile(grad(model.loss), backend=compiler)
            self.tangents = torch.compile(tangents, backend=compiler)


def forward_over_reverse(
    net: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: float,
    steps: int,
    passes: Passes | None = None,
) -> Gradients:
    """Differentiate the gradients in the direction lambda with ``torch.func``, step by step."""
    passes, thetas = passes or Passes(net), [start]
    for _ in range(steps):
        thetas.append(thetas[-1] - lr * passes.gradient(thetas[-1], images, labels))
    scale = (start - target).square().sum()
    loss, lam = (thetas[-1] - target).square().sum() / scale, 2 * (thetas[-1] - target) / scale
    total, slope = torch.zeros_like(images), start.new_zeros(())
    for theta in reversed(thetas[:-1]):
        (g, _), (hvp, cross) = passes.tangents(theta, lam, images, labels)
        total -= lr * cross
        slope -= g @ lam
        lam = lam - lr * hvp
    return loss, total, slope


def tesla(
    net: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: float,
    steps: int,
) -> Gradients:
    """Sum the gradients, then differentiate each on its own; this is not the exact gradient."""
    model, thetas, whole = Flat(net), [start], torch.zeros_like(start)
    for _ in range(steps):
        g = model.gradient(thetas[-1], images, labels)
        whole += g
        thetas.append(thetas[-1] - lr * g)
    scale = (start - target).square().sum()
    rest = start - lr * whole - target
    images = images.detach().requires_grad_()
    total = torch.zeros_like(images)
    for theta in thetas[:-1]:
        leaf = theta.detach().requires_grad_()
        total += torch.autograd.grad(
            -2 * lr / scale * (rest @ model.gradient(leaf, images, labels, create_graph=True)),
            images,
        )[0]
    return rest.square().sum() / scale, total, -2 * (whole @ rest) / scale


_compiled: WeakKeyDictionary[nn.Module, Passes] = WeakKeyDictionary()


def compiled_forward_over_reverse(
    net: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: float,
    steps: int,
    compiler: str = "inductor",
) -> Gradients:
    """Return the same through ``torch.compile``; a network's first call takes minutes."""
    if net not in _compiled:
        _compiled[net] = Passes(net, compiler)
    return forward_over_reverse(net, start, target, images, labels, lr, steps, _compiled[net])


COMPILED = "torch.func, compiled"
EXACT: dict[str, Callable[..., Gradients]] = {
    "published unroll": unroll,
    "torch.func": forward_over_reverse,
    **libraries.EXACT,
}
