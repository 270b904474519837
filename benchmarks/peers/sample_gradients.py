"""Norms of per-sample gradients by Opacus and BackPACK, where they can be imported.

BackPACK has no rule for GroupNorm, the student's norm; it gets one here, by the door that it has
for that."""

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
            found.append(
                torch.stack([p.grad.square().sum() for p in net.parameters() if p.grad is not None])
                .sum()
                .sqrt()
            )
        return torch.stack(found)

    return norms


def by_vmap(net: nn.Module, images: Tensor, labels: Tensor) -> Norms:
    """Return ``vmap(grad)``."""
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(params: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(net, params, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    return lambda: (
        torch.stack([g.flatten(1).square().sum(1) for g in each(params, images, labels).values()])
        .sum(0)
        .sqrt()
    )


def by_opacus(net: nn.Module, images: Tensor, labels: Tensor, ghost: bool) -> Norms:
    """Return Opacus with its settings for sums of losses; ``ghost`` is fast gradient clipping."""
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
        return (
            torch.stack([p.grad_sample.flatten(1).square().sum(1) for p in wrapped.parameters()])
            .sum(0)
            .sqrt()
        )

    return norms


def by_backpack(net: nn.Module, images: Tensor, labels: Tensor) -> Norms:
    """Return BackPACK's ``BatchL2Grad``, with a rule for the norm."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad
    from backpack.extensions.firstorder.base import FirstOrderModuleExtension

    class GroupNormRule(FirstOrderModuleExtension):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(params=["weight", "bias"])

        def weight(
            self,
            ext: object,
            module: nn.GroupNorm,
            g_inp: object,
            g_out: tuple[Tensor],
            quantities: object,
        ) -> Tensor:
            unit = functional.group_norm(module.input0, module.num_groups, eps=module.eps)
            return (g_out[0] * unit).flatten(2).sum(2).square().sum(1)

        def bias(
            self,
            ext: object,
            module: nn.GroupNorm,
            g_inp: object,
            g_out: tuple[Tensor],
            quantities: object,
        ) -> Tensor:
            return g_out[0].flatten(2).sum(2).square().sum(1)

    extension = BatchL2Grad()
    extension.set_module_extension(nn.GroupNorm, GroupNormRule())
    wrapped, loss = extend(copy.deepcopy(net)), extend(nn.CrossEntropyLoss(reduction="sum"))

    def norms() -> Tensor:
        wrapped.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks, and of containers without a rule
            with backpack(extension):
                loss(wrapped(images), labels).backward()
        return torch.stack([p.batch_l2 for p in wrapped.parameters()]).sum(0).sqrt()

    return norms


def peers(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[dict[str, Norms], list[str]]:
    """Return the peers that run here, and the names of those that are absent."""
    found = {
        "per-sample loop": by_loop(net, images, labels),
        "vmap(grad)": by_vmap(net, images, labels),
    }
    absent = []
    if importlib.util.find_spec("opacus") is None:
        absent += ["Opacus", "Opacus ghost clipping"]
    else:
        found["Opacus"] = by_opacus(net, images, labels, ghost=False)
        found["Opacus ghost clipping"] = by_opacus(net, images, labels, ghost=True)
    if importlib.util.find_spec("backpack") is None:
        absent.append("BackPACK")
    else:
        found["BackPACK"] = by_backpack(net, images, labels)
    return found, absent
