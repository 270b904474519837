"""One case per op, for tests and benchmarks: inputs, shapes, flops, bytes and peers."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from kdistill.ops import op_of
from kdistill.testing.tolerance import assert_close_enough, to_float64

Inputs = tuple[Any, ...]


class Shape(SimpleNamespace):
    """Named sizes, printed as ``n3_m2_d4``."""

    def __str__(self) -> str:
        return "_".join(f"{key}{value}" for key, value in vars(self).items())


def numel_of(s: Shape) -> int:
    """Return the number of elements of vectors ``[P]`` or ``[G, P]``."""
    return int(getattr(s, "g", 1) * s.p)


def mask_numel(s: Shape, vectors: int, width: int) -> int:
    """Return the number of elements of the mask for ``vectors`` elements of this width."""
    return {"none": 0, "shared": width, "own": vectors}[getattr(s, "mask", "none")]


def drawn_mask(s: Shape, vectors: Tensor, generator: torch.Generator) -> Tensor | None:
    """Return a mask for vectors ``[P]`` or ``[G, P]`` as the shape asks: none, shared or own."""
    kind = getattr(s, "mask", "none")
    sizes = vectors.shape if kind == "own" else vectors.shape[-1:]
    if kind == "none":
        return None
    return (torch.rand(*sizes, generator=generator, dtype=torch.float64) < 0.7).to(vectors)


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    """Return what a function returned as a tuple: one tensor becomes a tuple of one."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One more thing to time than forward and forward + backward.

    Attributes:
        differentiable: Positions of the inputs that gradients are taken in.
        bytes: Moved at the least.
        without_graph: The engine's entry: the same inputs to (value, gradients for a cotangent of
            ones), without autograd.
    """

    differentiable: tuple[int, ...]
    bytes: Callable[[Shape, int], float]
    without_graph: Callable[..., tuple[Tensor, ...]] | None = None


# more than twelve fields: all that tests and benchmarks know about an op
@dataclass(frozen=True, kw_only=True)
class OpCase:
    """One op, described once for tests and benchmarks.

    Attributes:
        name: The op's stem.
        op: The public function, called as ``op(*inputs)``; returns a tensor, or a tuple of them
            where grad_order is 0.
        reference: The same signature in plain PyTorch; run in float64 it is the truth, in the op's
            dtype it is "eager".
        make: ``(shape, randn, generator) -> inputs``; ``randn(*sizes)`` draws in the dtype asked
            for.
        differentiable: Positions of the inputs that gradients are taken in.
        tiny: For finite differences.
        shapes: For tests: zeros, ones, primes, a power of two plus one.
        interpreted: Two tiny ones for Triton's interpreter.
        bench_shapes: For benchmarks.
        depth: Additions behind one output, and behind one gradient.
        flops: Floating-point operations of the forward computation.
        bytes: Moved by forward + backward at the least.
        peers: Other formulations of the same function.
        benches: By name of the metric, what to time beside forward and forward + backward in all
            differentiable inputs.
        tangents: The case of ``<op>_tangent`` and ``<op>_bwd_tangent``, one after the other, where
            the op has them.
    """

    name: str
    op: Callable[..., Any]
    reference: Callable[..., Any]
    make: Callable[[Shape, Callable[..., Tensor], torch.Generator], Inputs]
    differentiable: tuple[int, ...]
    tiny: Shape
    shapes: list[Shape]
    interpreted: list[Shape]
    bench_shapes: list[Shape]
    depth: Callable[[Shape], float]
    flops: Callable[[Shape], float]
    bytes: Callable[[Shape, int], float]
    peers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    benches: dict[str, Bench] = field(default_factory=dict)
    tangents: "OpCase | None" = None

    @property
    def grad_order(self) -> int:
        """How often ``op`` may be differentiated, as its file declares; 0 without such inputs."""
        declared: int = importlib.import_module(f"kdistill.ops.{op_of(self.name)}").GRAD_ORDER
        return declared if self.differentiable else 0

    def inputs(
        self,
        shape: Shape,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        requires_grad: bool = False,
    ) -> tuple[Any, ...]:
        """Draw inputs; the same seed gives the same numbers in every dtype."""
        generator = torch.Generator().manual_seed(seed)

        def randn(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

        made = self.make(shape, randn, generator)
        moved = [x.to(device) if isinstance(x, Tensor) else x for x in made]
        for position in self.differentiable if requires_grad else ():
            moved[position].requires_grad_()
        return tuple(moved)

    def with_gradients(
        self,
        function: Callable[..., Tensor],
        inputs: tuple[Any, ...],
        *,
        seed: int = 0,
        wrt: tuple[int, ...] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return ``function(*inputs)`` and its gradients for a cotangent drawn in float64.

        ``wrt`` are positions of inputs, by default all that are differentiable.
        """
        leaves = [x.detach().clone() if isinstance(x, Tensor) else x for x in inputs]
        wanted = [leaves[i].requires_grad_() for i in (self.differentiable if wrt is None else wrt)]
        out = function(*leaves)
        drawn = torch.randn(
            out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        grads = torch.autograd.grad(out, wanted, drawn.to(out))
        return (out.detach(), *(g.detach() for g in grads))

    def results(
        self, function: Callable[..., Any], inputs: tuple[Any, ...], *, seed: int = 0
    ) -> tuple[Tensor, ...]:
        """Return value and gradients of ``function``, or its values where there are none."""
        if self.grad_order:
            return self.with_gradients(function, inputs, seed=seed)
        return as_tuple(function(*inputs))

    def check(self, inputs: tuple[Any, ...], shape: Shape) -> None:
        """Raise ToleranceError unless value and gradients of ``op`` obey the tolerance rule."""
        run = partial(self.results, seed=1)
        got, eager, truth = (
            run(self.op, inputs),
            run(self.reference, inputs),
            run(self.reference, to_float64(inputs)),
        )
        gradients = [f"gradient in input {i}" for i in self.differentiable]
        names = (
            ["value", *gradients] if self.grad_order else [f"value {i}" for i in range(len(got))]
        )
        for what, ours, same, true in zip(names, got, eager, truth, strict=True):
            assert_close_enough(ours, same, true, self.depth(shape), f"{self.name} {shape}: {what}")


def case(name: str) -> OpCase:
    """Return the case of one op."""
    of_op: OpCase = importlib.import_module(f"{__name__}.{name}").CASE
    return of_op


def all_cases() -> list[OpCase]:
    """Return the case of every op, by name."""
    return [case(name) for name in sorted(m.name for m in pkgutil.iter_modules(__path__))]


def every_case() -> list[OpCase]:
    """Return the case of every op, each followed by that of its tangents."""
    return [c for of in all_cases() for c in (of, of.tangents) if c is not None]
