"""Every Triton kernel compiles to a cubin for every architecture of the CUDA build, without a GPU.

Not collected by name: tests/test_triton.py runs this file in a process of its own, where a crash of a compiler ends nothing
else.  The signatures are those of real launches: the ops run on the cases with ``JITFunction.run`` replaced by a recorder.
"""

import importlib
import inspect
import os
import pkgutil

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import kdistill.backends.triton as kernels
from kdistill.ops import use_backend
from kdistill.testing.cases import every_case
from tests.triton_suite.second_order import second_gradients

pytestmark = pytest.mark.triton

ARCHITECTURES = (80, 90, 100)  # KDISTILL_CUDA_ARCHITECTURES of CMakeLists.txt
TYPES = {
    torch.uint8: "*u8",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
Launch = tuple[triton.JITFunction, tuple[tuple[str, str], ...], tuple[tuple[str, object], ...]]


def type_of(value: object) -> str:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"expected a tensor or a number, got {type(value).__name__}; teach type_of about it")


def launch_of(kernel: triton.JITFunction, args: tuple[object, ...], kwargs: dict[str, object]) -> Launch:
    parameters = inspect.signature(kernel.fn).parameters
    bound = dict(zip(parameters, args, strict=False)) | {k: v for k, v in kwargs.items() if k in parameters}
    constants = {k: v for k, v in bound.items() if parameters[k].annotation is tl.constexpr or v is None}
    signature = {k: "constexpr" if k in constants else type_of(v) for k, v in bound.items()}
    return kernel, tuple(signature.items()), tuple(constants.items())


def recorded_launches() -> list[Launch]:
    """Return every distinct launch of every case and both its backwards on the interpreted shapes, in both dtypes."""
    found: dict[Launch, None] = {}

    def record(self, *args, grid, warmup, **kwargs):
        found[launch_of(self, args, kwargs)] = None

    for module in pkgutil.iter_modules(kernels.__path__):
        importlib.import_module(f"{kernels.__name__}.{module.name}")  # decorated now, before the variable is set
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # what no kernel wrote is NaN, not chance
        patch.setattr(triton.JITFunction, "run", record)
        patch.setenv("TRITON_INTERPRET", "1")  # lets CPU tensors through; no kernel runs
        torch.use_deterministic_algorithms(True, warn_only=True)
        with use_backend("triton"):
            for case in every_case():
                for dtype in (torch.float32, torch.float64):
                    for shape in case.interpreted:
                        inputs = case.inputs(shape, seed=0, dtype=dtype)
                        case.results(case.op, inputs)
                        if case.grad_order == 2:
                            second_gradients(case, case.op, inputs)
        torch.use_deterministic_algorithms(False)
    return list(found)


LAUNCHES = recorded_launches()


def is_float64(launch: Launch) -> bool:
    types = [kind for _, kind in launch[1]]
    return "*fp64" in types and "*fp32" not in types


def name_of(launch: Launch) -> str:
    constants = "_".join(str(value) for _, value in launch[2])
    return f"{launch[0].fn.__name__}-{'float64' if is_float64(launch) else 'float32'}-{constants}"


def test_every_kernel_is_launched_by_some_case():
    launched = {kernel.fn.__name__ for kernel, _, _ in LAUNCHES}
    for module in pkgutil.iter_modules(kernels.__path__):
        members = vars(importlib.import_module(f"{kernels.__name__}.{module.name}"))
        entries = {name for name, value in members.items() if isinstance(value, triton.JITFunction) and name.endswith("_kernel")}
        assert entries <= launched, f"{module.name}: no interpreted shape of its case launches {entries - launched}"


# float32 everywhere; float64, which brings no other instructions to a newer architecture, on the oldest
COMPILED = [
    pytest.param(launch, architecture, id=f"{name_of(launch)}-sm_{architecture}")
    for launch in LAUNCHES
    for architecture in (ARCHITECTURES[:1] if is_float64(launch) else ARCHITECTURES)
]


@pytest.mark.parametrize(("launch", "architecture"), COMPILED)
def test_compiles_to_a_cubin(launch, architecture):
    assert os.environ.get("TRITON_INTERPRET") != "1"
    kernel, signature, constants = launch
    source = ASTSource(fn=kernel, signature=dict(signature), constexprs=dict(constants))
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
