"""Build the native modules with ASan and UBSan and run the op tests on them (``make sanitize``)."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pybind11

ROOT = Path(__file__).parents[1]
TESTS = ["tests/ops", "tests/test_second_order.py"]


def build(folder: Path) -> Path:
    configure = [
        *(
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(folder),
            "-G",
            "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
        ),
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        *("-DKDISTILL_CUDA=off", "-DKDISTILL_EMULATION=ON", "-DKDISTILL_SANITIZE=ON"),
    ]
    for command in (configure, ["cmake", "--build", str(folder)]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def run_tests(folder: Path) -> int:
    runtime = [
        subprocess.run(
            ["g++", f"-print-file-name={lib}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for lib in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    environment = {
        **os.environ,
        "KDISTILL_NATIVE_DIR": str(folder),
        "LD_PRELOAD": " ".join(runtime),
        # Python and torch never free what lives as long as the process, so leaks cannot be told
        # apart
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(run_tests(build(Path(folder))))
