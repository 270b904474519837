"""The card of a trained generator: what it was made from, how, and how good it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdistill.escape import code, markdown
from kdistill.priors.stylegan import Generator

TEMPLATE = """\
# {name}: a generator of {source}

A class-conditional StyleGAN2 of {size}x{size} images with {channels}, {layers} layers. Made by \
`kdistill prior train`.

![Generated images, one row per class](samples.png)

Classes: {classes}.

{iterations:,} iterations on {batch_size} images each; augmentation {augment} with a probability \
of {augment_p:.2f} at the end. All settings are in `config.json`.

## Quality

Accuracy of one ConvNet of width {width} per row, {steps} steps; {images:,} generated images, as \
many of each class.

| trained on | held-out training images | test images |
| --- | --- | --- |
| generated images alone | {generated_validation} | {generated_test} |
| real images | {real_validation} | {real_test} |

## Use

`kdistill distill DATA --method glad --set prior=THIS_FOLDER`. What it draws resembles the images \
it learned from: mind their licence.
"""


def card(
    name: str, network: Generator, classes: Sequence[str], provenance: Mapping[str, Any]
) -> str:
    """Return the card as Markdown.

    Args:
        name: Name of the folder.
        network: The generator.
        classes: Names of the classes, in the generator's order.
        provenance: ``source``, ``settings``, ``iterations``, ``augment``, ``augment_p`` and
            ``quality``, as they stand in ``config.json``.
    """
    quality, settings = provenance["quality"], provenance["settings"]
    accuracies = {
        f"{trained_on}_{tested_on}": _percent(quality[f"{trained_on}_{tested_on}"])
        for trained_on in ("generated", "real")
        for tested_on in ("validation", "test")
    }
    return TEMPLATE.format(
        name=markdown(name),
        source=markdown(provenance["source"]["name"]),
        size=network.size,
        channels=f"{network.channels} channel{'s' * (network.channels > 1)}",
        layers=network.num_layers,
        classes=", ".join(map(markdown, classes)),
        iterations=provenance["iterations"],
        batch_size=settings["batch_size"],
        augment=code(provenance["augment"]),
        augment_p=provenance["augment_p"],
        width=settings["quality_width"],
        steps=quality["steps"],
        images=quality["images"],
        **accuracies,
    )


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"
