"""`stylegan2_layer`: a layer of StyleGAN2 forward and backward, ours beside published forms.

Modulated 3x3 convolution, FIR where the layer doubles the size, noise, bias, leaky ReLU.  Gradients
of features and styles ("latents": what distilling into them needs), and of weights, biases and
noise too ("training": of the generator).  Before anything is timed, value and gradients are checked
against the grouped form in float64."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.measurement import Call, clock_of, interleaved
from benchmarks.op_runs import Result, tried
from benchmarks.peers.generator_layers import PEERS, Layer, grouped
from kdistill import ops
from kdistill.ops import AUTOMATIC_ORDER
from kdistill.priors.stylegan.operators import styled_conv, upsampling_taps
from kdistill.testing.tolerance import ToleranceError, assert_close_enough

BATCH = 10
NOISE = 12.0  # demodulated features have deviation 1
NAMES = tuple(f"gradient of {name}" for name in ("x", "styles", "weight", "bias", "noise"))
METRICS = {
    "latents": (0, 1),
    "training": (0, 1, 2, 3, 4),
}  # gradients in which of x, styles, weight, bias, noise


@dataclass(frozen=True)
class Sizes:
    """Channels in and out, side of the map that comes in, and whether the layer doubles it."""

    inward: int
    outward: int
    side: int
    doubles: bool

    def __str__(self) -> str:
        return f"n{BATCH}_{self.inward}to{self.outward}_{self.side}px" + (
            "_up" if self.doubles else ""
        )

    @property
    def depth(self) -> float:
        """Additions behind one entry of a gradient.

        They are those of the convolution forward and backward, and sums over pixels and images.
        """
        return (
            2.0 * 9 * (self.inward + self.outward) + BATCH * (self.side * (1 + self.doubles)) ** 2
        )


SIZES = (
    Sizes(64, 64, 32, False),
    Sizes(64, 64, 16, True),
    Sizes(128, 128, 16, False),
    Sizes(512, 512, 8, False),
)


def ours_on(backend: str, taps: Tensor | None) -> Layer:
    """Return our layer on a backend, made with the taps along one axis, as in a generator."""

    def layer(
        x: Tensor, styles: Tensor, weight: Tensor, bias: Tensor, noise: Tensor, taps: Tensor | None
    ) -> Tensor:
        with ops.use_backend(backend):
            return styled_conv(x, weight, styles, noise, bias, taps=own_taps, clamp=None)

    own_taps = None if taps is None else upsampling_taps(taps)
    return layer


def inputs(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """Return x, styles, weight, bias, noise and taps; the noise keeps activations away from 0."""
    drawn = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=drawn, dtype=torch.float64)

    x, styles = (
        randn(BATCH, sizes.inward, sizes.side, sizes.side),
        1.0 + 0.3 * randn(BATCH, sizes.inward),
    )
    weight, bias = randn(sizes.outward, sizes.inward, 3, 3), randn(sizes.outward)
    taps = None
    if sizes.doubles:
        line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
        taps = torch.outer(line, line)
    side = sizes.side * (2 if sizes.doubles else 1)
    noise = NOISE * randn(BATCH, side, side).sign() + randn(BATCH, side, side)
    return tuple(
        None if t is None else t.to(device, dtype) for t in (x, styles, weight, bias, noise, taps)
    )


def gradients(
    layer: Layer, given: tuple[Tensor | None, ...], wrt: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Return value and gradients for one random cotangent, the same in every dtype."""
    leaves, wanted = _leaves(given, wrt)
    out = layer(*leaves)
    drawn = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return out.detach(), *torch.autograd.grad(out, wanted, drawn.to(out))


def bound(layer: Layer, given: tuple[Tensor | None, ...], wrt: tuple[int, ...]) -> Call:
    """Return one forward and backward pass."""
    leaves, wanted = _leaves(given, wrt)
    cotangent = torch.ones_like(layer(*leaves))
    return lambda: torch.autograd.grad(layer(*leaves), wanted, cotangent)


def _leaves(
    given: tuple[Tensor | None, ...], wrt: tuple[int, ...]
) -> tuple[list[Tensor | None], list[Tensor]]:
    leaves = [
        t if t is None else t.detach().clone(memory_format=torch.preserve_format) for t in given
    ]
    return leaves, [leaves[i].requires_grad_() for i in wrt]


def check(layer: Layer, given: tuple[Tensor | None, ...], sizes: Sizes) -> str:
    """Return "ok", or how value or gradients differ from the grouped form in float64."""
    wrt = METRICS["training"]
    exact = tuple(t if t is None else t.double() for t in given)
    results = (
        gradients(layer, given, wrt),
        gradients(grouped, given, wrt),
        gradients(grouped, exact, wrt),
    )
    try:
        for what, ours_, eager, truth in zip(("value", *NAMES), *results, strict=True):
            assert_close_enough(
                ours_, eager, truth, sizes.depth, f"stylegan2_layer {sizes}: {what}"
            )
    except ToleranceError as error:
        return f"wrong: {error}"
    return "ok"


def run_stylegan2_layer(
    device: torch.device, dtype: torch.dtype, seconds: float, quick: bool, check_only: bool
) -> Iterator[Result]:
    """Yield one result per size, metric, backend and peer."""
    for sizes in SIZES[:1] if quick else SIZES:
        given = inputs(sizes, device, dtype)
        common = (str(sizes), str(dtype).removeprefix("torch."))
        names = [name for name in AUTOMATIC_ORDER[device.type] if name != "reference"]
        layers = {name: ours_on(name, given[-1]) for name in names}
        statuses = {
            name: tried(partial(check, layer, given, sizes))
            for name, layer in (layers | PEERS).items()
        }
        for metric, wrt in METRICS.items():
            for name, status in statuses.items():
                if status != "ok" or check_only:
                    yield Result("stylegan2_layer", name, *common, metric, status)
            if check_only:
                continue
            # ours begins where our layer before it ended, in channels-last memory
            own = (given[0].contiguous(memory_format=torch.channels_last), *given[1:])
            calls = {
                name: bound(layer, own, wrt)
                for name, layer in layers.items()
                if statuses[name] == "ok"
            }
            calls |= {
                name: bound(layer, given, wrt)
                for name, layer in PEERS.items()
                if statuses[name] == "ok"
            }
            for name, readings in interleaved(calls, seconds, clock_of(device)).items():
                for what, timing in readings.items():
                    yield Result(
                        "stylegan2_layer",
                        name,
                        *common,
                        f"{metric}_{what}" if what else metric,
                        "ok",
                        timing,
                    )
