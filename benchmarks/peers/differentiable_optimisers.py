"""Trajectory matching through TorchOpt and higher, as their pages recommend.

Both are optional (extra ``peers``); ``ABSENT`` says why one is not there.  Each takes its own
stateful interface around an
``nn.Module``: a differentiable SGD whose learning rate is a tensor, N steps, one backward pass.
"""

import copy
import importlib
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gradients = tuple[Tensor, Tensor, Tensor]
Peer = Callable[..., Gradients]


def _found(name: str) -> ModuleType | str:
    try:
        return importlib.import_module(name)
    except (
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # a compiled part that does not fit this torch raises the other two
        return f"absent: {' '.join(str(error).split())}; pip install -e '.[peers]'"


def torchopt_unroll(
    net: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: float,
    steps: int,
) -> Gradients:
    """``torchopt.MetaSGD``: every step replaces the module's parameters by differentiable ones."""
    torchopt = importlib.import_module("torchopt")
    net, images, alpha = _prepared(net, start, images, lr)
    optimiser = torchopt.MetaSGD(
        net, lr=lambda count: alpha
    )  # a schedule: a plain number would not be differentiated
    for _ in range(steps):
        optimiser.step(F.cross_entropy(net(images), labels))
    return _matched(list(net.parameters()), start, target, images, alpha)


def higher_unroll(
    net: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: float,
    steps: int,
) -> Gradients:
    """``higher.innerloop_ctx``: a functional copy of the module and a differentiable optimiser."""
    higher = importlib.import_module("higher")
    net, images, alpha = _prepared(net, start, images, lr)
    plain = torch.optim.SGD(net.parameters(), lr=lr)
    with higher.innerloop_ctx(net, plain, override={"lr": [alpha]}) as (inner, optimiser):
        for _ in range(steps):
            optimiser.step(F.cross_entropy(inner(images), labels))
        return _matched(list(inner.parameters()), start, target, images, alpha)


def _prepared(
    net: nn.Module, start: Tensor, images: Tensor, lr: float
) -> tuple[nn.Module, Tensor, Tensor]:
    net = copy.deepcopy(net)
    torch.nn.utils.vector_to_parameters(start.detach(), net.parameters())
    return net, images.detach().requires_grad_(), start.new_tensor(lr).requires_grad_()


def _matched(
    parameters: list[Tensor], start: Tensor, target: Tensor, images: Tensor, alpha: Tensor
) -> Gradients:
    theta = torch.cat([parameter.flatten() for parameter in parameters])
    loss = (theta - target).square().sum() / (start - target).square().sum()
    return loss.detach(), *torch.autograd.grad(loss, [images, alpha])


_KNOWN: dict[str, tuple[str, Peer]] = {
    "TorchOpt": ("torchopt", torchopt_unroll),
    "higher": ("higher", higher_unroll),
}
_MODULES = {name: _found(module) for name, (module, _) in _KNOWN.items()}
EXACT: dict[str, Peer] = {
    name: peer for name, (_, peer) in _KNOWN.items() if not isinstance(_MODULES[name], str)
}
ABSENT: dict[str, str] = {name: found for name, found in _MODULES.items() if isinstance(found, str)}
