"""One progress line: live on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from kdistill.escape import one_line

if TYPE_CHECKING:
    from kdistill.loop import Progress
    from kdistill.priors.training import PriorProgress

PLAIN_EVERY_S = 10.0  # seconds between two lines when nobody watches


def console() -> Console:
    """Return a console on standard output."""
    return Console()


def duration(seconds: float) -> str:
    """Return ``1:02:03`` or ``2:03``."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def describe(progress: "Progress") -> str:
    """Return the line: iteration, loss, rate, time left, peak memory."""
    width = len(str(progress.iterations))
    return (
        f"{progress.iteration:>{width}}/{progress.iterations}  loss {progress.loss:.4g}  {progress.rate:.2f} it/s  "
        f"{duration(progress.eta_seconds)} left  {progress.peak_bytes / 2**30:.2f} GiB peak"
    )


def describe_prior(progress: "PriorProgress") -> str:
    """Return the line of a generator's training: iteration, losses, augmentation, rate, time left, peak memory."""
    width = len(str(progress.iterations))
    return (
        f"{progress.iteration:>{width}}/{progress.iterations}  losses {progress.loss_discriminator:.3f} "
        f"{progress.loss_generator:.3f}  augmented {progress.augment_p:.2f}  {progress.rate:.2f} it/s  "
        f"{duration(progress.eta_seconds)} left  {progress.peak_bytes / 2**30:.2f} GiB peak"
    )


@contextmanager
def status_line(what: str) -> Iterator[Callable[[str], None]]:
    """Yield ``say(text)``: replaces the line on a terminal, else prints at most one line every ten seconds."""
    live = sys.stderr.isatty()
    last, pending = -PLAIN_EVERY_S, ""

    def say(text: str) -> None:
        nonlocal last, pending
        text = one_line(text)
        now, pending = time.monotonic(), text
        if live:
            sys.stderr.write(f"\r\x1b[2K{what}  {text}")
        elif now - last >= PLAIN_EVERY_S:
            sys.stderr.write(f"{what}  {text}\n")
            last, pending = now, ""
        sys.stderr.flush()

    try:
        yield say
    finally:
        if live:
            sys.stderr.write("\n")
        elif pending:
            sys.stderr.write(f"{what}  {pending}\n")
        sys.stderr.flush()


@contextmanager
def progress_line(what: str) -> Iterator[Callable[["Progress"], None]]:
    """Yield a callback for ``distill(callbacks=[...])`` that keeps one line up to date."""
    with status_line(what) as say:
        yield lambda progress: say(describe(progress))
