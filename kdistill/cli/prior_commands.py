"""The commands of generators: ``prior convert`` and ``prior train``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kdistill.cli.shared import (
    Device,
    Options,
    Quiet,
    SkipUnreadable,
    Threads,
    _examples,
    _one_sentence,
    echo,
    echo_wrapped,
)
from kdistill.signals import exit_status

app = typer.Typer(
    help="Generators that images can be drawn from (see docs/guide/priors.md).",
    no_args_is_help=True,
)


@app.command(
    epilog=_examples(
        "kdistill prior convert net.pkl out/prior", "kdistill prior convert imagenet128.pkl out/xl"
    )
)
def convert(
    network: Annotated[
        Path, typer.Argument(help="Network file (.pkl) of StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the generator.")],
) -> None:
    """Take the generator out of a network file, without running anything in it, and keep it as safetensors."""
    with _one_sentence():
        from kdistill.priors.network_files import convert_network

        found = convert_network(network, out)
        about = f"{found.size}x{found.size}, {found.channels} channel{'s' * (found.channels > 1)}, {found.classes} classes"
        echo(f"{type(found).__name__}, {about}, {found.num_layers} layers in {out}")
        echo_wrapped(found.layer_listing())


@app.command(
    epilog=_examples(
        "kdistill prior train mnist5k --size 32 --out out/prior",
        "kdistill prior train photos/ --size 64 --set iterations=20000 --out out/photos --resume",
    )
)
def train(
    data: Annotated[
        str,
        typer.Argument(help="mnist5k, digits, photo-patches, a folder, .npz, .safetensors or .pt."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the generator.")] = Path("out/prior"),
    options: Options = [],
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    size: Annotated[
        int | None, typer.Option(help="Resize images to this side, a power of two.")
    ] = None,
    skip_unreadable: SkipUnreadable = False,
    validation: Annotated[float, typer.Option(help="Share of the training images held out.")] = 0.1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the training in --out.")
    ] = False,
    device: Device = None,
    threads: Threads = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop after this time and keep what is there.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a small generator on the images of DATA, for `distill --method glad --set prior=OUT`."""
    with _one_sentence():
        from kdistill.api.prior import check_training, train_prior
        from kdistill.config import parse_overrides
        from kdistill.data import load_data

        settings: dict[str, Any] = {
            "options": parse_overrides(options),
            "seed": seed,
            "validation": validation,
            "resume": resume,
            "device": device,
            "threads": threads,
            "max_minutes": max_minutes,
        }
        check_training(out, size=size, **settings)
        seen = load_data(data, size=size, quiet=quiet, skip_unreadable=skip_unreadable)
        try:
            made = train_prior(seen, out=out, quiet=quiet, **settings)
        except KeyboardInterrupt as error:
            echo(
                f"\nkdistill: interrupted; the state is saved in {out}, continue with --resume",
                err=True,
            )
            raise typer.Exit(exit_status(error)) from None
        echo_wrapped(f"{made.generator.layer_listing()}\n{made.quality.described()}")
        state = (
            ""
            if made.finished
            else f" (stopped by --max-minutes after {made.iterations:,} iterations; --resume goes on)"
        )
        echo(f"generator in {out}{state}; look at {out / 'samples.png'}")
