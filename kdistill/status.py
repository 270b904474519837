"""One line of status while something long is done, on standard error or in a notebook.

On a terminal the line replaces itself, in a Jupyter notebook (or any other IPython kernel) the
output of the cell does, and elsewhere a plain line is printed now and then.  A line that is opened
inside another one is shown within that one.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, cast

from kdistill.escape import printable
from kdistill.formatting import duration

PLAIN_EVERY_S = 10.0  # seconds between two lines when nobody watches
_TERMINAL_EVERY_S, _NOTEBOOK_EVERY_S = 0.05, 0.2

_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)
_current: ContextVar["_Line | None"] = ContextVar("current", default=None)


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Show no status line and no note within the block, if it or a block around it is quiet."""
    token = _is_quiet.set(quiet or _is_quiet.get())
    try:
        yield
    finally:
        _is_quiet.reset(token)


@contextmanager
def status_line(
    what: str, also: Callable[[str], None] | None = None
) -> Iterator[Callable[[str], None]]:
    """Yield a progress callback, which shows a text in a line that begins with ``what``.

    Args:
        what: What is done, such as ``"distilling"``.
        also: Another progress callback, told every text also where the line is not shown.
    """
    outer = _current.get()
    if outer is not None or _is_quiet.get():
        yield _to_all(*_within(outer, what), also)
        return
    line = _Line(what)
    token = _current.set(line)
    try:
        yield _to_all(line.tell, also)
    finally:
        _current.reset(token)
        line.close()


def describe(progress: Any, values: str) -> str:
    """Return what a status line says of an iteration: number, values, rate, time left, memory.

    Args:
        progress: What the loop tells its callbacks: ``iteration``, ``iterations``, ``rate``,
            ``eta_seconds`` and ``peak_bytes``.
        values: What was measured, such as ``"loss 0.1"``.
    """
    width = len(str(progress.iterations))
    return (
        f"{progress.iteration:>{width}}/{progress.iterations}  {values}  {progress.rate:.2f} it/s  "
        f"{duration(progress.eta_seconds)} left  {progress.peak_bytes / 2**30:.2f} GiB peak"
    )


def note(text: str) -> None:
    """Show a line that stays, unless the block around it is quiet."""
    if not _is_quiet.get():
        line = _current.get() or _Line("")
        line.surface.keep(_flat(text))


def _within(outer: "_Line | None", what: str) -> list[Callable[[str], None]]:
    """Return what shows texts inside ``outer``, after its present text; nothing in silence."""
    if outer is None or _is_quiet.get():
        return []
    before = f"{outer.text}: {what}" if outer.text else what
    return [lambda text: outer.show(f"{before}  {text}")]


def _to_all(*callbacks: Callable[[str], None] | None) -> Callable[[str], None]:
    def tell(text: str) -> None:
        for callback in callbacks:
            if callback is not None:
                callback(text)

    return tell


class _Line:
    """A status line; lines inside it are shown after ``text``, what its owner said last."""

    def __init__(self, what: str) -> None:
        self.what, self.text = what, ""
        self.surface = _surface()
        self.last, self.pending = -1e9, ""

    def tell(self, text: str) -> None:
        self.text = text
        self.show(text)

    def show(self, text: str) -> None:
        now, self.pending = time.monotonic(), _flat(f"{self.what}  {text}")
        if now - self.last >= self.surface.every_s:
            self.surface.replace(self.pending)
            self.last, self.pending = now, ""

    def close(self) -> None:
        if self.pending:
            self.surface.replace(self.pending)
        self.surface.end()


class _Plain:
    """A log file, a pipe: lines one below the other."""

    every_s = PLAIN_EVERY_S

    def replace(self, text: str) -> None:
        self.keep(text)

    def keep(self, text: str) -> None:
        _write(f"{text}\n")

    def end(self) -> None:
        pass


class _Terminal(_Plain):
    """A terminal: the line is cut at its right edge, as one that wraps could not be replaced."""

    every_s = _TERMINAL_EVERY_S
    is_open = False

    def replace(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        _write(f"\r\x1b[2K{text if len(text) <= width else text[: width - 1] + '…'}")
        self.is_open = True

    def keep(self, text: str) -> None:
        _write(f"{chr(13) + chr(27) + '[2K' if self.is_open else ''}{text}\n")
        self.is_open = False

    def end(self) -> None:
        if self.is_open:
            _write("\n")


class _Notebook(_Plain):
    """An IPython kernel: one output of the cell, plain text, which is replaced."""

    every_s = _NOTEBOOK_EVERY_S

    def __init__(self, display: Callable[..., Any]) -> None:
        self.display, self.handle = display, None

    def replace(self, text: str) -> None:
        content = {"text/plain": text}
        if self.handle is None:
            self.handle = self.display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)

    def keep(self, text: str) -> None:
        self.display({"text/plain": text}, raw=True)


def _surface() -> _Plain:
    display = _notebook_display()
    if display is not None:
        return _Notebook(display)
    with suppress(AttributeError, ValueError):  # no standard error at all, or a closed one
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            return _Terminal()
    return _Plain()


def _notebook_display() -> Callable[..., Any] | None:
    """Return IPython's ``display`` if this process is a kernel; else it is a terminal or a log."""
    loaded = sys.modules.get("IPython")
    shell = loaded.get_ipython() if loaded is not None and hasattr(loaded, "get_ipython") else None
    if getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import display

    return cast(Callable[..., Any], display)


def _flat(text: str) -> str:
    """Return ``text`` on one line, with nothing in it that acts on a terminal."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def _write(text: str) -> None:
    with suppress(
        OSError, ValueError, AttributeError
    ):  # a closed or missing standard error must not end what is being done
        sys.stderr.write(text)
        sys.stderr.flush()
