"""The quality of a generator: the accuracy of a network trained on its images alone."""

import math
from dataclasses import dataclass

import torch

from kdistill.data import ImageDataset, Split
from kdistill.engine import accuracy, build_student, train
from kdistill.keys import make_key
from kdistill.priors.gan_training.prior_spec import PriorSpec
from kdistill.priors.gan_training.sampling import generate_images
from kdistill.priors.latents import GeneratorAdapter
from kdistill.priors.stylegan import Generator

BATCH, LR = 64, 0.01  # of the network


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
    adapter = GeneratorAdapter(transform=data.transform)
    key = make_key(spec.seed, "prior quality")
    generated = generate_images(network, labels, key, adapter, has_noise=True)
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
