"""The commands of generators: ``prior convert``."""

from pathlib import Path
from typing import Annotated

import typer

from kdistill.cli._shared import _examples, _one_sentence

app = typer.Typer(help="Generators that images can be drawn from (see docs/priors.md).", no_args_is_help=True)


@app.command(epilog=_examples("kdistill prior convert net.pkl out/prior", "kdistill prior convert imagenet128.pkl out/xl"))
def convert(
    network: Annotated[Path, typer.Argument(help="Network file (.pkl) of StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL.")],
    out: Annotated[Path, typer.Argument(help="Folder of the generator.")],
) -> None:
    """Take the generator out of a network file, without running anything in it, and keep it as safetensors."""
    with _one_sentence():
        from kdistill.priors.network_files import convert_network

        found = convert_network(network, out)
        about = f"{found.size}x{found.size}, {found.channels} channel{'s' * (found.channels > 1)}, {found.classes} classes"
        typer.echo(f"{type(found).__name__}, {about}, {found.num_layers} layers in {out}")
        typer.echo(found.layers_listed())
