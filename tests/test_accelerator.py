"""The engine on an accelerator of CPU memory, in its own process: torch keeps a device for good."""

import pytest

from tests.test_triton import run_suite


@pytest.mark.parametrize("part", ["engine", "methods"])
def test_the_emulated_accelerator(part):
    run_suite([f"tests/accelerator_suite/{part}.py"], {})
