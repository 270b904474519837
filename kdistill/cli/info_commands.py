"""The commands that explain: ``methods``, ``options``, ``doctor`` and ``bench``."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kdistill.cli.terminal import command, echo

app = typer.Typer()


@command(
    app, "kdistill methods", "kdistill methods dm", "kdistill methods mtt --presets", name="methods"
)
def list_methods(
    name: Annotated[str | None, typer.Argument(help="Show the options of one method.")] = None,
    presets: Annotated[
        bool, typer.Option("--presets", help="Show the presets of the method.")
    ] = False,
    papers: Annotated[
        bool, typer.Option("--papers", help="Cite the paper of every method.")
    ] = False,
) -> None:
    """List the methods, or the options of one with their explanations."""
    from kdistill import methods
    from kdistill.cli import option_listing
    from kdistill.errors import ConfigError

    if name is not None:
        listing = option_listing.method_presets if presets else option_listing.method_options
        lines = listing(methods.get(name))
    elif presets:
        raise ConfigError(
            "methods: expected a method for --presets, got none; write for example kdistill "
            "methods mtt --presets"
        )
    else:
        lines = option_listing.overview(papers=papers)
    for line in lines:
        echo(line)


@command(app, "kdistill options score", "kdistill options prior", name="options")
def list_options(
    name: Annotated[str, typer.Argument(help="score, prior or evaluate.")],
) -> None:
    """List the options of a command that is not about one method, with their explanations."""
    from kdistill.cli.option_listing import command_options

    for line in command_options(name):
        echo(line)


@command(app, "kdistill doctor", "KDISTILL_BACKEND=reference kdistill doctor --verbose")
def doctor(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say of every op what each backend answers.")
    ] = False,
) -> None:
    """Say what is installed, which backend runs each op, and why the others do not."""
    from kdistill.doctor import report

    for line in report(verbose=verbose):
        echo(line)


@command(
    app,
    "kdistill bench --quick",
    "kdistill bench --op norm_act_pool --device cpu",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(context: typer.Context) -> None:
    """Run the kernel benchmarks (needs a checkout: `python -m benchmarks.run`)."""
    from kdistill.errors import ConfigError

    root = Path(__file__).parents[2]
    if not (root / "benchmarks" / "run.py").exists():
        raise ConfigError(
            "bench: expected a checkout of the project, got an installed package; clone it first"
        )
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.execve(
        sys.executable,
        [sys.executable, "-m", "benchmarks.run", *context.args],
        {**os.environ, "PYTHONPATH": paths},
    )
