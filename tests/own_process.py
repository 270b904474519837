"""Suites that need a process of their own run beside the others, from the start of the session.

A test marked ``own_process(name, arguments, environment)`` is such a suite: pytest with these
arguments.  It starts when the tests have been collected, on whatever core is free, and the test
waits for its end.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass
class Suite:
    """A running pytest; its output is in a file, so that it never waits for a reader."""

    arguments: list[str]
    environment: Mapping[str, str]
    folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    def __post_init__(self) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_INTERPRET")}
        own = {"OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": self.folder.name, **self.environment}
        self.output = Path(self.folder.name, "output.txt")
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *self.arguments],
                cwd=ROOT, env={**clean, **own}, stdout=file, stderr=subprocess.STDOUT,
                preexec_fn=lambda: os.nice(5),  # the tests that others wait for come first
            )  # fmt: skip

    def finish(self) -> None:
        """Wait for the end; every test must have passed, and none been skipped."""
        self.process.wait()
        said = self.output.read_text()
        summary = (said.strip().splitlines() or ["nothing"])[-1]
        assert self.process.returncode == 0, said
        assert "skipped" not in summary, said  # nobody would notice a skip in the child process
        sys.stdout.write(summary)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()


SUITES: dict[str, Suite] = {}


def start(items: list[pytest.Item]) -> None:
    """Start the suites of the collected tests that are not skipped."""
    for item in items:
        mark = item.get_closest_marker("own_process")
        if mark is not None and not any(skip.args[0] for skip in item.iter_markers("skipif")):
            name, arguments, environment = mark.args
            SUITES[name] = Suite(arguments, environment)


def close() -> None:
    """End what still runs."""
    for suite in SUITES.values():
        suite.close()
