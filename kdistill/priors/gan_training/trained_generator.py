"""A trained generator: images drawn from it, its quality, and the card that reports it.

Its quality is the accuracy of a network that was trained on generated images alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kdistill.data import ImageDataset, Split
from kdistill.engine import accuracy, build_student, train
from kdistill.escape import code, markdown
from kdistill.keys import generator as keyed
from kdistill.keys import make_key
from kdistill.priors.gan_training.prior_spec import PriorSpec
from kdistill.priors.stylegan import Generator

MEAN_OVER = 4096  # latents that their mean is taken over
BATCH, LR = 64, 0.01  # of the network that is trained on generated images
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


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Accuracies of two ConvNets trained alike, in [0, 1]; None where there is nothing to test on.

    Attributes:
        generated_validation: Accuracy after training on generated images, on the real images that
            were held out.  Choose settings by this.
        real_validation: The same after training on the real images that the generator learned from.
        generated_test: Accuracy after training on generated images, on the test images.
        real_test: The same after training on real images.
        images: Number of generated images.
        steps: Training steps of either network.
    """

    generated_validation: float | None
    real_validation: float | None
    generated_test: float | None
    real_test: float | None
    images: int
    steps: int

    def described(self) -> str:
        """Return a sentence for a terminal: on the test images, or else on the held-out ones."""
        for tested_on, generated, real in (
            ("test", self.generated_test, self.real_test),
            ("held-out", self.generated_validation, self.real_validation),
        ):
            if generated is not None and real is not None:
                return (
                    f"a network trained on generated images alone: {100 * generated:.1f} % of the "
                    f"{tested_on} images right; on real ones: {100 * real:.1f} %"
                )
        return "quality: not measured, no images to test on"


def with_mean_latent(network: Generator, seed: int) -> Generator:
    """Return the generator with its mean latent over random classes, which truncation needs."""
    like = network.tensors["mapping.w_avg"]
    random = keyed(make_key(seed, "prior centre"))
    z = torch.randn(MEAN_OVER, network.config.mapping.z_dim, generator=random).to(like)
    labels = torch.randint(network.classes, (MEAN_OVER,), generator=random).to(like.device)
    with torch.no_grad():
        return network.with_tensors({"mapping.w_avg": network.mapping(z, labels)[:, 0].mean(0)})


def measure(spec: PriorSpec, network: Generator, data: ImageDataset, held_out: Split) -> Quality:
    """Train one network on generated and one on real images, and test both.

    Args:
        spec: Settings: number of images, steps, width, seed.
        network: The generator.
        data: The images that it was trained on, and the test images.
        held_out: Real training images that it was not trained on; may be empty.

    Raises:
        NonFiniteError: A network's loss stopped being finite.

    Cost: ``2 * quality_steps`` training steps of a ConvNet on batches of 64.
    """
    count = min(spec.quality_images, len(data.train))
    labels = (torch.arange(count) % data.num_classes).to(data.train.labels.device)
    key = make_key(spec.seed, "prior quality")
    generated = data.transform.apply(network.sample(labels, key))
    training_sets = {
        "generated": (generated, labels),
        "real": (data.transform.apply(data.train.images), data.train.labels),
    }
    test_sets = {
        name: (data.transform.apply(split.images), split.labels)
        for name, split in (("validation", held_out), ("test", data.test))
        if len(split)
    }
    student = build_student(
        "convnet",
        channels=data.channels,
        size=data.size,
        classes=data.num_classes,
        width=spec.quality_width,
    )
    accuracies = dict.fromkeys(f"{x}_{y}" for x in training_sets for y in ("validation", "test"))
    for name, (images, truth) in training_sets.items():
        theta, *_ = train(
            student,
            images,
            truth,
            epochs=math.ceil(spec.quality_steps * BATCH / len(images)),
            lr=LR,
            key=make_key(spec.seed, "prior quality network"),
            batch_size=BATCH,
            schedule="cosine",
        )
        for tested_on, test_set in test_sets.items():
            accuracies[f"{name}_{tested_on}"] = float(accuracy(student, theta, *test_set))
    return Quality(**accuracies, images=count, steps=spec.quality_steps)


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
