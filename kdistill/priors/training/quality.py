"""The quality of a generator: the accuracy of a network trained on its images alone."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from kdistill.data import ImageDataset, Split
from kdistill.engine import accuracy, build_student, train
from kdistill.keys import make_key

BATCH, LR = 64, 0.01  # of the network that is trained

Accuracies = dict[str, float | None]  # by "validation" and "test"


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


@dataclass(frozen=True)
class QualityCheck:
    """Trains networks on generated and on real images, and tests them on real ones.

    Attributes:
        spec: Settings of the training: ``quality_images``, ``quality_steps``, ``quality_width`` and
            ``seed``.
        data: The images that the generator was trained on, and the test images.
        held_out: Real training images that it was not trained on; may be empty.
    """

    spec: Any
    data: ImageDataset
    held_out: Split

    @property
    def key(self) -> int:
        """Key of the generated images."""
        return make_key(self.spec.seed, "prior quality")

    @cached_property
    def labels(self) -> Tensor:
        """Classes of the generated images, as many of each, int64 ``[M]``."""
        count = min(self.spec.quality_images, len(self.data.train))
        labels = self.data.train.labels
        return labels.new_tensor(range(count)) % self.data.num_classes

    def quality(self, generated: Tensor) -> Quality:
        """Return the quality of a generator by its images ``[M, C, S, S]`` of ``labels``.

        Raises:
            NonFiniteError: A network's loss stopped being finite.

        Cost: ``2 * quality_steps`` training steps of a ConvNet on batches of 64.
        """
        on_generated = self.accuracies(generated, self.labels)
        on_real = self.accuracies(self.data.train.images, self.data.train.labels)
        return Quality(
            generated_validation=on_generated["validation"],
            real_validation=on_real["validation"],
            generated_test=on_generated["test"],
            real_test=on_real["test"],
            images=len(self.labels),
            steps=self.spec.quality_steps,
        )

    def accuracies(self, images: Tensor, labels: Tensor) -> Accuracies:
        """Return the accuracies of one network that was trained on images in pixel space."""
        data, spec = self.data, self.spec
        student = build_student(
            "convnet",
            channels=data.channels,
            size=data.size,
            classes=data.num_classes,
            width=spec.quality_width,
        )
        theta, *_ = train(
            student,
            data.transform.apply(images),
            labels,
            epochs=math.ceil(spec.quality_steps * BATCH / len(images)),
            lr=LR,
            key=make_key(spec.seed, "prior quality network"),
            batch_size=BATCH,
            schedule="cosine",
        )
        splits = {"validation": self.held_out, "test": data.test}
        return {
            name: float(accuracy(student, theta, data.transform.apply(x.images), x.labels))
            if len(x)
            else None
            for name, x in splits.items()
        }
