"""A request to end (SIGTERM, SIGHUP of a closed terminal) saves what Ctrl-C saves."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """Raised where the process was when the signal came.

    Whatever saves its state at Ctrl-C saves it now too.

    Attributes:
        number: Number of the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@contextmanager
def terminable(*, dies: bool = True) -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise ``Terminated`` within the block, and not after it.

    Signals that the program around handles or ignores (nohup) are left to it, and so are those of
    other threads' work: Python hears signals in the main thread alone.

    Args:
        dies: When the block has ended, say on standard error where the state is and end the process
            by the signal, so that its parent sees what it expects; else ``Terminated`` goes on to
            the caller.
    """
    before = {number: signal.getsignal(number) for number in _signals()}

    def stop(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # a second one must not disturb the saving
        raise Terminated(number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except Terminated as error:
        _restore(before)
        if dies and error.number in before:
            if error.args and sys.stderr is not None:
                sys.stderr.write(f"\nkdistill: terminated; {error}\n")
                sys.stderr.flush()
            os.kill(os.getpid(), error.number)
        raise
    finally:
        _restore(before)


def exit_status(error: KeyboardInterrupt) -> int:
    """Return the exit status of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)


def _signals() -> list[signal.Signals]:
    if threading.current_thread() is not threading.main_thread():
        return []
    known = [each for each in signal.Signals if each.name in ("SIGTERM", "SIGHUP")]
    return [each for each in known if signal.getsignal(each) is signal.SIG_DFL]


def _restore(before: dict[signal.Signals, "signal._HANDLER"]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
