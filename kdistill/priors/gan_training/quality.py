"""How good a generator is for training: the accuracy of a network that has seen generated images alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdistill.data import ImageDataset, Split
from kdistill.engine import accuracy, build_student, train
from kdistill.keys import generator as keyed
from kdistill.keys import make_key
from kdistill.priors.base import Noise
from kdistill.priors.gan_training.prior_spec import PriorSpec
from kdistill.priors.latents import GeneratorAdapter
from kdistill.priors.stylegan import Generator

BATCH = 64  # of the network
CHUNK = 100  # images drawn at a time
LR = 0.01


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Accuracies in [0, 1] of one ConvNet per set, trained alike; None where there is nothing to test on.

    Attributes:
        generated_validation: Trained on generated images, tested on the real images that were held
            out.  Choose settings by this.
        real_validation: The same, trained on the real images that the generator saw.
        generated_test: As the first, on the test images.
        real_test: As the second.
        images: Generated images that it was trained on.
        steps: Steps of either training.
    """

    generated_validation: float | None
    real_validation: float | None
    generated_test: float | None
    real_test: float | None
    images: int
    steps: int

    def described(self) -> str:
        """Return a sentence for a terminal: on the test images, or on the held_out ones if there are none."""
        place, ours, real = "test", self.generated_test, self.real_test
        if ours is None or real is None:
            place, ours, real = "held_out", self.generated_validation, self.real_validation
        if ours is None or real is None:
            return "quality: not measured, no images to test on"
        accuracies = (
            f"{100 * ours:.1f} % of the {place} images right; on real ones: {100 * real:.1f} %"
        )
        return f"a network trained on generated images alone: {accuracies}"


def draw(
    network: Generator,
    labels: Tensor,
    key: int,
    adapter: GeneratorAdapter | None = None,
    *,
    has_noise: bool = False,
) -> Tensor:
    """Return one image per label, drawn in chunks without a graph; image i depends on key, label and i alone.

    Args:
        network: The generator.
        labels: Classes, int64 ``[M]``.
        key: Of the draws.
        adapter: What is made of the images; None leaves them, about -1 to 1.
        has_noise: New draws of the noise inputs for every image; False takes the network's own
            constants.
    """
    like = network.tensors["mapping.w_avg"]
    z = Noise(key, range(len(labels))).normal("z", (network.config.mapping.z_dim,), like)
    parts = []
    with torch.no_grad():
        for rows in torch.arange(len(labels)).split(CHUNK):
            noise = (
                Noise(make_key(key, "noise"), range(int(rows[0]), int(rows[-1]) + 1))
                if has_noise
                else None
            )
            images = network.forward(network.mapping(z[rows], labels[rows].to(like.device)), noise)
            parts.append(images if adapter is None else adapter(images))
    return torch.cat(parts)


def centred(network: Generator, seed: int, count: int = 4096) -> Generator:
    """Return the generator with the mean of ``count`` latents over random classes, which truncation needs."""
    like = network.tensors["mapping.w_avg"]
    random = keyed(make_key(seed, "prior centre"))
    z = torch.randn(count, network.config.mapping.z_dim, generator=random).to(like)
    labels = torch.randint(network.classes, (count,), generator=random).to(like.device)
    with torch.no_grad():
        return network.with_tensors({"mapping.w_avg": network.mapping(z, labels)[:, 0].mean(0)})


def measure(spec: PriorSpec, network: Generator, data: ImageDataset, held_out: Split) -> Quality:
    """Train one network on generated and one on real images, and test both.

    Args:
        spec: Settings: number of images, steps, width, seed.
        network: The generator.
        data: What it was trained on, and the test images.
        held_out: Real training images that it has not trained on; may be empty.

    Raises:
        NonFiniteError: A network's loss stopped being finite.

    Cost: ``2 * quality_steps`` training steps of a ConvNet on batches of 64.
    """
    count = min(spec.quality_images, len(data.train))
    labels = (torch.arange(count) % data.num_classes).to(data.train.labels.device)
    generated = draw(
        network,
        labels,
        make_key(spec.seed, "prior quality"),
        GeneratorAdapter(transform=data.transform),
        has_noise=True,
    )
    sets = {
        "generated": (generated, labels),
        "real": (data.transform.apply(data.train.images), data.train.labels),
    }
    student = build_student(
        "convnet",
        channels=data.channels,
        size=data.size,
        classes=data.num_classes,
        width=spec.quality_width,
    )
    found: dict[str, float | None] = {}
    for name, (images, truth) in sets.items():
        theta = train(
            student,
            images,
            truth,
            epochs=math.ceil(spec.quality_steps * BATCH / len(images)),
            lr=LR,
            key=make_key(spec.seed, "prior quality network"),
            batch_size=BATCH,
            schedule="cosine",
        )[0]
        for place, split in (("validation", held_out), ("test", data.test)):
            seen = data.transform.apply(split.images)
            found[f"{name}_{place}"] = (
                float(accuracy(student, theta, seen, split.labels)) if len(split) else None
            )
    return Quality(**found, images=count, steps=spec.quality_steps)
