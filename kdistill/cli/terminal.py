"""How commands are entered, how they print, and how errors and interrupts are shown."""

import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import typer

from kdistill.escape import printable
from kdistill.signals import exit_status, terminable

# an argument of a Python call, as messages write it
_ARGUMENT = re.compile(r"(?<![\w./'\"=-])([a-z_]+)=([\w.-]*\w|'\w+'|)(?![\w/])")
# arguments of the Python functions that a command has by the same name
FLAGS = (
    *("method", "ipc", "preset", "out", "seed", "size", "normalisation", "init", "resume", "force"),
    *("device", "threads", "max_minutes", "validation", "checkpoint_minutes", "snapshot_every"),
    *("quiet", "protocol", "models", "baselines", "nets", "precision", "stream", "lr"),
    *("epochs", "batch_size", "strategy", "skip_unreadable"),
    *("evaluate_every", "evaluate_protocol", "evaluate_nets"),
)


def command(
    app: typer.Typer, *examples: str, name: str | None = None, **settings: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a function as a command with examples; what a user can cause ends in one sentence.

    An error exits with status 2, Ctrl-C with 130, SIGTERM with 143.
    """
    epilog = "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in examples)

    def enter(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def guarded(*arguments: Any, **named: Any) -> None:
            from kdistill.errors import KDistillError

            try:
                with terminable(dies=False):
                    function(*arguments, **named)
            except KDistillError as error:
                echo(f"kdistill: {as_flags(str(error))}", err=True)
                raise typer.Exit(2) from None
            except KeyboardInterrupt as error:
                hint = f"; {as_flags(str(error))}" if str(error) else ""
                echo(f"\nkdistill: interrupted{hint}", err=True)
                raise typer.Exit(exit_status(error)) from None

        app.command(name, epilog=epilog, **settings)(guarded)
        return function

    return enter


@contextmanager
def hint_on_interrupt(hint: str, *, keeps_own: bool = False) -> Iterator[None]:
    """Let an interrupt within the block say how to go on; ``keeps_own`` prefers its own words."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = error.args if keeps_own and str(error) else (hint,)
        raise


def echo(text: object, *, err: bool = False) -> None:
    """Print text that may hold names of files and classes: nothing in it can act on the terminal.

    The only way in which commands print (a test checks it), beside the tables of
    ``kdistill.formatting``.
    """
    typer.echo(printable(text), err=err)


def echo_wrapped(text: object, *, err: bool = False) -> None:
    """Print text in lines of at most 80 characters, on a terminal or not; words stay whole."""
    for line in str(text).splitlines():
        for part in textwrap.wrap(
            line, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        ):
            echo(part, err=err)


def show_table(result: Any) -> None:
    """Print a table: fitted to a terminal's width; elsewhere with every column, a row a line."""
    from kdistill.formatting import console

    screen = console()
    if screen.is_terminal:
        screen.print(result.table(screen.width))
    else:
        echo(result.to_text())


def as_flags(message: str) -> str:
    """Return ``message`` with the arguments of Python that it names written as flags.

    ``resume=True`` becomes ``--resume``, ``validation=0.1`` and ``validation=`` become
    ``--validation 0.1`` and ``--validation``.
    """

    def flag(argument: re.Match[str]) -> str:
        name, value = argument[1], argument[2]
        if name not in FLAGS:
            return argument[0]
        option = f"--{name.replace('_', '-')}"
        return option if value in ("", "True") else f"{option} {value.strip(chr(39))}"

    return _ARGUMENT.sub(flag, message)


def words_of(text: str | None) -> list[str] | None:
    """Return the words of a list with commas; None stays."""
    return None if text is None else [word for word in text.split(",") if word]
