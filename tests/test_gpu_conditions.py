"""The GPU tests run under conditions that hold only on a GPU; what can be said of them without one."""

import builtins
import os
import warnings

from tests import test_gpu


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
            "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations", stacklevel=1
        )
