"""Arguments and flags that several commands have."""

from typing import Annotated

import typer

_SOURCES = "mnist5k, digits, photo-patches, a folder, .npz, .safetensors or .pt."


def setting(listed_by: str) -> object:
    """Return the flag ``--set`` of options that another command lists."""
    return typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help=f"Set an option (`{listed_by}` lists them); may be repeated.",
    )


Data = Annotated[str, typer.Argument(help=_SOURCES)]
OptionalData = Annotated[str | None, typer.Argument(help=_SOURCES)]
MethodOptions = Annotated[list[str], setting("kdistill methods NAME")]
Size = Annotated[int | None, typer.Option(help="Resize images to this side.")]
Normalisation = Annotated[str, typer.Option(help="standard, zca or none.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.")]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out files that cannot be decoded.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show results alone, no progress.")]
Validation = Annotated[float, typer.Option(help="Share of the training images held out.")]
Preset = Annotated[str, typer.Option(help="fast (for CPUs) or paper.")]
MaxMinutes = Annotated[
    float | None, typer.Option(help="Stop after this time and keep what is done.")
]
