"""`stylegan3_layer`: a layer of StyleGAN3 forward and backward, ours beside published forms.

Modulated 3x3 convolution with full padding, bias, raise by an FIR, leaky ReLU, clamp, lowering by
an FIR.  Gradients of features
and styles: what distilling into them needs.  Before anything is timed, the value is checked against
    the grouped form in float64,
and value and gradients once more with everything in float64, where no rounding flips a mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.generator_layers import bound, gradients
from benchmarks.measurement import clock_of, interleaved
from benchmarks.op_runs import Result, tried
from benchmarks.peers.alias_free_layers import PEERS, Layer, grouped
from kdistill import ops
from kdistill.ops import AUTOMATIC_ORDER
from kdistill.priors.stylegan.operators import SLOPE, filtered_lrelu, modulated_conv
from kdistill.testing.tolerance import ToleranceError, assert_close_enough

BATCH = 4
NAMES = ("value", "gradient of x", "gradient of styles")
WRT = (0, 1)


@dataclass(frozen=True)
class Sizes:
    """Channels and sides of input and output, and the upsampling factor; downsampling is by 2."""

    inward: int
    outward: int
    side: int
    out: int
    up: int

    def __str__(self) -> str:
        return f"n{BATCH}_{self.inward}to{self.outward}_{self.side}to{self.out}px_up{self.up}"

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Left, right, above and below, as StyleGAN3 chooses them."""
        total = (self.out - 1) * 2 + 1 - (self.side + 2) * self.up + 6 * self.up + 12 - 2
        low = (total + self.up) // 2
        return low, total - low, low, total - low

    @property
    def depth(self) -> float:
        """Additions behind one entry of a gradient.

        They are those of the convolution forward and backward, both filters, and sums over pixels.
        """
        return 2.0 * 9 * (self.inward + self.outward) + 4.0 * 6 * self.up + self.side**2


# the layers of a network of 36 px and of one that grows to 52 and 84 px, with fewer channels
SIZES = (Sizes(128, 128, 36, 36, 2), Sizes(128, 128, 36, 52, 4), Sizes(128, 128, 36, 16, 2))


def ours(
    backend: str,
    x: Tensor,
    styles: Tensor,
    weight: Tensor,
    bias: Tensor,
    up: Tensor,
    down: Tensor,
    sizes: Sizes,
) -> Tensor:
    with ops.use_backend(backend):
        y = modulated_conv(x, weight, styles, demodulate=True, padding=2)
        filters = {
            "up_taps": up,
            "down_taps": down,
            "up": sizes.up,
            "down": 2,
            "padding": sizes.padding,
        }
        return filtered_lrelu(y, bias, **filters, slope=SLOPE, gain=2.0**0.5, clamp=256.0)


def inputs(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return x, styles, weight, bias and both filters, windowed low-passes of 6 taps per sample."""
    drawn = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=drawn, dtype=torch.float64)

    def low_pass(factor: int) -> Tensor:
        at = torch.arange(6 * factor, dtype=torch.float64) - (6 * factor - 1) / 2
        line = torch.sinc(at / factor) * torch.kaiser_window(
            6 * factor, periodic=False, beta=4.0, dtype=torch.float64
        )
        return line / line.sum()

    x, styles = (
        randn(BATCH, sizes.inward, sizes.side, sizes.side),
        1.0 + 0.3 * randn(BATCH, sizes.inward),
    )
    made = (
        x,
        styles,
        randn(sizes.outward, sizes.inward, 3, 3),
        randn(sizes.outward),
        low_pass(sizes.up),
        low_pass(2),
    )
    return tuple(t.to(device, dtype) for t in made)


def check(layer: Layer, given: tuple[Tensor, ...], sizes: Sizes) -> str:
    """Return "ok", or how value or gradients differ from the grouped form in float64."""
    exact = tuple(t.double() for t in given)
    truth = gradients(partial(grouped, sizes=sizes), exact, WRT)
    with torch.no_grad():
        pairs = [("value", layer(*given), grouped(*given, sizes=sizes), truth[0])]
    ours_, eager = (
        gradients(layer, exact, WRT),
        gradients(partial(PEERS["scale before and after"], sizes=sizes), exact, WRT),
    )
    pairs += [
        (f"{name} in float64", *found)
        for name, *found in zip(NAMES, ours_, eager, truth, strict=True)
    ]
    try:
        for what, got, same, true in pairs:
            assert_close_enough(got, same, true, sizes.depth, f"stylegan3_layer {sizes}: {what}")
    except ToleranceError as error:
        return f"wrong: {error}"
    return "ok"


def run_stylegan3_layer(
    device: torch.device, dtype: torch.dtype, seconds: float, quick: bool, check_only: bool
) -> Iterator[Result]:
    """Yield one result per size, backend and peer."""
    for sizes in SIZES[:1] if quick else SIZES:
        given = inputs(sizes, device, dtype)
        common = (str(sizes), str(dtype).removeprefix("torch."), "latents")
        backends = [name for name in AUTOMATIC_ORDER[device.type] if name != "reference"]
        layers: dict[str, Layer] = {name: partial(ours, name, sizes=sizes) for name in backends}
        layers |= {name: partial(layer, sizes=sizes) for name, layer in PEERS.items()}
        statuses = {
            name: tried(partial(check, layer, given, sizes)) for name, layer in layers.items()
        }
        for name, status in statuses.items():
            if status != "ok" or check_only:
                yield Result("stylegan3_layer", name, *common, status)
        if check_only:
            continue
        # ours begins where our layer before it ended, in channels-last memory
        own = (given[0].contiguous(memory_format=torch.channels_last), *given[1:])
        fit = {name: layer for name, layer in layers.items() if statuses[name] == "ok"}
        calls = {
            name: bound(layer, own if name in backends else given, WRT)
            for name, layer in fit.items()
        }
        for name, readings in interleaved(calls, seconds, clock_of(device)).items():
            for what, timing in readings.items():
                metric = f"latents_{what}" if what else "latents"
                yield Result("stylegan3_layer", name, *common[:2], metric, "ok", timing)
