"""Work and memory of a network from its architecture alone: counted on the meta device.

Work is what torch counts of convolutions and matrix products, two operations per multiplication;
the rest (norms, activations) is not counted.  Memory of a pass with a graph is that of the tensors
that autograd saves, weights left out.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kdistill.priors.diffusion.pretrained.assembly import MetaNetworks

ROUNDS = 3  # of a measured rate, after one that is not counted
# width and side of the convolution, rows and widths of the matrix product, that rates come from:
# of the published networks' middle levels
CONVOLUTION = (384, 32)
PRODUCT = (1024, 1152, 4608)


@dataclass(frozen=True)
class Work:
    """Operations by kind.

    Attributes:
        convolutions: Of convolutions.
        products: Of matrix products.
    """

    convolutions: int = 0
    products: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.convolutions + other.convolutions, self.products + other.products)

    def __mul__(self, factor: int) -> "Work":
        return Work(self.convolutions * factor, self.products * factor)

    @property
    def total(self) -> int:
        """All operations."""
        return self.convolutions + self.products


@dataclass(frozen=True)
class Rates:
    """Operations a second of this machine, in float32.

    Attributes:
        convolutions: Of a convolution 384 to 384 of 3x3 at 32x32.
        products: Of a matrix product 1024x1152 by 1152x4608.
    """

    convolutions: float
    products: float

    def seconds(self, work: Work) -> float:
        """Return the time of some work."""
        return work.convolutions / self.convolutions + work.products / self.products


@dataclass(frozen=True)
class PassCost:
    """One row through a network.

    Attributes:
        forward: Work of the pass.
        backward: Work of its gradient in the inputs; weights are frozen.
        saved_bytes: Tensors that the graph holds.
    """

    forward: Work
    backward: Work
    saved_bytes: int


def pass_cost(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Iterable[Tensor]
) -> PassCost:
    """Return the cost of ``function(*inputs)`` and of its gradient in the inputs.

    Args:
        function: A network, on any device; on the meta device nothing is computed.
        inputs: Tensors of one row.
        weights: Tensors that are in memory anyway.
    """
    counted = {x.untyped_storage()._cdata for x in weights}
    saved: dict[int, Any] = {}  # storages, held so that no other gets the same address

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in counted:
            saved[storage._cdata] = storage
        return x

    inputs = [x.detach().requires_grad_() for x in inputs]
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda x: x)
    with torch.enable_grad(), FlopCounterMode(display=False) as forward, hooks:
        output = function(*inputs)
    nbytes = sum(storage.nbytes() for storage in saved.values())
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(output, inputs, torch.ones_like(output))
    return PassCost(_work(forward), _work(backward), nbytes)


def _work(counter: FlopCounterMode) -> Work:
    counts = counter.get_flop_counts().get("Global", {})
    convolutions = sum(n for op, n in counts.items() if "convolution" in str(op))
    return Work(convolutions, sum(counts.values()) - convolutions)


@dataclass(frozen=True)
class ModelCost:
    """What a diffusion model asks for.

    Attributes:
        num_params: Parameters of the denoiser.
        weight_bytes: Weights of denoiser and autoencoder in float32.
        latent_bytes: One latent.
        denoiser: A row through the denoiser.
        decoder: A row through the decoder.
    """

    num_params: int
    weight_bytes: int
    latent_bytes: int
    denoiser: PassCost
    decoder: PassCost


def model_cost(meta: MetaNetworks) -> ModelCost:
    """Count the cost of a model."""
    config = meta.parts.denoiser.config
    x = torch.empty(1, config["in_channels"], *[config["sample_size"]] * 2, device="meta")
    denoiser = pass_cost(meta.predict, [x, meta.condition()], _tensors(meta.network))
    decoder = pass_cost(meta.decode, [x], _tensors(meta.coder))
    return ModelCost(
        num_params=sum(p.numel() for p in meta.network.parameters()),
        weight_bytes=sum(p.nbytes for n in (meta.network, meta.coder) for p in _tensors(n)),
        latent_bytes=x.nbytes,
        denoiser=denoiser,
        decoder=decoder,
    )


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def measured_rates() -> Rates:
    """Measure convolution and matrix product on the CPU; less than a second each."""
    width, side = CONVOLUTION
    rows, inner, outer = PRODUCT
    images, kernel = torch.randn(1, width, side, side), torch.randn(width, width, 3, 3)
    left, right = torch.randn(rows, inner), torch.randn(inner, outer)
    with torch.no_grad():
        convolution = _seconds(lambda: F.conv2d(images, kernel, padding=1))
        product = _seconds(lambda: left @ right)
    return Rates(
        2 * 9 * width * width * side * side / convolution, 2 * rows * inner * outer / product
    )


def _seconds(function: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(1 + ROUNDS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return median(times[1:])
