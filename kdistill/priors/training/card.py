"""The card of a trained generator, as Markdown."""

from collections.abc import Mapping, Sequence

from kdistill.escape import markdown
from kdistill.priors.base import ImageGenerator
from kdistill.priors.training.memorisation import Memorisation
from kdistill.priors.training.quality import Quality

TEMPLATE = """\
# {name}: a generator of {source}

{kind} of {size}x{size} images with {channels}. Made by `kdistill prior train`.

![Generated images, one row per class](samples.png)

Classes: {classes}.

{training} All settings are in `config.json`.

## Quality

Accuracy of one ConvNet of width {width} per row, {steps} steps; {images:,} generated images, as \
many of each class.

| trained on | held-out training images | test images |
| --- | --- | --- |
| generated images alone | {generated_validation} | {generated_test} |
| real images | {real_validation} | {real_test} |

{remark}## Memorisation

{memorisation}

## Use

`{use}`. What it draws resembles the images it learned from: mind their licence.
"""
DISTANCES = """\
Distance of an image to the nearest training image, root mean square of pixels from 0 to 1.

| images | median |
| --- | --- |
| generated | {generated_median:.3f} |
| real, held out | {held_out_median:.3f} |

{finding}

![Pairs of a generated image and the training image nearest to it](nearest.png)"""


def card(
    name: str,
    network: ImageGenerator,
    classes: Sequence[str],
    *,
    source: str,
    texts: Mapping[str, str],
    quality: Quality,
    width: int,
    memorised: Memorisation | None,
) -> str:
    """Return the card.

    Args:
        name: Name of the folder.
        network: The generator.
        classes: Names of the classes, in the generator's order.
        source: Name of the data.
        texts: ``kind``, ``training``, ``remark`` and ``use``, sentences of the kind of training.
        quality: What was measured.
        width: Width of the networks that measured it.
        memorised: The memorisation check, or None where no images were held out.
    """
    return TEMPLATE.format(
        name=markdown(name),
        source=markdown(source),
        kind=texts["kind"],
        size=network.size,
        channels=f"{network.channels} channel{'s' * (network.channels > 1)}",
        classes=", ".join(map(markdown, classes)),
        training=texts["training"],
        width=width,
        steps=quality.steps,
        images=quality.images,
        **{
            f"{trained_on}_{tested_on}": _percent(getattr(quality, f"{trained_on}_{tested_on}"))
            for trained_on in ("generated", "real")
            for tested_on in ("validation", "test")
        },
        remark=f"{texts['remark']}\n\n" if texts["remark"] else "",
        memorisation=_memorisation(memorised),
        use=texts["use"],
    )


def _memorisation(memorised: Memorisation | None) -> str:
    if memorised is None:
        return "Not measured: no real images were held out to compare with."
    return DISTANCES.format(**vars(memorised), finding=memorised.described())


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"
