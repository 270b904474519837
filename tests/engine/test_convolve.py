"""Convolutions that autograd walks through, against the library's in float64."""

import pytest
import torch
from torch.nn import functional as F

from kdistill import ops
from kdistill.engine.convolve import MIN_CHANNELS, convolve, convolve_scaled
from kdistill.testing.backends import runnable_backends


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def library(x, scale, weight, padding):
    return F.conv2d(x * scale[:, :, None, None], weight, padding=padding)


def is_ours(out):
    return type(out.grad_fn).__name__ != "ConvolutionBackward0"


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("side", [7, 8])
def test_winograd_and_library_agree_in_value_and_gradients(side, padding, monkeypatch):
    monkeypatch.setenv("KDISTILL_CONVOLUTION", "winograd")
    x, weight = randn(3, 5, side, side).requires_grad_(), randn(6, 5, 3, 3, seed=1).requires_grad_()
    out, wanted = convolve(x, weight, padding), F.conv2d(x, weight, padding=padding)
    assert is_ours(out)
    torch.testing.assert_close(out, wanted)
    cotangent = randn(*out.shape, seed=2)
    found, known = (torch.autograd.grad(y, (x, weight), cotangent) for y in (out, wanted))
    for a, b in zip(found, known, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_first_and_second_order(monkeypatch):
    monkeypatch.setenv("KDISTILL_CONVOLUTION", "winograd")
    given = randn(1, 5, 4, 4).requires_grad_(), randn(2, 5, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: convolve(x, w, 1), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, w: convolve(x, w, 1), given, fast_mode=True)


def test_only_wanted_gradients_are_made(monkeypatch):
    monkeypatch.setenv("KDISTILL_CONVOLUTION", "winograd")
    x, weight = randn(2, 5, 8, 8), randn(6, 5, 3, 3, seed=1)
    for wanted in (x, weight):
        wanted.requires_grad_()
        (grad,) = torch.autograd.grad(convolve(x, weight, 1).sum(), wanted)
        (known,) = torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), wanted)
        torch.testing.assert_close(grad, known)
        wanted.requires_grad_(False)


@pytest.mark.parametrize(
    ("shape", "weight", "ours"),
    [
        ((2, 48, 16, 16), (48, 48, 3, 3), True),
        ((2, 48, 16, 16), (MIN_CHANNELS - 1, 48, 3, 3), False),
        ((1, 48, 8, 8), (48, 48, 3, 3), False),  # few tiles
        ((2, 48, 16, 12), (48, 48, 3, 3), True),
        ((2, 48, 16, 16), (48, 48, 1, 1), False),
        ((0, 48, 16, 16), (48, 48, 3, 3), False),
    ],
)
def test_where_winograd_pays(shape, weight, ours, monkeypatch):
    monkeypatch.delenv("KDISTILL_CONVOLUTION", raising=False)
    x = torch.randn(shape, requires_grad=True)
    assert is_ours(convolve(x, torch.randn(weight), weight[2] // 2)) == (
        ours and "cpu" in runnable_backends()
    )
    with ops.use_backend("reference"):
        assert not is_ours(convolve(x, torch.randn(weight), weight[2] // 2))


@pytest.mark.parametrize(
    ("outputs", "kernel", "padding"), [(3, 1, 0), (5, 1, 0), (3, 1, 1), (6, 3, 2), (6, 3, 1)]
)
def test_the_scale_of_every_image_and_channel(outputs, kernel, padding):
    x = randn(2, 4, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    scale = randn(2, 4, seed=1).requires_grad_()
    weight = randn(outputs, 4, kernel, kernel, seed=2).requires_grad_()
    out, wanted = convolve_scaled(x, scale, weight, padding), library(x, scale, weight, padding)
    torch.testing.assert_close(out, wanted)
    cotangent = randn(*out.shape, seed=3)
    found, known = (torch.autograd.grad(y, (x, scale, weight), cotangent) for y in (out, wanted))
    for a, b in zip(found, known, strict=True):
        torch.testing.assert_close(a, b)
    with ops.use_backend("reference"):
        assert torch.equal(
            convolve_scaled(x, scale, weight, padding), library(x, scale, weight, padding)
        )


def test_under_autocast_the_library_converts_what_differs():
    x, weight = (
        randn(3, 32, 8, 8, dtype=torch.bfloat16),
        randn(32, 32, 3, 3, seed=1, dtype=torch.float32),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = convolve(x, weight, 1)
    torch.testing.assert_close(out, F.conv2d(x, weight.bfloat16(), padding=1))
