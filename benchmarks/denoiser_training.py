"""A training step of the default U-Net and its parts, our ops beside eager PyTorch.

    python -m benchmarks.denoiser_training                  # on mnist5k, one thread
    python -m benchmarks.denoiser_training --data photo-patches --threads 2

Contestants run in turns in one process; a table holds the time of this process on the processor
(all threads) in milliseconds, the median of the rounds, so that other processes disturb little.
Before anything is timed, loss and gradient of the step are compared."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import kdistill
from kdistill.ops import group_norm_silu
from kdistill.priors.diffusion.networks.base import Convolution, GroupNormSilu
from kdistill.priors.diffusion_training import DiffusionSpec, new_denoising_training
from kdistill.testing.cases.group_norm_silu import eager

Call = Callable[[], object]
SHAPES = ((32, 64, 16, 16), (32, 128, 8, 8), (32, 256, 4, 4), (16, 64, 32, 32))
TOKENS = ((32, 3, 66, 64), (32, 3, 258, 64))  # images, heads, tokens, length of a head


def eager_norm(self: GroupNormSilu, x: Tensor, modulation: Tensor | None = None) -> Tensor:
    """Return what ``GroupNormSilu`` does, by PyTorch's own ops."""
    return eager(x, self.weight, self.bias, modulation)


@contextmanager
def forwards(convolution: bool, norm: bool) -> Iterator[None]:
    """Let these layers use our ops, and others PyTorch's."""
    ours = Convolution.forward if convolution else nn.Conv2d.forward
    norms = GroupNormSilu.forward if norm else eager_norm
    with patch.object(Convolution, "forward", ours), patch.object(GroupNormSilu, "forward", norms):
        yield


def in_turns(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Return the median of every call's milliseconds on the processor."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            samples[name].append((time.process_time() - start) * 1e3)
    return {name: median(values) for name, values in samples.items()}


def both_ways(function: Callable[..., Tensor], *inputs: Tensor) -> Call:
    """Return a forward and backward pass in all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    cotangent = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, cotangent)


def steps(data: str, rounds: int) -> dict[str, float]:
    """Return the milliseconds of a training step with and without our ops."""
    task = new_denoising_training(DiffusionSpec(), kdistill.load_data(data, quiet=True))
    state = task.start()
    theta = state.tensors["network"]
    noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    choices = {
        "eager": (False, False),
        "Winograd": (True, False),
        "group_norm_silu": (False, True),
        "both": (True, True),
    }
    gradients, calls = {}, {}
    for name, choice in choices.items():
        with forwards(*choice):
            moved = (theta + 0.01 * noise).requires_grad_()
            (gradients[name],) = torch.autograd.grad(task.loss(moved, 3), moved)

        def step(choice: tuple[bool, bool] = choice) -> None:
            with forwards(*choice):
                task.iterate(state)

        calls[name] = step
    scale = float(gradients["eager"].norm())
    errors = {name: float((g - gradients["eager"]).norm()) / scale for name, g in gradients.items()}
    print(f"relative difference of the gradient: {errors}")
    return in_turns(calls, rounds)


def layers(shape: tuple[int, ...]) -> dict[str, Call]:
    """Return the contestants of one shape of feature maps, forward and backward."""
    torch.manual_seed(0)
    channels = shape[1]
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(channels), torch.randn(channels)
    rows, kernel = torch.randn(shape[0], 2 * channels), torch.randn(channels, channels, 3, 3)

    def ours(x: Tensor, weight: Tensor, bias: Tensor, rows: Tensor | None = None) -> Tensor:
        return group_norm_silu(x, weight, bias, rows, groups=channels // 8)

    def convolve(x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(x, kernel, padding=1)

    convolution = Convolution(channels, channels)
    return {
        "norm, SiLU: eager": both_ways(eager, x, weight, bias),
        "norm, SiLU: ours": both_ways(ours, x, weight, bias),
        "norm, scale, SiLU: eager": both_ways(eager, x, weight, bias, rows),
        "norm, scale, SiLU: ours": both_ways(ours, x, weight, bias, rows),
        "3x3, channels first: eager": both_ways(convolve, x.contiguous(), kernel),
        "3x3, channels last: eager": both_ways(convolve, x, kernel),
        "3x3, channels last: ours": both_ways(convolution, x),
    }


def attention(shape: tuple[int, ...]) -> dict[str, Call]:
    """Return the contestants of one shape of queries, and layer norm and GELU beside them."""
    torch.manual_seed(0)
    images, heads, tokens, length = shape
    q, k, v = (torch.randn(shape) for _ in range(3))
    x, hidden = (torch.randn(images, tokens, f * heads * length) for f in (1, 4))

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q * length**-0.5 @ k.transpose(-1, -2)).softmax(-1) @ v

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)

    return {
        "attention: torch": both_ways(F.scaled_dot_product_attention, q, k, v),
        "attention: torch, MATH": both_ways(formula, q, k, v),
        "attention: softmax(q k) v": both_ways(plain, q, k, v),
        "layer norm": both_ways(lambda x: F.layer_norm(x, x.shape[-1:]), x),
        "GELU": both_ways(F.gelu, hidden),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of a denoiser's training step.")
    parser.add_argument("--data", default="mnist5k")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, ms in steps(options.data, options.rounds).items():
        print(f"step, {options.data}, {name}: {ms:.1f} ms")
    for make, shapes in ((layers, SHAPES), (attention, TOKENS)):
        for shape in shapes:
            for name, ms in in_turns(make(shape), options.rounds).items():
                print(f"{list(shape)}, {name}: {ms:.2f} ms")


if __name__ == "__main__":
    main()
