"""The Triton kernels without a GPU: interpreted, and compiled for real architectures."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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


def run_suite(arguments: list[str], environment: dict[str, str]) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_INTERPRET")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True,
    )  # fmt: skip
    summary = (done.stdout.strip().splitlines() or ["nothing"])[-1]
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "skipped" not in summary, done.stdout  # nobody would notice a skip in the child process
    sys.stdout.write(summary)


@pytest.mark.triton
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_kernels_match_the_reference_under_the_interpreter():
    run_suite(["tests/triton_suite/interpreted.py"], {"TRITON_INTERPRET": "1"})


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.skipif(why_no_cubin() is not None, reason=str(why_no_cubin()))
def test_kernels_compile_for_every_architecture(tmp_path):
    # FP_FUSION: the default of every release so far; Triton 3.9 warns where it is not named
    run_suite(
        ["tests/triton_suite/compiled.py"],
        {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"},
    )
