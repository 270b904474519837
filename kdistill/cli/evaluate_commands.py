"""The commands that measure and pass on: ``evaluate``, ``score`` and ``export``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kdistill.cli.flags import (
    Data,
    Device,
    Normalisation,
    Quiet,
    Size,
    SkipUnreadable,
    Threads,
    Validation,
    setting,
)
from kdistill.cli.terminal import command, echo, echo_wrapped, show_table, words_of

app = typer.Typer()


@command(
    app,
    "kdistill evaluate out/digits",
    "kdistill evaluate out/digits --models convnet,alexnet,vgg11,resnet18,vit --nets 3",
)
def evaluate(
    artefact: Annotated[
        Path, typer.Argument(help="A folder made by distill, or images_best.pt of published code.")
    ],
    data: Annotated[
        str | None, typer.Option(help="The real data (default: what the artefact was made from).")
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="quick, bench, paper, dc, dsa, mtt, datm, glad, idc or eccv24 (see `kdistill "
            "options evaluate`)."
        ),
    ] = "bench",
    models: Annotated[str, typer.Option(help="Networks, separated by commas.")] = "convnet",
    baselines: Annotated[
        str, typer.Option(help="Rows beside it, separated by commas.")
    ] = "random,herding,k-center,full",
    ipc: Annotated[
        int | None, typer.Option(help="Images per class that a generator draws for this.")
    ] = None,
    nets: Annotated[int | None, typer.Option(help="Networks per row.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over a small set.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="Augmentation: auto, none, or families such as color_crop_flip."),
    ] = None,
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
    from kdistill.api.evaluate import EvaluationConfig
    from kdistill.api.inputs import use
    from kdistill.api.run_file import run_to_load, stored_set
    from kdistill.artifacts import import_published
    from kdistill.evaluation import is_from_other_data

    use(threads, device)
    config = EvaluationConfig(
        protocol=protocol,
        models=words_of(models),
        baselines=words_of(baselines),
        nets=nets,
        epochs=epochs,
        batch_size=batch_size,
        strategy=strategy,
        lr=_rate(lr),
        precision=precision,
    )
    if snapshots:
        _check_snapshots(artefact, config)
    small = stored_set(artefact)
    source = run_to_load(artefact, small, data=data, size=size)
    real = source.load(quiet=quiet, skip_unreadable=skip_unreadable)
    if small is None:
        small = import_published(artefact, transform=real.transform, classes=real.classes)
    is_other = is_from_other_data(small, real)
    out = artefact if artefact.is_dir() and not is_other and ipc is None else None
    chosen = {"seed": seed, "device": device, "quiet": quiet}
    if snapshots:
        _evaluate_snapshots(config, artefact, real, small, out, **chosen)
    else:
        result = evaluate_and_save(config, small, real, out, ipc=ipc, **chosen)
        for model in result.models if per_class else ():
            echo("\n" + result.per_class(model))
    if ipc is not None:
        echo(f"not saved in {artefact}, which holds other images", err=True)
    elif is_other:
        echo(
            f"not saved in {artefact}: it was made from other data than {real.source} as loaded "
            "here",
            err=True,
        )


def _rate(text: str | None) -> float | str | None:
    """Return what ``--lr`` says: a number, auto or None."""
    from kdistill.errors import ConfigError

    try:
        return text if text in (None, "auto") else float(text)
    except ValueError:
        raise ConfigError(f"lr: expected a number or auto, got '{text}'; 0.01 is usual") from None


def evaluate_and_save(config: Any, small: Any, data: Any, out: Path | None, **chosen: Any) -> Any:
    """Show the evaluation of a set, leave it in its folder, and return it."""
    from kdistill.api.evaluate import run_evaluation

    result = run_evaluation(config, small, data, **chosen)
    show_table(result)
    if out is not None:
        small.save_pretrained(out)
    return result


def _check_snapshots(run: Path, config: Any) -> None:
    """Raise ConfigError for what ``--snapshots`` cannot be combined with."""
    from kdistill.errors import ConfigError

    if run.is_dir() and len(config.networks) == 1 and config.lr != "auto":
        return
    got = f"the networks {', '.join(config.networks)}"
    got = "a file" if not run.is_dir() else "lr auto" if config.lr == "auto" else got
    raise ConfigError(
        f"--snapshots: expected the folder of a run, one network and a fixed lr, got {got}; change "
        "it"
    )


def _evaluate_snapshots(
    config: Any, run: Path, data: Any, small: Any, out: Path | None, **chosen: Any
) -> None:
    """Show one row per snapshot of ``run``, and leave the numbers in its artefact ``small``."""
    import kdistill

    (model,) = config.networks
    result = kdistill.evaluate_snapshots(run, data, protocol=config.recipe, model=model, **chosen)
    show_table(result)
    if out is not None:
        small.with_metrics(snapshots=result.to_dict()).save_pretrained(out)
    best = result.best_on_validation
    if best not in (None, result.rows[-1].iteration):
        echo(f"DistilledDataset.from_pretrained(RUN, iteration={best}) is the best on validation")


@command(
    app, "kdistill score mnist5k --out out/scores", "kdistill score photos/ --size 32 --set runs=10"
)
def score(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Folder of scores.csv, histogram.png and extremes.png.")
    ] = Path("out/scores"),
    seed: Annotated[int, typer.Option(help="Seed of all networks.")] = 0,
    validation: Validation = 0.1,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Read the pictures of a folder again and again, not into memory."
        ),
    ] = False,
    options: Annotated[list[str], setting("kdistill options score")] = [],
    size: Size = None,
    skip_unreadable: SkipUnreadable = False,
    normalisation: Normalisation = "standard",
    device: Device = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Score how hard every training image is: a table, a histogram and a sheet of images.

    The scores are EL2N, GraNd, forgetting, loss, margin and entropy.
    """
    import kdistill
    from kdistill.api.inputs import use
    from kdistill.api.score import check_score
    from kdistill.config import parse_overrides

    settings = parse_overrides(options)
    check_score(settings, seed, validation, out)
    use(threads, device)
    images = kdistill.load_data(
        data,
        size=size,
        normalisation=normalisation,
        stream=stream,
        quiet=quiet,
        skip_unreadable=skip_unreadable,
    )
    table = kdistill.score(
        images,
        options=settings,
        seed=seed,
        validation=validation,
        out=out,
        device=device,
        threads=threads,
        quiet=quiet,
    )
    echo(f"{len(table):,} images scored by {', '.join(table.scores)} in {out}")


@command(
    app,
    "kdistill export out/digits out/digits-png --to imagefolder",
    "kdistill export out/digits d.npz --to npz",
)
def export(
    artefact: Annotated[Path, typer.Argument(help="A folder made by distill.")],
    to_path: Annotated[Path, typer.Argument(help="Folder or file to write.")],
    to: Annotated[
        str, typer.Option(help="imagefolder, npz, ddranking, mtt, eccv24 or hf.")
    ] = "imagefolder",
) -> None:
    """Write the small set in another format."""
    from kdistill.artifacts import DistilledDataset
    from kdistill.artifacts.contents import GENERATOR
    from kdistill.artifacts.export import EIGHT_BIT, eight_bit_note

    small = DistilledDataset.from_pretrained(artefact)
    echo(f"wrote {small.export(to_path, to=to)}")
    if to in EIGHT_BIT and (lost := eight_bit_note(small)) is not None:
        echo_wrapped(lost)
    if GENERATOR in small.files:
        echo_wrapped(
            f"these are the {len(small)} images that the generator drew once; kdistill sample "
            f"{artefact} --ipc N --out OTHER draws others, which can be exported too"
        )
