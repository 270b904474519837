"""Every Triton kernel compiles to a cubin for every architecture of the CUDA build, without a GPU.

Not collected by name: tests/test_triton.py runs this file in a process of its own, where a crash of
    a compiler ends nothing
else.
"""

import importlib
import os
import pkgutil

import pytest
import triton

import kdistill.backends.triton as kernels
from tests.triton_suite.launches import ARCHITECTURES, recorded_launches

pytestmark = pytest.mark.triton

LAUNCHES = recorded_launches()


def test_every_kernel_is_launched_by_some_case():
    launched = {launch.kernel.fn.__name__ for launch in LAUNCHES}
    for module in pkgutil.iter_modules(kernels.__path__):
        members = vars(importlib.import_module(f"{kernels.__name__}.{module.name}"))
        entries = {
            name
            for name, value in members.items()
            if isinstance(value, triton.JITFunction) and name.endswith("_kernel")
        }
        assert entries <= launched, (
            f"{module.name}: no interpreted shape of its case launches {entries - launched}"
        )


# float32 everywhere; float64, which brings no other instructions to a newer architecture, on the
# oldest
COMPILED = [
    pytest.param(launch, architecture, id=f"{launch.name}-sm_{architecture}")
    for launch in LAUNCHES
    for architecture in (ARCHITECTURES[:1] if launch.is_float64 else ARCHITECTURES)
]


@pytest.mark.parametrize(("launch", "architecture"), COMPILED)
def test_compiles_to_a_cubin(launch, architecture):
    assert os.environ.get("TRITON_INTERPRET") != "1"
    code = launch.compiled(architecture)
    assert code["cubin"][:4] == b"\x7fELF"
    # Triton 3.6 fails to compile float64 products for tensor cores; tests/triton_floor.py runs that
    # version
    assert not (launch.is_float64 and "tt.dot" in code["ttir"])
