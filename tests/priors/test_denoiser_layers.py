"""Layers of the trainable denoisers against plain PyTorch in float64."""

import pytest
import torch
from torch.nn import functional as F

from kdistill.engine.convolve import takes_winograd
from kdistill.priors.diffusion.networks import UNet
from kdistill.priors.diffusion.networks.base import Convolution


@pytest.mark.parametrize("channels", [4, 16], ids=["library", "winograd"])
def test_a_convolution_and_its_derivatives_are_those_of_the_plain_sum(channels):
    torch.manual_seed(0)
    layer = Convolution(channels, 17).double()
    x = torch.randn(3, channels, 7, 7, dtype=torch.float64, requires_grad=True)
    results = []
    for out in (layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1)):
        cotangent = torch.randn(
            out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        leaves = (x, layer.weight, layer.bias)
        grads = torch.autograd.grad(out.square(), leaves, cotangent, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
        results.append((out, *grads, *second))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-9)


def test_the_convolutions_of_the_default_unet_run_by_winograds_algorithm(monkeypatch):
    monkeypatch.delenv("KDISTILL_CONVOLUTION", raising=False)
    sizes = {"patch": 2, "widths": (32, 64), "blocks": 1, "embedding": 16}
    network = UNet(1, 10, **sizes, prediction="v")
    taken = []
    for layer in network.modules():
        if isinstance(layer, Convolution):
            layer.register_forward_pre_hook(
                lambda layer, args: taken.append(takes_winograd(args[0], layer.weight, 1))
            )
    with torch.no_grad():
        network(torch.zeros(2, 1, 28, 28), torch.zeros(2).long(), torch.zeros(2).long())
    assert len(taken) == 19 and sum(taken) == 17  # all but the first and the last
