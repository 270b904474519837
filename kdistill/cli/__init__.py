"""The command line.  torch is imported inside commands only, so that ``--help`` is quick."""

from typing import Annotated

import typer

from kdistill.cli import (
    data_commands,
    evaluate_commands,
    info_commands,
    prior_commands,
    run_commands,
    sweep_commands,
)
from kdistill.cli.terminal import echo

app = typer.Typer(
    name="kdistill",
    help="Make a tiny synthetic training set from a labelled image set.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for _family in (run_commands, evaluate_commands, sweep_commands, data_commands, info_commands):
    app.registered_commands += _family.app.registered_commands
app.add_typer(prior_commands.app, name="prior")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from kdistill._version import __version__

        echo(f"kdistill {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app()
