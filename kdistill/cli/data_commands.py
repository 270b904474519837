"""The commands of data: ``check``, ``sample`` and ``cache``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kdistill.cli.flags import Device, Threads
from kdistill.cli.terminal import command, echo

app = typer.Typer()

FEW_PLACES = 5  # places that a finding names without --all


@command(app, "kdistill check photos/", "kdistill check photos/ --size 32 --all")
def check(
    data: Annotated[str, typer.Argument(help="A folder, a file, or a built-in set.")],
    size: Annotated[
        int | None, typer.Option(help="Compare pictures as they are at this side.")
    ] = None,
    name_all: Annotated[
        bool, typer.Option("--all", help="Name every place, not the first five.")
    ] = False,
) -> None:
    """Look for unreadable files, duplicates, leakage between splits, and what would be ignored.

    The exit status is 1 if something is wrong.  A duplicate is a picture with exactly the pixels of
    another.  Pictures are alike if they probably show the same photograph.
    """
    from kdistill.data.data_check import check_data

    report = check_data(data, size=size)
    _show(report, None if name_all else FEW_PLACES)
    if not report.is_sound:
        raise typer.Exit(1)


def _show(report: Any, limit: int | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from kdistill.escape import one_line
    from kdistill.formatting import console

    table = Table(
        "",
        "what",
        "count",
        title=Text(one_line(report.name)),
        box=SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    for finding in report.findings:
        places = finding.places[:limit]
        more = len(finding.places) - len(places)
        lines = [
            finding.what,
            *(f"  {place}" for place in places),
            *([f"  and {more:,} more (--all)"] if more else []),
        ]
        text = Text("\n".join(map(_printable, lines)), overflow="fold")
        table.add_row(
            "wrong" if finding.is_wrong else "", text, Text(finding.count, justify="right")
        )
    console().print(table)
    verdict = "nothing wrong" if report.is_sound else "something is wrong: see the lines marked so"
    echo(verdict)


def _printable(text: str) -> str:
    """Return the text on one line, with its indentation."""
    from kdistill.escape import one_line

    return " " * (len(text) - len(text.lstrip(" "))) + one_line(text)


@command(
    app,
    "kdistill sample out/dim --ipc 50 --out out/dim-50",
    "kdistill sample out/prior --ipc 10 --seed 3 --out out/prior-10",
)
def sample(
    folder: Annotated[Path, typer.Argument(help="Folder of a run of dim, or of a prior.")],
    out: Annotated[Path, typer.Option(help="Folder of the new set.")],
    ipc: Annotated[int, typer.Option(help="Images per class.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the set in --out; never the generator's run.")
    ] = False,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Draw a set of fresh images from a distilled generator, or from that of a prior."""
    from kdistill.api.distilled_generator import sample_set
    from kdistill.api.inputs import check_place, use
    from kdistill.api.run_folder import check_folder, prepare
    from kdistill.errors import ConfigError
    from kdistill.files import sole_use

    use(threads, device)
    check_place(out)
    if out.resolve() == folder.resolve():
        raise ConfigError(
            f"out: expected another folder than the generator's, got {out}; the set would replace "
            "the generator"
        )
    check_folder(out, resume=False, force=force)
    small = sample_set(folder, ipc, seed, device or "cpu")
    with sole_use(out):
        prepare(out, resume=False, force=force)
        small.save_pretrained(out)
    echo(f"{small!r} in {out}")


@command(app, "kdistill cache", "kdistill cache --empty")
def cache(
    empty: Annotated[bool, typer.Option("--empty", help="Delete the decoded pictures.")] = False,
) -> None:
    """Say where kdistill keeps decoded pictures, experts and more, and how large they are."""
    from kdistill.cache import cache_folder, folder_nbytes
    from kdistill.data.picture_reader import empty_images, images_folder

    folder: Path = cache_folder()
    if empty:
        echo(f"freed {empty_images() / 1e6:.1f} MB of decoded pictures in {images_folder()}")
        return
    echo(f"{folder}")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        nbytes = folder_nbytes(path) if path.is_dir() else path.stat().st_size
        echo(f"  {path.name:<40} {nbytes / 1e6:>10.1f} MB")
