"""``kdistill.train_prior``: a generator of one's own images, in a folder that ``glad`` takes.  No tensor arithmetic here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdistill import _native
from kdistill.api.metrics_log import JsonLines
from kdistill.api.resources import check_place, use
from kdistill.artifacts.preview import preview
from kdistill.artifacts.tensors import to_json
from kdistill.augment import strategy_for
from kdistill.config import from_mapping, to_mapping
from kdistill.data import ImageDataset, Split, load_data
from kdistill.errors import ConfigError, DataError
from kdistill.files import explained, remove_leftovers, sole_use, write_atomic
from kdistill.keys import make_key
from kdistill.options import HELD_OUT, MAX_MINUTES, check_value
from kdistill.priors.gan_training import PriorProgress, PriorSpec, Quality, card, fit, measure
from kdistill.priors.gan_training.adversarial_training import GanTraining, new_gan_training
from kdistill.priors.gan_training.sampling import generate_images, with_mean_latent
from kdistill.priors.gan_training.training_loop import CHECKPOINT, PriorOutcome
from kdistill.priors.latents import GeneratorAdapter
from kdistill.priors.network_files import save_generator
from kdistill.priors.network_files.generator_folder import holds_generator
from kdistill.priors.stylegan import Generator
from kdistill.signals import terminable
from kdistill.status import describe, quietly, status_line

__all__ = ["TrainedPrior", "train_prior"]

LEAST = 10  # images per class
SIZES = (8, 256)
SHOWN = 10  # pictures per class in samples.png
FREE = (
    "iterations",
    "quality_images",
    "quality_steps",
    "quality_width",
)  # settings that a resumed training may change


@dataclass(frozen=True)
class TrainedPrior:
    """What ``train_prior`` made.

    Attributes:
        folder: Where it is; ``kdistill distill DATA --method glad --set prior=FOLDER`` takes it.
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
    given: dict[str, Any] = {
        "options": options,
        "seed": seed,
        "validation": validation,
        "max_minutes": max_minutes,
    }
    spec = check_training(out, **given, resume=resume, threads=threads, device=device)
    data = data if isinstance(data, ImageDataset) else load_data(data, quiet=quiet)
    seen, held_out = _parts(data, validation, device)
    strategy = _strategy(spec, data)
    game = new_gan_training(spec, seen, strategy)
    source = {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "classes": list(data.classes),
        "validation": validation,
    }
    settings = {name: value for name, value in to_mapping(spec).items() if name not in FREE}
    identity = {"settings": settings, "source": source, "environment": _native.environment()}
    folder = Path(out).expanduser()
    with _occupied(folder, resume), quietly(quiet):
        log = JsonLines(folder / "metrics.jsonl", resume)
        with terminable(), status_line("training") as say:
            outcome = fit(
                game,
                folder,
                identity=identity,
                resume=resume,
                callbacks=[
                    log,
                    lambda progress: say(describe(progress, _losses(progress))),
                    *callbacks,
                ],
                on_checkpoint=lambda state, iteration: _picture(
                    game, seen, folder, state["average"], iteration
                ),
                max_minutes=max_minutes,
            )
        about = {
            "settings": to_mapping(spec),
            "source": source,
            "environment": _native.environment(),
            "augment": strategy,
        }
        return _finished(game, seen, held_out, folder, outcome, about)


def _finished(
    game: GanTraining,
    seen: ImageDataset,
    held_out: Split,
    folder: Path,
    outcome: PriorOutcome,
    about: dict[str, Any],
) -> TrainedPrior:
    """Save the generator, measure it, and save it again with what was measured."""
    spec, state = game.spec, outcome.state
    network = with_mean_latent(game.generator_of(state["average"]), spec.seed)
    about |= {
        "made by": "kdistill prior train",
        "iterations": outcome.iteration,
        "augment_p": float(state["augment_p"]),
    }
    if not holds_generator(
        folder, network
    ):  # else what was measured of it stays until it is measured again
        save_generator(network, folder, about)  # before what may fail
    with status_line("measuring") as say:
        say("training a network on generated images, and one on real ones")
        quality = measure(spec, network, seen, held_out)
    about |= {"quality": to_mapping(quality)}
    files = {
        "metrics.json": to_json(about["quality"] | {"iterations": outcome.iteration}),
        "README.md": card(folder.name, network, seen.classes, about).encode(),
    }
    save_generator(network, folder, about, files)
    return TrainedPrior(folder, network, quality, outcome.iteration, outcome.finished)


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
    """Return the settings of a training, after every check that is possible before its images are read.

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
    folder = Path(out).expanduser()
    check_place(folder)
    if folder.is_dir():
        _check_contents(folder, resume)
    return spec


def _strategy(spec: PriorSpec, data: ImageDataset) -> str:
    """Return the families of augmentations; grey images keep their brightness unless colour is asked for by name."""
    families = strategy_for(spec.augment, data.mirrors).split("_")
    if spec.augment == "auto" and data.channels == 1:
        families.remove("color")
    return "_".join(families)


def _check_side(height: int, width: int) -> None:
    least, most = SIZES
    if height != width or not least <= height <= most or height & (height - 1):
        near = min(
            (2**k for k in range(least.bit_length() - 1, most.bit_length())),
            key=lambda side: abs(side - height),
        )
        raise DataError(
            f"prior train: expected square images of a side that is a power of two from {least} to "
            f"{most}, got "
            f"{height}x{width}; load them with size={near}, glad then takes the generator with "
            "resize=true"
        )


def _parts(
    data: ImageDataset, validation: float, device: str | torch.device | None
) -> tuple[ImageDataset, Split]:
    """Return what may be looked at and what is held out, after checks, on the device."""
    _check_side(*data.train.images.shape[2:])
    if data.num_classes < 2:
        raise DataError(
            f"prior train: expected at least 2 classes, got {data.num_classes}; name the classes "
            "of the images"
        )
    seen, held_out = data.holdout(validation)
    counts = torch.bincount(seen.train.labels.cpu(), minlength=data.num_classes)
    fewest = int(counts.argmin())
    if int(counts[fewest]) < LEAST:
        raise DataError(
            f"prior train: expected at least {LEAST} training images per class, got "
            f"{int(counts[fewest])} of "
            f"'{data.classes[fewest]}'; add images, hold out less with validation=, or leave that "
            "class out"
        )
    target = device or data.train.images.device
    return seen.to(target), held_out.to(target)


@contextmanager
def _occupied(folder: Path, resume: bool) -> Iterator[None]:
    """Hold the folder, which is new, empty, or that of the training to resume, against other processes."""
    with sole_use(folder):
        _check_contents(folder, resume)
        remove_leftovers(folder)
        yield


def _check_contents(folder: Path, resume: bool) -> None:
    with explained(folder):
        names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
        is_training = bool(names & {CHECKPOINT, CHECKPOINT + ".prev"})
        if names and not resume and is_training:
            raise ConfigError(
                f"out: expected a new folder, got {folder}, where a generator was trained; "
                "continue it with resume=True, "
                "or choose another folder"
            )
        # metrics.jsonl alone: a training that was killed before its first checkpoint
        if not is_training and names - {"metrics.jsonl"}:
            seen = ", ".join(sorted(names)[:3])
            raise DataError(
                f"out: expected a new or empty folder, got {folder} with {seen}; choose another "
                "place"
            )


def _losses(progress: PriorProgress) -> str:
    """Return what a status line says of a step of the training."""
    losses = f"{progress.loss_discriminator:.3f} {progress.loss_generator:.3f}"
    return f"losses {losses}  augmented {progress.augment_p:.2f}"


def _picture(
    game: GanTraining, data: ImageDataset, folder: Path, average: torch.Tensor, iteration: int
) -> None:
    """Write ``samples.png``: the same latents every time, classes as rows."""
    labels = torch.arange(data.num_classes).repeat_interleave(SHOWN)
    images = generate_images(
        game.generator_of(average),
        labels,
        make_key(game.spec.seed, "prior samples"),
        GeneratorAdapter(),
    )
    heading = (data.name, f"generated after {iteration:,} iterations")
    page = preview(images, labels, data.classes, heading)
    write_atomic(folder / "samples.png", page.png())
