"""The card of a trained generator: what it was made from, how, and how good it is, from what is recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdistill.escape import code, markdown
from kdistill.priors.stylegan import Generator

ROWS = (("generated images alone", "generated"), ("real images", "real"))


def card(name: str, network: Generator, classes: Sequence[str], about: Mapping[str, Any]) -> str:
    """Return the card as Markdown.

    Args:
        name: Of the folder.
        network: The generator.
        classes: Their names, in the generator's order.
        about: ``source``, ``settings``, ``iterations``, ``augment`` and ``quality``, as they stand
            in ``config.json``.
    """
    quality, settings, source = about["quality"], about["settings"], about["source"]
    augment = code(about["augment"])
    table = ["| trained on | held out training images | test images |", "| --- | --- | --- |"]
    for title, kind in ROWS:
        values = [_percent(quality[f"{kind}_{place}"]) for place in ("validation", "test")]
        table.append(f"| {title} | {' | '.join(values)} |")
    parts = [
        f"# {markdown(name)}: a generator of {markdown(source['name'])}",
        f"A class-conditional StyleGAN2 of {network.size}x{network.size} images with "
        f"{network.channels} "
        f"channel{'s' * (network.channels > 1)}, {network.num_layers} layers. Made by `kdistill "
        "prior train`.",
        "![Generated images, one row per class](samples.png)",
        "Classes: " + ", ".join(map(markdown, classes)) + ".",
        f"{about['iterations']:,} iterations on {settings['batch_size']} images each; augmentation "
        f"{augment} with a "
        f"probability of {about['augment_p']:.2f} at the end. All settings are in `config.json`.",
        "## Quality",
        f"Accuracy of one ConvNet of width {settings['quality_width']} per row, {quality['steps']} "
        f"steps; {quality['images']:,} "
        "generated images, as many of each class.",
        "\n".join(table),
        "## Use",
        "`kdistill distill DATA --method glad --set prior=THIS_FOLDER`. What it draws resembles "
        "the images it learned from: mind "
        "their licence.",
    ]
    return "\n\n".join(parts) + "\n"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"
