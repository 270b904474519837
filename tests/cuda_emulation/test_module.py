"""Fails where the emulation is not built: half of the kernel tests would be missing unnoticed."""

import shutil
import subprocess
import sys

import pytest

from kdistill import _native


def gcc_major():
    if not sys.platform.startswith("linux") or shutil.which("g++") is None:
        return 0
    said = subprocess.run(
        ["g++", "-dumpversion"], capture_output=True, text=True, check=True
    ).stdout
    return int(said.split(".")[0])


@pytest.mark.skipif(gcc_major() < 11, reason="the emulation needs g++ 11 or newer on Linux")
def test_the_cuda_sources_can_be_executed():
    missing = _native.why_missing("_cuda_emulated")
    if missing:
        pytest.fail(
            f"{missing}\nThe tests of the CUDA kernels were left out of this run: install with\n"
            "    KDISTILL_EMULATION=on pip install -e '.[demo,report,test]'\nas `make test` does, "
            "and run it again",
            pytrace=False,
        )
