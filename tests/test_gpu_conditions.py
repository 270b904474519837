"""The conditions of the GPU tests, as far as they can be tested without a GPU."""

import builtins
import os
import warnings
from pathlib import Path

from tests import test_gpu

ROOT = Path(__file__).parents[1]


def test_cublas_has_a_workspace_that_its_deterministic_mode_accepts():
    # without one every product on a GPU warns, and warnings are errors here
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


def test_the_warning_of_the_debug_mode_that_finds_waits_is_no_error():
    marks = [mark.args[0] for mark in test_gpu.pytestmark if mark.name == "filterwarnings"]
    ignored = [mark.split(":") for mark in marks]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for action, message, category in ignored:
            warnings.filterwarnings(action, message, getattr(builtins, category))
        # what torch says when the mode is switched on, once per process
        warnings.warn(
            "Synchronization debug mode is a prototype feature and does not yet detect all "
            "synchronizing operations",
            stacklevel=1,
        )


def test_the_lines_for_a_gpu_leave_the_torch_that_is_there():
    section = (ROOT / "docs/guide/gpu.md").read_text().split("## Installation")[1].split("\n## ")[0]
    installs = [line for line in section.splitlines() if "pip install" in line]
    assert installs == ["    pip install --no-deps --no-build-isolation -e ."]


def test_the_pinned_torch_says_how_large_it_is_and_how_to_get_the_small_one():
    for page in ("README.md", "constraints.txt"):
        text = (ROOT / page).read_text()
        assert "https://download.pytorch.org/whl/cpu" in text
        assert "gigabytes" in text
