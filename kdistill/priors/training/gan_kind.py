"""Training of a StyleGAN2 as ``kdistill prior train --kind gan`` sees it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdistill.augment import strategy_for
from kdistill.data import ImageDataset
from kdistill.errors import DataError
from kdistill.escape import code
from kdistill.priors.gan_training import (
    GanState,
    GanTraining,
    PriorProgress,
    PriorSpec,
    new_gan_training,
    with_mean_latent,
)
from kdistill.priors.stylegan import Generator
from kdistill.priors.training.kind import CHANGEABLE, Measured, TrainingKind
from kdistill.priors.training.quality import QualityCheck
from kdistill.runner import Timing

SIDES = (8, 16, 32, 64, 128, 256)


def strategy(spec: PriorSpec, data: ImageDataset) -> str:
    """Return the families of augmentations.

    Grey images keep their brightness unless colour is asked for by name.
    """
    families = strategy_for(spec.augment, data.mirrors).split("_")
    if spec.augment == "auto" and data.channels == 1:
        families.remove("color")
    return "_".join(families)


def _check_side(height: int, width: int) -> None:
    if height != width or height not in SIDES:
        nearest = min(SIDES, key=lambda side: abs(side - height))
        raise DataError(
            f"prior train: expected square images of a side that is a power of two from {SIDES[0]} "
            f"to {SIDES[-1]}, got {height}x{width}; load them with size={nearest}, glad then takes "
            "the generator with resize=true"
        )


def _new(spec: PriorSpec, data: ImageDataset) -> GanTraining:
    return new_gan_training(spec, data, strategy(spec, data))


def _progress(timing: Timing, numbers: Mapping[str, float]) -> PriorProgress:
    return PriorProgress(**vars(timing), **numbers)


def _shown(progress: PriorProgress) -> str:
    losses = f"{progress.loss_discriminator:.3f} {progress.loss_generator:.3f}"
    return f"losses {losses}  augmented {progress.augment_p:.2f}"


def _sheet(task: GanTraining, state: GanState, labels: Tensor, key: int) -> Tensor:
    network = task.generator(state.tensors["average"])
    return network.sample(labels, key, has_noise=False)


def _product(task: GanTraining, state: GanState) -> Generator:
    return with_mean_latent(task.generator(state.tensors["average"]), task.spec.seed)


def _measure(generator: Generator, check: QualityCheck) -> Measured:
    images = generator.sample(check.labels, check.key)
    return Measured(generator, images, check.quality(images), {})


def _facts(task: GanTraining, state: GanState) -> dict[str, Any]:
    families = task.augment.strategy if task.augment else "none"
    return {"augment": families, "augment_p": float(state.tensors["augment_p"])}


def _texts(generator: Generator, record: Mapping[str, Any]) -> dict[str, str]:
    return {
        "kind": f"A class-conditional StyleGAN2 with {generator.num_layers} layers",
        "training": f"{record['iterations']:,} iterations on {record['settings']['batch_size']} "
        f"images each; augmentation {code(record['augment'])} with a probability of "
        f"{record['augment_p']:.2f} at the end.",
        "use": "kdistill distill DATA --method glad --set prior=THIS_FOLDER",
    }


GAN = TrainingKind(
    spec=PriorSpec,
    changeable=CHANGEABLE,
    check_side=_check_side,
    new=_new,
    progress=_progress,
    shown=_shown,
    sheet=_sheet,
    product=_product,
    measure=_measure,
    facts=_facts,
    texts=_texts,
)
