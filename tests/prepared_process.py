"""Python processes that have imported torch already, which costs more than most tests.

``multiprocessing``'s fork server imports the package once and forks itself for every process.
Signals, kills, memory and files are those of any process; only the time of the imports is saved.
Tests of what an import does or costs start Python itself.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "kdistill.cli",
        "kdistill.cli.run_commands",
        *(f"kdistill.api.{name}" for name in ("distill", "evaluate", "plan", "prior", "sweep")),
    ]
)


class PreparedPython:
    """A running ``python *arguments``, ``-c CODE`` or ``-m MODULE ...``, with output in files.

    The names are those of ``subprocess.Popen``; leaving the context kills it.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ):
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [str(Path(self._folder.name, name)) for name in ("stdout", "stderr")]
        self._process = _FORKS.Process(
            target=_main,
            args=(arguments, str(cwd or os.getcwd()), dict(env or os.environ), self._outputs),
            daemon=True,
        )
        self._process.start()

    def __enter__(self) -> "PreparedPython":
        return self

    def __exit__(self, *_: object) -> None:
        self.send_signal(signal.SIGKILL)
        self._process.join()
        self._folder.cleanup()

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end and return what it wrote to stdout and stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("prepared process", timeout)
        out, err = (Path(name).read_text() for name in self._outputs)
        return out, err


def run_prepared(
    *arguments: str, timeout: float = 120.0, check: bool = True, **how: object
) -> subprocess.CompletedProcess[str]:
    """Run ``python *arguments`` to its end, as ``subprocess.run`` with captured text."""
    with PreparedPython(*arguments, **how) as process:
        out, err = process.communicate(timeout)
        done = subprocess.CompletedProcess(arguments, process.returncode, out, err)
    assert not check or done.returncode == 0, err
    return done


def _main(
    arguments: tuple[str, ...], cwd: str, environment: dict[str, str], outputs: list[str]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for stream, name in enumerate(outputs, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    # the server ignores interrupts, and so does a suite in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    kind, what, *rest = arguments
    sys.argv = [what if kind == "-m" else "-c", *rest]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
    finally:
        atexit._run_exitfuncs()  # a process of the server ends without
        sys.stdout.flush()
        sys.stderr.flush()
