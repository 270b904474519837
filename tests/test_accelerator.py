"""The engine on an accelerator of CPU memory, in its own process: torch keeps a device for good."""

import pytest

from tests.own_process import SUITES

PARTS = [f"tests/accelerator_suite/{part}.py" for part in ("engine", "methods")]


@pytest.mark.own_process("accelerator", PARTS, {})
def test_the_emulated_accelerator():
    SUITES["accelerator"].finish()
