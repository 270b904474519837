"""The commands of one run: ``demo``, ``distill``, ``experts`` and ``plan``."""

from pathlib import Path
from typing import Annotated

import typer

from kdistill.cli.evaluate_commands import evaluate_and_save
from kdistill.cli.flags import (
    Data,
    Device,
    MaxMinutes,
    MethodOptions,
    Normalisation,
    OptionalData,
    Preset,
    Quiet,
    Size,
    SkipUnreadable,
    Threads,
    Validation,
)
from kdistill.cli.terminal import command, echo, echo_wrapped, hint_on_interrupt

app = typer.Typer()
DEMO = Path("out/demo")


@command(app, "kdistill demo", "kdistill demo --out out/demo --seed 1")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the artefact.")] = DEMO,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Distill handwritten digits to 10 images per class and compare them with the baselines.

    Takes a few minutes and downloads nothing.
    """
    import kdistill
    from kdistill.api.evaluate import EvaluationConfig
    from kdistill.api.run_folder import is_unfinished

    data = kdistill.load_data("mnist5k", quiet=quiet)
    resume = is_unfinished(out)
    with hint_on_interrupt(f"the state is saved in {out}, the same command goes on from there"):
        small = kdistill.distill(
            data,
            method="dm",
            ipc=10,
            seed=seed,
            out=out,
            threads=threads,
            resume=resume,
            force=out == DEMO and not resume,  # a folder that the user names is not replaced
            quiet=quiet,
        )
    evaluate_and_save(EvaluationConfig(protocol="quick"), small, data, out, seed=seed, quiet=quiet)
    echo(
        f"\nThe {len(small.images)} images are in {out}: look at {out / 'preview.png'} and "
        f"{out / 'README.md'}."
    )


@command(
    app,
    "kdistill distill mnist5k --method dm --ipc 10 --out out/digits",
    "kdistill distill photos/ --size 32 --set iterations=1000 --set lr_images=2.0 --out "
    "out/photos --resume",
)
def distill(
    data: OptionalData = None,
    method: Annotated[str | None, typer.Option(help="See `kdistill methods` (default dm).")] = None,
    ipc: Annotated[int | None, typer.Option(help="Images per class (default 10).")] = None,
    preset: Annotated[
        str | None, typer.Option(help="fast (for CPUs, the default) or paper.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the artefact.")] = Path("out/run"),
    config: Annotated[
        Path | None, typer.Option(help="TOML or JSON file; an artefact's config.json re-runs it.")
    ] = None,
    options: MethodOptions = [],
    seed: Annotated[int | None, typer.Option(help="Seed of the run (default 0).")] = None,
    size: Size = None,
    skip_unreadable: SkipUnreadable = False,
    normalisation: Annotated[str | None, typer.Option(help="standard, zca or none.")] = None,
    mirrors: Annotated[
        bool | None, typer.Option(help="Whether images may be mirrored (default: not digits).")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Start from an earlier artefact.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the set or the interrupted run in --out.")
    ] = False,
    device: Device = None,
    threads: Threads = None,
    max_minutes: MaxMinutes = None,
    snapshot_every: Annotated[
        int | None, typer.Option(help="Iterations between two snapshots of the set.")
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Iterations between two evaluations of the set on its way.")
    ] = None,
    evaluate_protocol: Annotated[
        str | None, typer.Option(help="How they train networks, as evaluate (default quick).")
    ] = None,
    evaluate_nets: Annotated[
        int | None, typer.Option(help="Networks of each of them (default 2).")
    ] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of the training images held out (default 0.1).")
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Between two checkpoints; a kill loses at most this.")
    ] = 1.0,
    quiet: Quiet = False,
) -> None:
    """Make a small synthetic set from DATA and leave it in a folder."""
    from kdistill.api.evaluate_snapshots import snapshot_settings
    from kdistill.api.run import Execution, check_run, run
    from kdistill.api.run_file import read_run
    from kdistill.artifacts.conclusions import snapshot_conclusions
    from kdistill.options import values_shown

    settings = {
        "data": data,
        "method": method,
        "ipc": ipc,
        "preset": preset,
        "seed": seed,
        "size": size,
        "normalisation": normalisation,
        "validation": validation,
        "mirrors": mirrors,
    }
    chosen = read_run(config, settings, options)
    execution = Execution(
        out=out,
        resume=resume,
        force=force,
        device=device,
        threads=threads,
        max_minutes=max_minutes,
        checkpoint_minutes=checkpoint_minutes,
        **snapshot_settings(snapshot_every, evaluate_every, evaluate_protocol, evaluate_nets),
        quiet=quiet,
    )
    check_run(chosen, execution, init)
    images = chosen.load(quiet=quiet, skip_unreadable=skip_unreadable)
    if not quiet:
        values = values_shown(chosen.method_options)
        echo_wrapped(f"{chosen.method}, preset {chosen.preset}: {values}", err=True)
    early = "before the first iteration; the same command starts again, finished experts are kept"
    with hint_on_interrupt(early, keeps_own=True):
        small = run(chosen, images, init=init, execution=execution)
    done, stopped = small.metrics["distillation"], ""
    if not done["finished"]:
        stopped = (
            f", of a run that --max-minutes stopped after {done['iterations']:,} iterations "
            "(--resume goes on)"
        )
    for line in snapshot_conclusions(small.metrics.get("snapshots")):
        echo_wrapped(line)
    echo(f"{len(small.images)} images in {out}{stopped}; next: kdistill evaluate {out}")


@command(
    app,
    "kdistill experts mnist5k --method mtt",
    "kdistill experts photos/ --method ftd --preset paper --size 32",
)
def experts(
    data: Data,
    method: Annotated[str, typer.Option(help="mtt, tesla, ftd, datm or pad.")] = "mtt",
    preset: Preset = "fast",
    options: MethodOptions = [],
    size: Size = None,
    skip_unreadable: SkipUnreadable = False,
    normalisation: Normalisation = "standard",
    device: Device = None,
    threads: Threads = None,
    validation: Validation = 0.1,
    quiet: Quiet = False,
) -> None:
    """Train the expert trajectories that a method still needs (distill does it too)."""
    from kdistill.api.experts import train_experts_of
    from kdistill.api.inputs import use
    from kdistill.api.run_file import read_run

    settings = {
        "data": data,
        "method": method,
        "preset": preset,
        "size": size,
        "normalisation": normalisation,
        "validation": validation,
    }
    config = read_run(None, settings, options)
    config.check()
    use(threads, device)
    images = config.load(quiet=quiet, skip_unreadable=skip_unreadable)
    store = train_experts_of(config, images, device=device, threads=threads, quiet=quiet)
    echo(
        f"{len(store)} experts of {store.epochs} epochs, {store.nbytes / 1e6:.1f} MB in "
        f"{store.folder}"
    )


@command(
    app,
    "kdistill plan mnist5k --method mtt --ipc 10",
    "kdistill plan photos/ --size 64 --method dm --preset paper",
)
def plan(
    data: Data,
    method: Annotated[str, typer.Option(help="See `kdistill methods`.")] = "dm",
    ipc: Annotated[int, typer.Option(help="Images per class.")] = 10,
    preset: Preset = "fast",
    options: MethodOptions = [],
    size: Size = None,
    skip_unreadable: SkipUnreadable = False,
    normalisation: Normalisation = "standard",
    threads: Threads = None,
) -> None:
    """Predict memory, disk and time of a run from a dry run of a few iterations."""
    from kdistill.api.inputs import use
    from kdistill.api.plan import plan_of
    from kdistill.api.run_file import read_run

    settings = {
        "data": data,
        "method": method,
        "ipc": ipc,
        "preset": preset,
        "size": size,
        "normalisation": normalisation,
    }
    config = read_run(None, settings, options)
    config.check()
    use(threads)
    echo(plan_of(config, config.load(skip_unreadable=skip_unreadable), threads=threads))
