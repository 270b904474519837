"""What the commands share: options, examples, and how errors are shown."""

import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from kdistill.escape import printable
from kdistill.signals import exit_status, terminable

_ARGUMENT = re.compile(
    r"(?<![\w./'\"=-])([a-z_]+)=([\w.-]*\w|'\w+'|)(?![\w/])"
)  # of a call, as messages write it
# arguments of the Python functions that a command has by the same name
FLAGS = (
    "method",
    "ipc",
    "preset",
    "out",
    "seed",
    "size",
    "normalisation",
    "init",
    "resume",
    "device",
    "threads",
    "max_minutes",
)
FLAGS += (
    "validation",
    "checkpoint_minutes",
    "snapshot_every",
    "quiet",
    "protocol",
    "models",
    "baselines",
    "nets",
    "precision",
)
FLAGS += ("stream", "force", "lr", "skip_unreadable")

Options = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Set an option; may be repeated.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of the run (default 0).")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.")]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out files that cannot be decoded.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show results alone, no progress.")]
Validation = Annotated[
    float, typer.Option(help="Share of the training images that a run holds out.")
]
Protocol = Annotated[str, typer.Option(help="Evaluation protocol: quick, bench or paper.")]


def echo(text: object, *, err: bool = False) -> None:
    """Print text that may hold names of files and classes: nothing in it can act on the terminal.

    The only way in which commands print (a test looks), beside tables of
    ``kdistill.formatting``.
    """
    typer.echo(printable(text), err=err)


def echo_wrapped(text: object, *, err: bool = False) -> None:
    """Print text in lines of at most 80 characters, also where the output is no terminal; words and paths stay whole."""
    for line in str(text).splitlines():
        for part in textwrap.wrap(
            line, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        ):
            echo(part, err=err)


def show(found: Any) -> None:
    """Print a table: fitted to the width of a terminal, and with every column, a row a line, where the output is none."""
    from kdistill.formatting import console

    screen = console()
    if screen.is_terminal:
        screen.print(found.table(screen.width))
    else:
        echo(found.to_text())


def _examples(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in lines)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn an error that the user caused into one sentence and exit status 2; Ctrl-C into 130, SIGTERM into 143."""
    from kdistill.errors import KDistillError

    try:
        with terminable(dies=False):
            yield
    except KDistillError as error:
        echo(f"kdistill: {as_flags(str(error))}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as error:
        echo("\nkdistill: interrupted", err=True)
        raise typer.Exit(exit_status(error)) from None


def as_flags(message: str) -> str:
    """Return ``message`` with the arguments of Python that it names written as flags.

    ``resume=True`` becomes ``--resume``, ``validation=0.1`` and ``validation=`` become
    ``--validation 0.1`` and ``--validation``.
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in FLAGS:
            return found[0]
        option = f"--{name.replace('_', '-')}"
        return option if value in ("", "True") else f"{option} {value.strip(chr(39))}"

    return _ARGUMENT.sub(flag, message)


def _step_size(text: str | None) -> float | str | None:
    """Return what ``--lr`` says: a number, auto or None."""
    from kdistill.errors import ConfigError

    try:
        return text if text in (None, "auto") else float(text)
    except ValueError:
        raise ConfigError(f"lr: expected a number or auto, got '{text}'; 0.01 is usual") from None


def _seen(data: str, size: int | None, normalisation: str, **how: Any) -> Any:
    """Load the data; ``how`` holds further arguments of ``load_data``."""
    from kdistill.data import load_data

    return load_data(data, size=size, normalisation=normalisation, **how)
