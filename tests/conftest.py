"""Fixtures of every test: no leaked randomness, poisoned allocations, one hypothesis profile."""

import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager

# before torch is imported: else every cuBLAS call warns under the deterministic mode of these
# tests, and warnings are errors
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from hypothesis import HealthCheck, settings

from kdistill import _native
from kdistill.files import safe_files
from kdistill.testing.backends import isa_refusals
from tests import own_process
from tests.prepared_process import PreparedPython

settings.register_profile(
    "kdistill",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("kdistill")


torch.set_num_threads(1)  # test shapes are tiny: two threads would only wait for each other


@pytest.fixture(autouse=True)
def one_seed_per_test():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_empty():
    """Let ``torch.empty`` and the like return NaN: an element that nobody writes stands out."""
    before = (
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.are_deterministic_algorithms_enabled(),
    )
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before[0]
    torch.use_deterministic_algorithms(before[1])


def pytest_collection_finish(session):
    if not session.config.option.collectonly:
        own_process.start(session.items)


def pytest_sessionfinish():
    own_process.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Note instruction sets, and beside a failure the thread order of the last emulated launch."""
    report = (yield).get_result()
    if report.when == "call" and "isa" in getattr(getattr(item, "callspec", None), "params", ()):
        report.user_properties.append(("isa", item.callspec.params["isa"]))
    if report.failed and _native.why_missing("_cuda_emulated") is None:
        seed = _native.function("_cuda_emulated", "last_seed")()
        report.sections.append(
            ("emulated CUDA", f"KDISTILL_EMULATION_SEED={seed} repeats the last thread order")
        )


def pytest_terminal_summary(terminalreporter):
    """Say which instruction sets of the CPU kernels ran, and why the others did not."""
    ran = Counter(
        value
        for report in terminalreporter.stats.get("passed", [])
        for _, value in report.user_properties
    )
    if (
        not ran and terminalreporter.config.option.file_or_dir
    ):  # a part of the suite that has none of these tests
        return
    terminalreporter.section("instruction sets of the CPU kernels")
    refusals = isa_refusals()
    best = [name for name, refusal in refusals.items() if refusal is None][-1:]
    for name, refusal in refusals.items():
        every = ", and every other test" if name in best else ""
        terminalreporter.line(
            f"{name}: not run: {refusal}" if refusal else f"{name}: {ran[name]} tests passed{every}"
        )


@pytest.fixture
def interrupted() -> Callable[..., tuple[int, str]]:
    """Return ``run(arguments, once, number)``.

    It starts ``python *arguments``, sends a signal (Ctrl-C) when ``once`` exists, and returns
    status and stderr.
    """

    def run(arguments, once, number=signal.SIGINT):
        with PreparedPython(*arguments) as process:
            deadline = time.monotonic() + 60
            while not once.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
            return process.returncode, said

    return run


@pytest.fixture
def disk_with_room_for():
    """A context in which the kernel refuses bytes beyond a limit, as it does on a full disk."""

    @contextmanager
    def limited(nbytes: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


class Killed(BaseException):
    """What ``killed_at`` raises in the place of a signal."""


@pytest.fixture
def killed_at(monkeypatch) -> Callable[[int, Callable[[], object]], bool]:
    """Return ``killed_at(step, act)``: kill ``act`` just before a step on the disk.

    It returns whether ``act`` was killed.

    Nothing is tidied up afterwards, as after SIGKILL: from that step on, every further one fails as
    well.
    """

    def run(step, act) -> bool:
        done = []

        def counted(real):
            def call(*args, **kwargs):
                if len(done) >= step:
                    raise Killed
                done.append(real.__name__)
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "fsync", "mkdir", "rmdir", "unlink"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                act()
            except Killed:
                monkeypatch.setattr(
                    safe_files, "_is_running", lambda pid: False
                )  # this process stands for the dead one
                return True
        return False

    return run
