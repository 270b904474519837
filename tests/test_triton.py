"""The Triton kernels without a GPU: interpreted, and compiled for real architectures."""

import importlib.util
import os
import platform
from pathlib import Path

import pytest

from tests.own_process import SUITES


def why_not() -> str | None:
    if importlib.util.find_spec("triton") is None:
        machine = f"{platform.system()} {platform.machine()}"
        return f"Triton is not installed ({machine}); `pip install triton` where a wheel exists"
    return None


def why_no_cubin() -> str | None:
    if why_not() is not None or os.environ.get("TRITON_PTXAS_PATH"):
        return why_not()
    folder = (
        Path(importlib.util.find_spec("triton").submodule_search_locations[0])
        / "backends/nvidia/bin"
    )
    missing = [name for name in ("ptxas", "ptxas-blackwell") if not (folder / name).exists()]
    return (
        f"this Triton wheel lacks {' and '.join(missing)}; set TRITON_PTXAS_PATH to compile"
        if missing
        else None
    )


@pytest.mark.triton
@pytest.mark.own_process(
    "interpreted", ["tests/triton_suite/interpreted.py"], {"TRITON_INTERPRET": "1"}
)
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_kernels_match_the_reference_under_the_interpreter():
    SUITES["interpreted"].finish()


@pytest.mark.triton
@pytest.mark.slow
# FP_FUSION: the default of every release so far; Triton 3.9 warns where it is not named
@pytest.mark.own_process(
    "compiled", ["tests/triton_suite/compiled.py"], {"TRITON_DEFAULT_FP_FUSION": "1"}
)
@pytest.mark.skipif(why_no_cubin() is not None, reason=str(why_no_cubin()))
def test_kernels_compile_for_every_architecture():
    SUITES["compiled"].finish()
