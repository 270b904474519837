"""The command line.  torch is imported inside commands only, so that ``--help`` is quick."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdistill.cli import data_commands as _check
from kdistill.cli import prior_commands as _priors
from kdistill.cli import run_commands as _runs
from kdistill.cli import snapshot_rows as _snapshots
from kdistill.cli import sweep_commands as _tables
from kdistill.cli.shared import (
    Device,
    Options,
    Protocol,
    Quiet,
    SkipUnreadable,
    Threads,
    _examples,
    _one_sentence,
    _seen,
    _step_size,
    echo,
    show,
)
from kdistill.signals import exit_status

app = typer.Typer(
    name="kdistill",
    help="Make a tiny synthetic training set from a labelled image set.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

DEMO = Path("out/demo")


@app.command(epilog=_examples("kdistill demo", "kdistill demo --out out/demo --seed 1"))
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the artefact.")] = DEMO,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Distill real handwritten digits to 10 images per class and compare with the baselines (a few minutes, no download)."""
    with _one_sentence():
        import kdistill
        from kdistill.api.run_folder import is_unfinished

        data = kdistill.load_data("mnist5k", quiet=quiet)
        resume = is_unfinished(out)
        force = (
            out == DEMO and not resume
        )  # what an earlier demo left; a folder that the user names is not replaced
        try:
            small = kdistill.distill(
                data,
                method="dm",
                ipc=10,
                seed=seed,
                out=out,
                threads=threads,
                resume=resume,
                force=force,
                quiet=quiet,
            )
        except KeyboardInterrupt as error:
            echo(
                f"\nkdistill: interrupted; the state is saved in {out}, the same command goes on "
                "from there",
                err=True,
            )
            raise typer.Exit(exit_status(error)) from None
        _evaluate_and_save(small, data, out, protocol="quick", seed=seed, quiet=quiet)
        echo(
            f"\nThe {len(small.images)} images are in {out}: look at {out / 'preview.png'} and "
            f"{out / 'README.md'}."
        )


@app.command(
    epilog=_examples(
        "kdistill evaluate out/digits",
        "kdistill evaluate out/digits --models convnet,alexnet,vgg11,resnet18,vit --nets 3",
    )
)
def evaluate(
    artefact: Annotated[
        Path, typer.Argument(help="A folder made by distill, or images_best.pt of published code.")
    ],
    data: Annotated[
        str | None, typer.Option(help="The real data (default: what the artefact was made from).")
    ] = None,
    protocol: Protocol = "bench",
    models: Annotated[str, typer.Option(help="Networks, separated by commas.")] = "convnet",
    baselines: Annotated[
        str, typer.Option(help="Rows beside it, separated by commas.")
    ] = "random,herding,k-center,full",
    nets: Annotated[int | None, typer.Option(help="Networks per row.")] = None,
    lr: Annotated[
        str | None,
        typer.Option(help="Learning rate, or auto: for every row the best on validation images."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, tf32 (GPU) or bf16 (convnet).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the evaluation.")] = 0,
    size: Annotated[int | None, typer.Option(help="Resize the real images to this side.")] = None,
    skip_unreadable: SkipUnreadable = False,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Test every snapshot of the run, without baselines.")
    ] = False,
    per_class: Annotated[
        bool,
        typer.Option(
            "--per-class",
            help="Also show the accuracy of every class, and which is taken for which.",
        ),
    ] = False,
    device: Device = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train fresh networks on the small set and on baselines, and test them on real data."""
    with _one_sentence():
        from kdistill.api.evaluate import check_settings
        from kdistill.api.resources import use
        from kdistill.artifacts import DistilledDataset
        from kdistill.errors import DataError
        from kdistill.evaluation import is_from_other_data

        use(threads, device)
        step_size = _step_size(lr)
        if not artefact.exists():
            raise DataError(
                f"evaluate: expected an artefact, got nothing at {artefact}; check the path"
            )
        networks = tuple(name for name in models.split(",") if name)
        wanted = tuple(b for b in baselines.split(",") if b)
        check_settings(protocol, networks, wanted, nets=nets, lr=step_size, precision=precision)
        if snapshots:
            _snapshots.check(artefact, networks, step_size)
        small = DistilledDataset.from_pretrained(artefact) if artefact.is_dir() else None
        run = small.config.get("run") if small else {}
        run = run if isinstance(run, dict) else {}
        how = {"mirrors": run.get("mirrors"), "quiet": quiet, "skip_unreadable": skip_unreadable}
        normalisation = str(run.get("normalisation", "standard"))
        seen = _seen(
            data or _source_of(run, artefact), size or run.get("size"), normalisation, **how
        )
        if small is None:
            from kdistill.artifacts import import_published

            small = import_published(artefact, transform=seen.transform, classes=seen.classes)
        other = is_from_other_data(small, seen)
        out = artefact if artefact.is_dir() and not other else None
        chosen = {
            "protocol": protocol,
            "nets": nets,
            "lr": step_size,
            "precision": precision,
            "seed": seed,
            "device": device,
        }
        chosen["quiet"] = quiet
        if snapshots:
            _snapshots.evaluate_and_save(
                artefact, seen, small, model=networks[0], is_saved=out is not None, **chosen
            )
        else:
            result = _evaluate_and_save(
                small, seen, out, models=networks, baselines=wanted, **chosen
            )
            for model in result.models if per_class else ():
                echo("\n" + result.per_class(model))
        if other:
            echo(
                f"not saved in {artefact}: it was made from other data than {seen.source} as "
                "loaded here",
                err=True,
            )


def _source_of(run: dict[str, Any], artefact: Path) -> str:
    from kdistill.data.builtin import BUILTIN
    from kdistill.errors import ConfigError

    if not run.get("data"):
        raise ConfigError(f"evaluate: expected the real data, got none in {artefact}; pass --data")
    source = str(run["data"])
    if source not in BUILTIN and not Path(source).expanduser().exists():
        raise ConfigError(
            f"evaluate: expected data that can be loaded again, got '{source}' in {artefact}; pass "
            "--data"
        )
    return source


def _evaluate_and_save(small: Any, data: Any, out: Path | None, **chosen: Any) -> Any:
    from kdistill.api.evaluate import evaluate as run

    result = run(small, data, **chosen)
    show(result)
    if out is not None:
        small.save_pretrained(out)
    return result


@app.command(
    epilog=_examples(
        "kdistill score mnist5k --out out/scores", "kdistill score photos/ --size 32 --set runs=10"
    )
)
def score(
    data: Annotated[
        str,
        typer.Argument(help="mnist5k, digits, photo-patches, a folder, .npz, .safetensors or .pt."),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of scores.csv, histogram.png and extremes.png.")
    ] = Path("out/scores"),
    seed: Annotated[int, typer.Option(help="Seed of all runs.")] = 0,
    validation: Annotated[float, typer.Option(help="Share that distill would hold out.")] = 0.1,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Read the pictures of a folder again and again, not into memory."
        ),
    ] = False,
    options: Options = [],
    size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    skip_unreadable: SkipUnreadable = False,
    normalisation: Annotated[str, typer.Option(help="standard, zca or none.")] = "standard",
    device: Device = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Score how hard every training image is (EL2N, GraNd, forgetting, ...): a table, a histogram and a sheet of images."""
    with _one_sentence():
        from kdistill.api.resources import use
        from kdistill.api.score import check_score
        from kdistill.api.score import score as score_images
        from kdistill.config import parse_overrides

        given = parse_overrides(options)
        check_score(given, seed, validation, out)
        use(threads, device)
        seen = _seen(
            data, size, normalisation, stream=stream, quiet=quiet, skip_unreadable=skip_unreadable
        )
        table = score_images(
            seen,
            options=given,
            seed=seed,
            validation=validation,
            out=out,
            device=device,
            threads=threads,
            quiet=quiet,
        )
        echo(f"{len(table):,} images scored by {', '.join(table.scores)} in {out}")


@app.command(
    epilog=_examples(
        "kdistill plan mnist5k --method mtt --ipc 10",
        "kdistill plan photos/ --size 64 --method dm --preset paper",
    )
)
def plan(
    data: Annotated[
        str,
        typer.Argument(help="mnist5k, digits, photo-patches, a folder, .npz, .safetensors or .pt."),
    ],
    method: Annotated[str, typer.Option(help="See `kdistill methods`.")] = "dm",
    ipc: Annotated[int, typer.Option(help="Images per class.")] = 10,
    preset: Annotated[str, typer.Option(help="As for distill.")] = "fast",
    options: Options = [],
    size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    skip_unreadable: SkipUnreadable = False,
    normalisation: Annotated[str, typer.Option(help="standard, zca or none.")] = "standard",
    threads: Threads = None,
) -> None:
    """Predict memory, disk and time of a run from a dry run of a few iterations."""
    with _one_sentence():
        from kdistill.api.plan import plan_of
        from kdistill.api.resources import use
        from kdistill.api.run import RunConfig
        from kdistill.config import from_mapping, parse_overrides

        settings = {
            "data": data,
            "method": method,
            "ipc": ipc,
            "preset": preset,
            "size": size,
            "normalisation": normalisation,
            "options": parse_overrides(options),
        }
        config = from_mapping(RunConfig, settings, where="plan")
        config.check()
        use(threads)
        echo(plan_of(config, config.load(skip_unreadable=skip_unreadable), threads=threads))


@app.command(
    "methods",
    epilog=_examples("kdistill methods", "kdistill methods dm", "kdistill methods mtt --presets"),
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
    with _one_sentence():
        from kdistill import methods
        from kdistill.cli import method_listing as _methods
        from kdistill.errors import ConfigError

        if name is None and presets:
            raise ConfigError(
                "methods: expected a method for --presets, got none; write for example kdistill "
                "methods mtt --presets"
            )
        if name is None:
            lines = _methods.overview(papers=papers)
        else:
            found = methods.get(name)
            lines = _methods.presets(found) if presets else _methods.details(found)
        for line in lines:
            echo(line)


@app.command(
    epilog=_examples(
        "kdistill export out/digits out/digits-png --to imagefolder",
        "kdistill export out/digits d.npz --to npz",
    )
)
def export(
    artefact: Annotated[Path, typer.Argument(help="A folder made by distill.")],
    to_path: Annotated[Path, typer.Argument(help="Folder or file to write.")],
    to: Annotated[
        str, typer.Option(help="imagefolder, npz, ddranking, mtt, eccv24 or hf.")
    ] = "imagefolder",
) -> None:
    """Write the small set in another format."""
    with _one_sentence():
        from kdistill.artifacts import DistilledDataset

        written = DistilledDataset.from_pretrained(artefact).export(to_path, to=to)
        echo(f"wrote {written}")


@app.command(
    epilog=_examples("kdistill doctor", "KDISTILL_BACKEND=reference kdistill doctor --verbose")
)
def doctor(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say of every op what each backend answers.")
    ] = False,
) -> None:
    """Say what is installed, which backend runs each op, and why the others do not."""
    with _one_sentence():
        from kdistill import doctor as diagnosis

        for line in diagnosis.report(verbose=verbose):
            echo(line)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=_examples("kdistill bench --quick", "kdistill bench --op norm_act_pool --device cpu"),
)
def bench(context: typer.Context) -> None:
    """Run the kernel benchmarks (needs a checkout: `python -m benchmarks.run`)."""
    with _one_sentence():
        from kdistill.errors import ConfigError

        root = Path(__file__).parents[2]
        if not (root / "benchmarks" / "run.py").exists():
            raise ConfigError(
                "bench: expected a checkout of the project, got an installed package; clone it "
                "first"
            )
        paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.run", *context.args],
            {**os.environ, "PYTHONPATH": paths},
        )


_runs.add_to(app)
_check.add_to(app)
_tables.add_to(app)
app.add_typer(_priors.app, name="prior")


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
