"""The arguments of Triton launches, and their compilation for a GPU that need not be present.

The signatures are those of real launches: the ops run on the cases with ``JITFunction.run``
replaced by a recorder."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import kdistill.backends.triton as kernels
from kdistill.ops import use_backend
from kdistill.testing.backends import has_kernel
from kdistill.testing.cases import OpCase, Shape, every_case
from tests.triton_suite.second_order import second_gradients

ARCHITECTURES = (80, 90, 100)  # those of the CUDA kernels in .ci/run
TYPES = {
    torch.uint8: "*u8",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
# bytes of an address, and what a number is a multiple of, that Triton makes code of its own for
ALIGNED = 16


@dataclass(frozen=True)
class Launch:
    """What decides the code of a kernel: argument types, constants, divisibility by 16."""

    kernel: triton.JITFunction
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    aligned: tuple[int, ...] = ()

    @property
    def is_float64(self) -> bool:
        types = [kind for _, kind in self.signature]
        return "*fp64" in types and "*fp32" not in types

    @property
    def name(self) -> str:
        constants = "_".join(str(value) for _, value in self.constants)
        return (
            f"{self.kernel.fn.__name__}-{'float64' if self.is_float64 else 'float32'}-{constants}"
        )

    def compiled(self, architecture: int) -> dict[str, Any]:
        """Return the code of every stage, down to ``"cubin"``; no GPU is needed."""
        attributes = {(i,): [["tt.divisibility", ALIGNED]] for i in self.aligned}
        source = ASTSource(
            fn=self.kernel,
            signature=dict(self.signature),
            constexprs=dict(self.constants),
            attrs=attributes,
        )
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32)).asm


def type_of(value: object) -> str:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(
        f"expected a tensor or a number, got {type(value).__name__}; teach type_of about it"
    )


def is_aligned(value: object) -> bool:
    number = value.data_ptr() if isinstance(value, Tensor) else value
    return isinstance(number, int) and not isinstance(number, bool) and number % ALIGNED == 0


def launch_of(
    kernel: triton.JITFunction,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    specialised: bool,
) -> Launch:
    parameters = inspect.signature(kernel.fn).parameters
    bound = dict(zip(parameters, args, strict=False)) | {
        k: v for k, v in kwargs.items() if k in parameters
    }
    constants = {
        k: v for k, v in bound.items() if parameters[k].annotation is tl.constexpr or v is None
    }
    if specialised:
        constants |= {k: v for k, v in bound.items() if type(v) is int and v == 1}
    signature = {k: "constexpr" if k in constants else type_of(v) for k, v in bound.items()}
    aligned = [
        i
        for i, (k, v) in enumerate(bound.items())
        if specialised and k not in constants and is_aligned(v)
    ]
    return Launch(kernel, tuple(signature.items()), tuple(constants.items()), tuple(aligned))


def recorded_launches(
    shapes_of: Callable[[OpCase], list[Shape]] = attrgetter("interpreted"),
    *,
    specialised: bool = False,
) -> list[Launch]:
    """Return every distinct launch of every case and its backwards on some shapes, in both dtypes.

    ``specialised``: with what Triton compiles in beside types at run time, numbers that are 1 and
        multiples of 16.
    """
    distinct: dict[Launch, None] = {}

    def record(self, *args, grid, warmup, **kwargs):
        distinct[launch_of(self, args, kwargs, specialised)] = None

    for module in pkgutil.iter_modules(kernels.__path__):
        importlib.import_module(
            f"{kernels.__name__}.{module.name}"
        )  # decorated now, before the variable is set
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.utils.deterministic, "fill_uninitialized_memory", True
        )  # what no kernel wrote is NaN, not chance
        patch.setattr(triton.JITFunction, "run", record)
        patch.setenv("TRITON_INTERPRET", "1")  # lets CPU tensors through; no kernel runs
        torch.use_deterministic_algorithms(True, warn_only=True)
        with use_backend("triton"):
            for case in (c for c in every_case() if has_kernel(c.name, "triton")):
                for dtype in (torch.float32, torch.float64):
                    for shape in shapes_of(case):
                        inputs = case.inputs(shape, seed=0, dtype=dtype)
                        case.results(case.op, inputs)
                        if case.grad_order == 2:
                            second_gradients(case, case.op, inputs)
        torch.use_deterministic_algorithms(False)
    return list(distinct)


def is_float64(launch: Launch) -> bool:
    types = [kind for _, kind in launch[1]]
    return "*fp64" in types and "*fp32" not in types
