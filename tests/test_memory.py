"""Freed memory that lies between blocks that are kept goes back to the system."""

import os
import subprocess
import sys

import pytest

from kdistill import _native

SCRIPT = """
import sys, torch
from kdistill import _native
from kdistill._native import _resident_bytes, return_freed_memory

return_freed_memory()  # loads the module, which sets the C library up
_native._MOST_GROWTH = int(sys.argv[1]) << 20
first = _native._resident_after = _resident_bytes()
blocks = [torch.ones(1 << 18) for _ in range(300)]  # of 1 MB
del blocks[::2]  # holes that cannot be joined
before = _resident_bytes()
return_freed_memory()
print((before - first) >> 20, (_resident_bytes() - first) >> 20)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="only Linux says in /proc how much memory is resident",
)
def test_holes_in_the_heap_go_back_to_the_system_once_there_are_many():
    if _native.why_missing("_cpu") is not None:
        pytest.fail("the native CPU module is not built: pip install -e .")

    def sizes(most: int) -> list[int]:
        own = {name: value for name, value in os.environ.items() if name != "KDISTILL_MALLOC"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(most)],
            capture_output=True,
            text=True,
            check=True,
            env=own,
        )
        return [int(word) for word in done.stdout.split()]

    before, after = sizes(64)
    assert before > 280 and after < 180
    before, after = sizes(400)  # below the growth that is allowed nothing happens
    assert before > 280 and after > 280
