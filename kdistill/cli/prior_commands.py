"""The commands of generators: ``prior convert`` and ``prior train``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kdistill.cli.flags import (
    Data,
    Device,
    MaxMinutes,
    Quiet,
    SkipUnreadable,
    Threads,
    Validation,
    setting,
)
from kdistill.cli.terminal import command, echo, echo_wrapped, hint_on_interrupt
from kdistill.errors import ConfigError

app = typer.Typer(
    help="Generators that images can be drawn from (see docs/guide/priors.md).",
    no_args_is_help=True,
)


@command(
    app,
    "kdistill prior convert net.pkl out/prior",
    "kdistill prior convert imagenet128.pkl out/xl",
    "kdistill prior convert cin256/model.ckpt out/ldm",
    "kdistill prior convert DiT-XL-2-256/ out/dit --licence cc-by-nc-4.0",
)
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Network file (.pkl) of StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL; checkpoint "
            "(.ckpt) of latent diffusion; or folder of a diffusers model."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the generator.")],
    licence: Annotated[
        str, typer.Option(help="Licence of a diffusion model's weights, for its card.")
    ] = "",
    heads: Annotated[
        int | None, typer.Option(help="Attention heads of a .ckpt; 1 unless this is said.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the images of a .ckpt; 256 unless this is said.")
    ] = None,
    null_class: Annotated[
        int | None,
        typer.Option(help="Row of a class table for no class; the last of 1001 without it."),
    ] = None,
) -> None:
    """Take a generator out of published files, which are never run, and keep it as safetensors."""
    from kdistill.priors.diffusion.pretrained import convert_diffusion, is_diffusion
    from kdistill.priors.network_files import convert_network

    options = {"licence": licence, "heads": heads, "size": size, "null_class": null_class}
    chosen = {name: value for name, value in options.items() if value not in (None, "")}
    if is_diffusion(source):
        model = convert_diffusion(source, out, **chosen)
        echo(
            f"diffusion model, {model.size}x{model.size}, {model.channels} channels, "
            f"{model.classes:,} classes, latents {list(model.latent_shape)} in {out}"
        )
        return
    if chosen:
        raise ConfigError(
            f"{next(iter(chosen))}: expected a diffusion model for this option, got {source}; "
            "leave it out for a network file of StyleGAN"
        )
    generator = convert_network(source, out)
    echo(
        f"{type(generator).__name__}, {generator.size}x{generator.size}, {generator.channels} "
        f"channel{'s' * (generator.channels > 1)}, {generator.classes} classes, "
        f"{generator.num_layers} layers in {out}"
    )
    echo_wrapped(generator.layer_listing())


@command(
    app,
    "kdistill prior train mnist5k --size 32 --out out/prior",
    "kdistill prior train photos/ --kind diffusion --size 32 --out out/photos --resume",
)
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the generator.")] = Path("out/prior"),
    kind: Annotated[
        str, typer.Option(help="gan (a StyleGAN2, for glad) or diffusion (for ld3m).")
    ] = "gan",
    options: Annotated[list[str], setting("kdistill options prior")] = [],
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    size: Annotated[
        int | None, typer.Option(help="Resize images to this side, a power of two.")
    ] = None,
    skip_unreadable: SkipUnreadable = False,
    validation: Validation = 0.1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the training in --out.")
    ] = False,
    device: Device = None,
    threads: Threads = None,
    max_minutes: MaxMinutes = None,
    quiet: Quiet = False,
) -> None:
    """Train a small generator on the images of DATA, for `distill --set prior=OUT`."""
    from kdistill.api.prior import check_training, train_prior
    from kdistill.config import parse_overrides
    from kdistill.data import load_data

    settings: dict[str, Any] = {
        "kind": kind,
        "options": parse_overrides(options),
        "seed": seed,
        "validation": validation,
        "resume": resume,
        "device": device,
        "threads": threads,
        "max_minutes": max_minutes,
    }
    check_training(out, size=size, **settings)
    images = load_data(data, size=size, quiet=quiet, skip_unreadable=skip_unreadable)
    with hint_on_interrupt(f"the state is saved in {out}, continue with --resume"):
        made = train_prior(images, out=out, quiet=quiet, **settings)
    layers = f"{made.generator.layer_listing()}\n" if kind == "gan" else ""
    echo_wrapped(f"{layers}{made.quality.described()}")
    stopped = f" (stopped by --max-minutes after {made.iterations:,} iterations; --resume goes on)"
    echo(f"generator in {out}{'' if made.finished else stopped}; look at {out / 'samples.png'}")
