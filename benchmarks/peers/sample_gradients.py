"""Norms of per-sample gradients as others compute them, on one plain network.  Opacus is a peer where it can be imported.

BackPACK is not: it has no rule for GroupNorm, which is the student's norm.
"""

import copy
import importlib.util
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

Norms = Callable[[], Tensor]


def forward_and_backward(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of one plain training step, gradients made: the yardstick."""
    net.zero_grad()
    loss = functional.cross_entropy(net(images), labels)
    loss.backward()
    return loss.detach()


def by_loop(net: nn.Module, images: Tensor, labels: Tensor) -> Norms:
    """Return the loop over images."""

    def norms() -> Tensor:
        found = []
        for i in range(len(images)):
            forward_and_backward(net, images[i : i + 1], labels[i : i + 1])
            found.append(torch.stack([p.grad.square().sum() for p in net.parameters() if p.grad is not None]).sum().sqrt())
        return torch.stack(found)

    return norms


def by_vmap(net: nn.Module, images: Tensor, labels: Tensor) -> Norms:
    """Return ``vmap(grad)``."""
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(params: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(net, params, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    return lambda: torch.stack([g.flatten(1).square().sum(1) for g in each(params, images, labels).values()]).sum(0).sqrt()


def by_opacus(net: nn.Module, images: Tensor, labels: Tensor, ghost: bool) -> Norms:
    """Return Opacus with its own settings for sums of losses; ``ghost`` is its fast gradient clipping."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

        if ghost:
            wrapped = GradSampleModuleFastGradientClipping(
                copy.deepcopy(net), max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="sum"
            )
        else:
            wrapped = GradSampleModule(copy.deepcopy(net), loss_reduction="sum")

    def norms() -> Tensor:
        wrapped.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            functional.cross_entropy(wrapped(images), labels, reduction="sum").backward()
        if ghost:
            return wrapped.get_norm_sample().detach()
        return torch.stack([p.grad_sample.flatten(1).square().sum(1) for p in wrapped.parameters()]).sum(0).sqrt()

    return norms


def peers(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[dict[str, Norms], list[str]]:
    """Return the peers that run here, and the names of those that are absent."""
    found = {"per-sample loop": by_loop(net, images, labels), "vmap(grad)": by_vmap(net, images, labels)}
    if importlib.util.find_spec("opacus") is None:
        return found, ["Opacus", "Opacus ghost clipping"]
    found["Opacus"] = by_opacus(net, images, labels, ghost=False)
    found["Opacus ghost clipping"] = by_opacus(net, images, labels, ghost=True)
    return found, []
