"""The command line.  torch is imported inside commands only, so that ``--help`` is quick."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdistill.cli import _priors, _tables
from kdistill.cli._shared import Device, Options, Protocol, Seed, Threads, _examples, _one_sentence, _step_size, echo

app = typer.Typer(
    name="kdistill",
    help="Make a tiny synthetic training set from a labelled image set.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _seen(data: str, size: int | None, normalisation: str, stream: bool = False) -> Any:
    from kdistill.api import load_data

    return load_data(data, size=size, normalisation=normalisation, stream=stream)


@app.command(epilog=_examples("kdistill demo", "kdistill demo --out out/demo --seed 1"))
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the artefact.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    threads: Threads = None,
) -> None:
    """Distill real handwritten digits to 10 images per class and compare with the baselines (a few minutes, no download)."""
    from kdistill.progress import progress_line

    with _one_sentence():
        import kdistill
        from kdistill.api import is_unfinished

        data = kdistill.load_data("mnist5k")
        resume = is_unfinished(out)
        try:
            with progress_line("distilling") as watch:
                small = kdistill.distill(
                    data, method="dm", ipc=10, seed=seed, out=out, callbacks=[watch], threads=threads, resume=resume
                )
        except KeyboardInterrupt:
            echo(f"\nkdistill: interrupted; the state is saved in {out}, the same command goes on from there", err=True)
            raise typer.Exit(130) from None
        _evaluate_and_save(small, data, out, protocol="quick", seed=seed)
        echo(f"\nThe {len(small.images)} images are in {out}: look at {out / 'preview.png'} and {out / 'README.md'}.")


@app.command(
    epilog=_examples(
        "kdistill distill mnist5k --method dm --ipc 10 --out out/digits",
        "kdistill distill photos/ --size 32 --set iterations=1000 --set lr_images=2.0 --out out/photos --resume",
    )
)
def distill(
    data: Annotated[
        str | None, typer.Argument(help="mnist5k, digits, photo-patches, a folder, .npz, .safetensors or .pt.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="See `kdistill methods` (default dm).")] = None,
    ipc: Annotated[int | None, typer.Option(help="Images per class (default 10).")] = None,
    preset: Annotated[str | None, typer.Option(help="fast (for CPUs, the default) or paper.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the artefact.")] = Path("out/run"),
    config: Annotated[Path | None, typer.Option(help="TOML or JSON file; an artefact's config.json re-runs it.")] = None,
    options: Options = [],  # noqa: B006 - typer copies it
    seed: Seed = None,
    size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    normalisation: Annotated[str | None, typer.Option(help="standard, zca or none.")] = None,
    init: Annotated[Path | None, typer.Option(help="Start from an earlier artefact.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    device: Device = None,
    threads: Threads = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop after this time and keep what is there.")] = None,
) -> None:
    """Make a small synthetic set from DATA and leave it in a folder."""
    with _one_sentence():
        from kdistill.config import parse_overrides
        from kdistill.progress import progress_line

        given = {"data": data, "method": method, "ipc": ipc, "preset": preset, "seed": seed, "size": size}
        run = _run_config(config, {**given, "normalisation": normalisation}, parse_overrides(options))
        seen = _seen(run.data, run.size, run.normalisation)
        echo(f"{run.method}, preset {run.preset}: {_effective(run)}", err=True)
        try:
            with progress_line("distilling") as watch:
                from kdistill.api import distill as distill_data

                small = distill_data(
                    seen,
                    method=run.method,
                    ipc=run.ipc,
                    seed=run.seed,
                    preset=run.preset,
                    options=run.options,
                    validation=run.validation,
                    init=init,
                    out=out,
                    resume=resume,
                    callbacks=[watch],
                    device=device,
                    threads=threads,
                    max_minutes=max_minutes,
                )
        except KeyboardInterrupt:
            from kdistill.api import is_unfinished

            saved = f"the state is saved in {out}, continue with --resume"
            early = "before the first iteration; the same command starts again, finished experts are kept"
            echo(f"\nkdistill: interrupted; {saved if is_unfinished(out) else early}", err=True)
            raise typer.Exit(130) from None
        echo(f"{len(small.images)} images in {out}; next: kdistill evaluate {out}")


def _run_config(path: Path | None, given: dict[str, Any], options: dict[str, Any]) -> Any:
    from kdistill.api import RunConfig
    from kdistill.config import from_mapping, load_file
    from kdistill.errors import ConfigError

    loaded = load_file(path) if path else {}
    loaded = loaded.get("run", loaded)  # an artefact's config.json holds the run beside its source and environment
    for key, table in (("run", loaded), ("options", loaded.get("options", {}) if isinstance(loaded, dict) else {})):
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: expected '{key}' to be a table, got {table!r}; write its keys below [{key}]")
    merged = {**loaded, **{key: value for key, value in given.items() if value is not None}}
    merged["options"] = {**_options_that_apply(path, loaded, given), **options}
    if not merged.get("data"):
        raise ConfigError("distill: expected data, got none; name a set, a folder or a file, or pass --config")
    return from_mapping(RunConfig, merged, where=str(path or "command line"))


def _options_that_apply(path: Path | None, loaded: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the file's options, or none if the command line asks for another method or preset: they are that one's values."""
    from kdistill.api import RunConfig

    options: dict[str, Any] = loaded.get("options", {})
    for key in ("method", "preset"):
        asked, there = given[key], loaded.get(key, getattr(RunConfig(), key))
        if options and asked is not None and asked != there:
            echo(f"kdistill: the options in {path} are left out: they are for {key} {there}, not {asked}", err=True)
            return {}
    return options


def _effective(run: Any) -> str:
    from kdistill.api import resolve
    from kdistill.methods._options import value_shown

    config = resolve(run.method, run.preset, run.options)
    return ", ".join(f"{key}={value_shown(type(config), key, value)}" for key, value in vars(config).items())


@app.command(
    epilog=_examples(
        "kdistill evaluate out/digits", "kdistill evaluate out/digits --models convnet,alexnet,vgg11,resnet18,vit --nets 3"
    )
)
def evaluate(
    artefact: Annotated[Path, typer.Argument(help="A folder made by distill, or images_best.pt of published code.")],
    data: Annotated[str | None, typer.Option(help="The real data (default: what the artefact was made from).")] = None,
    protocol: Protocol = "bench",
    models: Annotated[str, typer.Option(help="Networks, separated by commas.")] = "convnet",
    baselines: Annotated[str, typer.Option(help="Rows beside it, separated by commas.")] = "random,herding,k-center,full",
    nets: Annotated[int | None, typer.Option(help="Networks per row.")] = None,
    lr: Annotated[str | None, typer.Option(help="Step size, or auto: for every row the best on validation images.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, tf32 (GPU) or bf16 (convnet).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the evaluation.")] = 0,
    size: Annotated[int | None, typer.Option(help="Resize the real images to this side.")] = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Train fresh networks on the small set and on baselines, and test them on real data."""
    with _one_sentence():
        from kdistill.api import use
        from kdistill.artifacts import DistilledDataset
        from kdistill.errors import DataError
        from kdistill.evaluation import is_from_other_data

        use(threads, device)
        step_size = _step_size(lr)
        if not artefact.exists():
            raise DataError(f"evaluate: expected an artefact, got nothing at {artefact}; check the path")
        small = DistilledDataset.from_pretrained(artefact) if artefact.is_dir() else None
        run = small.config.get("run", {}) if small else {}
        seen = _seen(data or _source_of(run, artefact), size or run.get("size"), run.get("normalisation", "standard"))
        if small is None:
            from kdistill.artifacts import import_published

            small = import_published(artefact, transform=seen.transform, classes=seen.classes)
        other = is_from_other_data(small, seen)
        out = artefact if artefact.is_dir() and not other else None
        wanted = tuple(b for b in baselines.split(",") if b)
        networks = tuple(name for name in models.split(",") if name)
        chosen = {"protocol": protocol, "models": networks, "baselines": wanted, "nets": nets, "lr": step_size}
        _evaluate_and_save(small, seen, out, **chosen, precision=precision, seed=seed, device=device)
        if other:
            echo(f"not saved in {artefact}: it was made from other data than {seen.source} as loaded here", err=True)


def _source_of(run: dict[str, Any], artefact: Path) -> str:
    from kdistill.data.builtin import BUILTIN
    from kdistill.errors import ConfigError

    if not run.get("data"):
        raise ConfigError(f"evaluate: expected the real data, got none in {artefact}; pass --data")
    source = str(run["data"])
    if source not in BUILTIN and not Path(source).expanduser().exists():
        raise ConfigError(f"evaluate: expected data that can be loaded again, got '{source}' in {artefact}; pass --data")
    return source


def _evaluate_and_save(small: Any, data: Any, out: Path | None, **chosen: Any) -> None:
    from kdistill.evaluation import evaluate as run
    from kdistill.progress import console, status_line

    with status_line("evaluating") as say:
        result = run(small, data, **chosen, progress=say)
    console().print(result.table())
    if (across := result.across()) is not None:
        console().print(across)
    if out is not None:
        small.save_pretrained(out)


@app.command(
    epilog=_examples("kdistill experts mnist5k --method mtt", "kdistill experts photos/ --method ftd --preset paper --size 32")
)
def experts(
    data: Annotated[str, typer.Argument(help="mnist5k, digits, photo-patches, a folder, .npz, .safetensors or .pt.")],
    method: Annotated[str, typer.Option(help="mtt, tesla, ftd, datm or pad.")] = "mtt",
    preset: Annotated[str, typer.Option(help="As for distill.")] = "fast",
    options: Options = [],  # noqa: B006 - typer copies it
    size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    normalisation: Annotated[str, typer.Option(help="standard, zca or none.")] = "standard",
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Train the expert trajectories of a method, or those that are missing (distill does it too)."""
    with _one_sentence():
        from kdistill.api import train_experts
        from kdistill.config import parse_overrides

        seen = _seen(data, size, normalisation)
        given = parse_overrides(options)
        store = train_experts(seen, method=method, preset=preset, options=given, device=device, threads=threads)
        echo(f"{len(store)} experts of {store.epochs} epochs, {store.nbytes / 1e6:.1f} MB in {store.folder}")


@app.command(epilog=_examples("kdistill score mnist5k --out out/scores", "kdistill score photos/ --size 32 --set runs=10"))
def score(
    data: Annotated[str, typer.Argument(help="mnist5k, digits, photo-patches, a folder, .npz, .safetensors or .pt.")],
    out: Annotated[Path, typer.Option(help="Folder of scores.csv, histogram.png and extremes.png.")] = Path("out/scores"),
    seed: Annotated[int, typer.Option(help="Seed of all runs.")] = 0,
    validation: Annotated[float, typer.Option(help="Share that distill would withhold.")] = 0.1,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read the pictures of a folder again and again, not into memory.")
    ] = False,
    options: Options = [],  # noqa: B006 - typer copies it
    size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    normalisation: Annotated[str, typer.Option(help="standard, zca or none.")] = "standard",
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Score how hard every training image is (EL2N, GraNd, forgetting, ...): a table, a histogram and a sheet of images."""
    with _one_sentence():
        from kdistill.config import parse_overrides
        from kdistill.progress import status_line
        from kdistill.scoring import score as score_images

        seen, given = _seen(data, size, normalisation, stream), parse_overrides(options)
        with status_line("score") as say:
            table = score_images(
                seen, options=given, seed=seed, validation=validation, out=out, say=say, device=device, threads=threads
            )
        echo(f"{len(table):,} images scored by {', '.join(table.scores)} in {out}")


@app.command(
    epilog=_examples("kdistill plan mnist5k --method mtt --ipc 10", "kdistill plan photos/ --size 64 --method dm --preset paper")
)
def plan(
    data: Annotated[str, typer.Argument(help="mnist5k, digits, photo-patches, a folder, .npz, .safetensors or .pt.")],
    method: Annotated[str, typer.Option(help="See `kdistill methods`.")] = "dm",
    ipc: Annotated[int, typer.Option(help="Images per class.")] = 10,
    preset: Annotated[str, typer.Option(help="As for distill.")] = "fast",
    options: Options = [],  # noqa: B006 - typer copies it
    size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    normalisation: Annotated[str, typer.Option(help="standard, zca or none.")] = "standard",
    threads: Threads = None,
) -> None:
    """Predict memory, disk and time of a run from a rehearsal of a few iterations."""
    with _one_sentence():
        from kdistill.config import parse_overrides
        from kdistill.planning import plan as predict

        seen = _seen(data, size, normalisation)
        echo(predict(seen, method=method, ipc=ipc, preset=preset, options=parse_overrides(options), threads=threads))


@app.command("methods", epilog=_examples("kdistill methods", "kdistill methods dm", "kdistill methods mtt --presets"))
def list_methods(
    name: Annotated[str | None, typer.Argument(help="Show the options of one method.")] = None,
    presets: Annotated[bool, typer.Option("--presets", help="Show the presets of the method.")] = False,
    papers: Annotated[bool, typer.Option("--papers", help="Cite the paper of every method.")] = False,
) -> None:
    """List the methods, or the options of one with their explanations."""
    with _one_sentence():
        from kdistill import methods
        from kdistill.cli import _methods
        from kdistill.errors import ConfigError

        if name is None and presets:
            raise ConfigError(
                "methods: expected a method for --presets, got none; write for example kdistill methods mtt --presets"
            )
        if name is None:
            lines = _methods.overview(papers=papers)
        else:
            found = methods.get(name)
            lines = _methods.presets(found) if presets else _methods.details(found)
        for line in lines:
            echo(line)


@app.command(
    epilog=_examples("kdistill export out/digits out/digits-png --to imagefolder", "kdistill export out/digits d.npz --to npz")
)
def export(
    artefact: Annotated[Path, typer.Argument(help="A folder made by distill.")],
    to_path: Annotated[Path, typer.Argument(help="Folder or file to write.")],
    to: Annotated[str, typer.Option(help="imagefolder, npz, ddranking, mtt, eccv24 or hf.")] = "imagefolder",
) -> None:
    """Write the small set in another format."""
    with _one_sentence():
        from kdistill.artifacts import DistilledDataset

        written = DistilledDataset.from_pretrained(artefact).export(to_path, to=to)
        echo(f"wrote {written}")


@app.command(epilog=_examples("kdistill doctor", "KDISTILL_BACKEND=reference kdistill doctor --verbose"))
def doctor(
    verbose: Annotated[bool, typer.Option("--verbose", help="Say of every op what each backend answers.")] = False,
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
            raise ConfigError("bench: expected a checkout of the project, got an installed package; clone it first")
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.run", *context.args])


_tables.add_to(app)
app.add_typer(_priors.app, name="prior")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from kdistill._version import __version__

        echo(f"kdistill {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app()
