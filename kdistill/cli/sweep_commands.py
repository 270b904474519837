"""The commands of many runs: ``sweep`` and ``compare``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kdistill.cli.flags import Device, Quiet, Threads
from kdistill.cli.terminal import command, echo, hint_on_interrupt, show_table, words_of

app = typer.Typer()


@command(
    app,
    "kdistill sweep mnist5k --set method=dm,mtt --set seed=0,1,2 --set ipc=1,10 --out out/methods",
    "kdistill sweep --config ablation.toml --out out/ablation --dry-run",
)
def sweep(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="One or more of mnist5k, digits, photo-patches, a folder, .npz, .safetensors, .pt."
        ),
    ] = None,
    options: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=A,B,C",
            help="An axis: method, ipc, seed, preset, ... or an option of the method.",
        ),
    ] = [],
    config: Annotated[Path | None, typer.Option(help="TOML or JSON file with the grid.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the runs; the same folder again completes them.")
    ] = Path("out/sweep"),
    protocol: Annotated[
        str | None,
        typer.Option(help="Evaluation protocol: bench (default), quick, paper, dsa, mtt, ..."),
    ] = None,
    models: Annotated[str | None, typer.Option(help="Networks, separated by commas.")] = None,
    baselines: Annotated[
        str | None, typer.Option(help="Rows beside them, separated by commas (default random).")
    ] = None,
    nets: Annotated[int | None, typer.Option(help="Networks per run.")] = None,
    device: Device = None,
    threads: Threads = None,
    max_minutes: Annotated[float | None, typer.Option(help="Time of each distillation.")] = None,
    quiet: Quiet = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the runs and stop.")] = False,
) -> None:
    """Distill and evaluate every point of a grid.

    Finished runs are not repeated, and failed ones do not stop the others.
    """
    from kdistill.api.grid import Grid, parse_axes, plan_runs
    from kdistill.api.sweep import sweep as run_sweep
    from kdistill.config import from_mapping, load_file, merge

    flags: dict[str, Any] = {"data": data or None, "max_minutes": max_minutes}
    named = {
        "protocol": protocol,
        "models": words_of(models),
        "baselines": words_of(baselines),
        "nets": nets,
    }
    changes = {key: value for key, value in flags.items() if value is not None}
    changes["evaluation"] = {key: value for key, value in named.items() if value is not None}
    table = merge(load_file(config) if config else {}, parse_axes(options), changes)
    grid = from_mapping(Grid, table, where=str(config or "sweep"))
    if dry_run:
        for planned in plan_runs(grid, out):
            echo(f"{planned}  {planned.folder}")
        return
    hint = f"what is done is kept in {out}, the same command goes on from there"
    with hint_on_interrupt(hint):
        done = run_sweep(grid, out=out, device=device, threads=threads, quiet=quiet)
    echo(f"{done}\nnext: kdistill compare {out}")
    if done.failed:
        raise typer.Exit(1)


@command(
    app,
    "kdistill compare out/methods --against dm --to table.md",
    "kdistill compare out/a out/b --to table.csv",
)
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders of runs such as a sweep's.")
    ],
    against: Annotated[
        str | None, typer.Option(help="Name of the line that the others are compared with.")
    ] = None,
    to: Annotated[
        list[Path],
        typer.Option(help="Write the table to a .md, .csv or .json file; may be repeated."),
    ] = [],
) -> None:
    """Show evaluated runs in one table: mean ± std over seeds, time, memory, differences."""
    import kdistill

    table = kdistill.compare(folders, against=against)
    show_table(table)
    for path in to:
        echo(f"wrote {table.save(path)}", err=True)
