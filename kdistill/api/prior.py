"""``train_prior``: a generator of one's own images, in a folder that ``glad`` takes.

The way is that of a run: settings, checks, data, held-out images, training, measurement, folder.
No tensor arithmetic here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdistill import _native
from kdistill.api.inputs import check_place, load, use
from kdistill.api.run_folder import JsonLines
from kdistill.artifacts.image_grids import preview
from kdistill.artifacts.tensors import to_json
from kdistill.augment import strategy_for
from kdistill.config import from_mapping, to_mapping
from kdistill.data import ImageDataset, Split
from kdistill.errors import ConfigError, DataError
from kdistill.files import explained, remove_leftovers, sole_use, write_atomic
from kdistill.keys import make_key
from kdistill.options import HELD_OUT, MAX_MINUTES, check_value
from kdistill.priors.gan_training import (
    GanState,
    GanTraining,
    PriorProgress,
    PriorSpec,
    Quality,
    card,
    measure,
    new_gan_training,
    with_mean_latent,
)
from kdistill.priors.network_files import holds_generator, save_generator
from kdistill.priors.stylegan import Generator
from kdistill.runner import CHECKPOINT, Checkpoints, Ending, Runner, Timing
from kdistill.signals import terminable
from kdistill.status import describe, quietly, status_line

__all__ = ["TrainedPrior", "check_training", "train_prior"]

MIN_IMAGES_PER_CLASS = 10
SIDES = (8, 16, 32, 64, 128, 256)
SAMPLES_PER_CLASS = 10  # in samples.png
# settings that a resumed training may change
CHANGEABLE = ("iterations", "quality_images", "quality_steps", "quality_width")


@dataclass(frozen=True)
class TrainedPrior:
    """A generator that ``train_prior`` made.

    Attributes:
        folder: Its folder; ``kdistill distill DATA --method glad --set prior=FOLDER`` takes it.
        generator: The averaged generator.
        quality: Accuracy of a network trained on its images alone.
        iterations: Iterations done.
        finished: False if the time was up first; resume to go on.
    """

    folder: Path
    generator: Generator
    quality: Quality
    iterations: int
    finished: bool


def train_prior(
    data: ImageDataset | Any,
    *,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    validation: float = 0.1,
    resume: bool = False,
    callbacks: Sequence[Callable[[PriorProgress], None]] = (),
    device: str | torch.device | None = None,
    threads: int | None = None,
    max_minutes: float | None = None,
    quiet: bool = False,
) -> TrainedPrior:
    """Train a small class-conditional StyleGAN2 on a labelled image set.

    Args:
        data: From ``load_data``, or anything that ``load_data`` takes; of a size that is a power of
            two, 8 to 256.
        out: New or empty folder.  ``generator.safetensors`` and ``config.json`` are what ``glad``
            loads; ``samples.png`` shows the classes as rows, ``metrics.json`` holds the quality,
            ``metrics.jsonl`` the losses, ``checkpoint.safetensors`` the state; ``README.md`` is the
            card.
        options: Fields of ``kdistill.priors.gan_training.PriorSpec``: iterations, batch_size, lr,
            r1, augment, channel_base, ...
        seed: Same seed, thread count and instruction set give the same bits.
        validation: Share of the training data that is held out, the same images as in ``distill``.
        resume: Continue the training in ``out``, bit-identical to an uninterrupted one;
            ``iterations`` may be raised.
        callbacks: Called with a ``PriorProgress`` every ten iterations.
        device: ``"cpu"`` or ``"cuda"``; None keeps the data's.
        threads: CPU threads; None keeps torch's.
        max_minutes: Stop training after this time and keep what is there; the measurement at the
            end comes on top.
        quiet: Do not show the progress.

    Returns:
        Folder, generator and quality.

    Raises:
        ConfigError: An unknown option, a number out of range, a folder with an unfinished training
            and no ``resume``, or one in which another process works.
        DataError: A size that does not fit, too few images, or a folder with other contents.
        NonFiniteError: The training blew up; the last good state is in ``out``.

    Cost: per iteration a pass of the generator forward and backward, and three of the discriminator
        (of which one needs no gradient of its weights); every ``r1_every`` iterations a
        second-order pass.
    """
    settings: dict[str, Any] = {"options": options, "seed": seed, "validation": validation}
    how: dict[str, Any] = {"resume": resume, "max_minutes": max_minutes}
    spec = check_training(out, **settings, **how, device=device, threads=threads)
    data = load(data, quiet)
    training_data, held_out = _held_out(data, validation, device)
    strategy = _strategy(spec, data)
    task = new_gan_training(spec, training_data, strategy)
    source = {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "classes": list(data.classes),
        "validation": validation,
    }
    provenance: dict[str, Any] = {"source": source, "environment": _native.environment()}
    fixed = {name: x for name, x in to_mapping(spec).items() if name not in CHANGEABLE}
    folder = Path(out).expanduser()
    with sole_use(folder), quietly(quiet):
        _check_contents(folder, resume)  # once more, now that nobody else changes them
        remove_leftovers(folder)
        ending = _train(
            task,
            [JsonLines(folder / "metrics.jsonl", resume), *callbacks],
            checkpoints=Checkpoints(folder, {**provenance, "settings": fixed}),
            on_checkpoint=partial(_write_samples, folder, task, training_data),
            **how,
        )
        provenance |= {
            "settings": to_mapping(spec),
            "augment": strategy,
            "made by": "kdistill prior train",
            "iterations": ending.state.iteration,
            "augment_p": float(ending.state.tensors["augment_p"]),
        }
        network = with_mean_latent(task.generator(ending.state.tensors["average"]), spec.seed)
        quality = _save_and_measure(spec, network, training_data, held_out, folder, provenance)
    return TrainedPrior(folder, network, quality, ending.state.iteration, ending.finished)


def check_training(
    out: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    validation: float = 0.1,
    size: int | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    threads: int | None = None,
    max_minutes: float | None = None,
) -> PriorSpec:
    """Return the settings, after every check that is possible before the images are read.

    Args: as for ``train_prior``; ``size`` is the side that the images will be resized to.

    Raises:
        ConfigError: As ``train_prior``.
        DataError: A side that a generator does not have, or a folder with other contents.
    """
    spec = from_mapping(
        PriorSpec, {"seed": seed, **(options or {})}, where="options of prior train"
    )
    check_value("validation", validation, HELD_OUT)
    if max_minutes is not None:
        check_value("max_minutes", max_minutes, MAX_MINUTES)
    use(threads, device)
    if size is not None:
        _check_side(size, size)
    check_place(out)
    folder = Path(out).expanduser()
    if folder.is_dir():
        _check_contents(folder, resume)
    return spec


def _held_out(
    data: ImageDataset, validation: float, device: str | torch.device | None
) -> tuple[ImageDataset, Split]:
    """Return the data to train on and the held-out images, after checks, on the device."""
    _check_side(*data.train.images.shape[2:])
    if data.num_classes < 2:
        raise DataError(
            f"prior train: expected at least 2 classes, got {data.num_classes}; name the classes "
            "of the images"
        )
    training_data, held_out = data.holdout(validation)
    counts = torch.bincount(training_data.train.labels.cpu(), minlength=data.num_classes)
    rarest = int(counts.argmin())
    if counts[rarest] < MIN_IMAGES_PER_CLASS:
        raise DataError(
            f"prior train: expected at least {MIN_IMAGES_PER_CLASS} training images per class, got "
            f"{counts[rarest]} of '{data.classes[rarest]}'; add images, hold out less with "
            "validation=, or leave that class out"
        )
    device = device or data.train.images.device
    return training_data.to(device), held_out.to(device)


def _check_contents(folder: Path, resume: bool) -> None:
    """Refuse a folder that is not new, empty, or that of the training to resume."""
    with explained(folder):
        names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    is_training = bool(names & {CHECKPOINT, f"{CHECKPOINT}.prev"})
    if is_training and not resume:
        raise ConfigError(
            f"out: expected a new folder, got {folder}, where a generator was trained; continue it "
            "with resume=True, or choose another folder"
        )
    # metrics.jsonl alone: a training that was killed before its first checkpoint
    if not is_training and names - {"metrics.jsonl"}:
        listed = ", ".join(sorted(names)[:3])
        raise DataError(
            f"out: expected a new or empty folder, got {folder} with {listed}; choose another place"
        )


def _train(
    task: GanTraining,
    callbacks: Sequence[Callable[[PriorProgress], None]],
    *,
    resume: bool,
    **how: Any,
) -> Ending[GanState]:
    """Run the task to its end, with a status line; ``how`` are fields of the ``Runner``."""
    with terminable(), status_line("training") as say:

        def report(timing: Timing, numbers: dict[str, float]) -> None:
            progress = PriorProgress(**vars(timing), **numbers)
            losses = f"{progress.loss_discriminator:.3f} {progress.loss_generator:.3f}"
            say(describe(progress, f"losses {losses}  augmented {progress.augment_p:.2f}"))
            for callback in callbacks:
                callback(progress)

        return Runner(task=task, report=report, check_every=1, **how).run(resume=resume)


def _save_and_measure(
    spec: PriorSpec,
    network: Generator,
    data: ImageDataset,
    held_out: Split,
    folder: Path,
    provenance: Mapping[str, Any],
) -> Quality:
    """Save the generator, measure it, and save it again with what was measured."""
    # one that is there already keeps its quality until it is measured again
    if not holds_generator(folder, network):
        save_generator(network, folder, provenance)  # before what may fail
    with status_line("measuring") as say:
        say("training a network on generated images, and one on real ones")
        quality = measure(spec, network, data, held_out)
    numbers = to_mapping(quality)
    provenance = {**provenance, "quality": numbers}
    files = {
        "metrics.json": to_json({**numbers, "iterations": provenance["iterations"]}),
        "README.md": card(folder.name, network, data.classes, provenance).encode(),
    }
    save_generator(network, folder, provenance, files)
    return quality


def _check_side(height: int, width: int) -> None:
    if height != width or height not in SIDES:
        nearest = min(SIDES, key=lambda side: abs(side - height))
        raise DataError(
            f"prior train: expected square images of a side that is a power of two from {SIDES[0]} "
            f"to {SIDES[-1]}, got {height}x{width}; load them with size={nearest}, glad then takes "
            "the generator with resize=true"
        )


def _strategy(spec: PriorSpec, data: ImageDataset) -> str:
    """Return the families of augmentations.

    Grey images keep their brightness unless colour is asked for by name.
    """
    families = strategy_for(spec.augment, data.mirrors).split("_")
    if spec.augment == "auto" and data.channels == 1:
        families.remove("color")
    return "_".join(families)


def _write_samples(folder: Path, task: GanTraining, data: ImageDataset, state: GanState) -> None:
    """Write ``samples.png``: images of the same latents every time, classes as rows."""
    labels = torch.arange(data.num_classes).repeat_interleave(SAMPLES_PER_CLASS)
    key = make_key(task.spec.seed, "prior samples")
    network = task.generator(state.tensors["average"])
    images = network.sample(labels, key, has_noise=False)
    heading = (data.name, f"generated after {state.iteration:,} iterations")
    write_atomic(folder / "samples.png", preview(images, labels, data.classes, heading).png())
