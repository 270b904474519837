"""``train_prior``: a generator of one's own images, in a folder that ``glad`` or ``ld3m`` takes.

The way is that of a run: settings, checks, data, held-out images, training, measurement, folder.
No tensor arithmetic here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdistill import _native
from kdistill.api.inputs import check_place, load, use
from kdistill.api.run_folder import JsonLines
from kdistill.artifacts.image_grids import preview
from kdistill.artifacts.tensors import to_json
from kdistill.config import from_mapping, to_mapping
from kdistill.data import ImageDataset, Split
from kdistill.errors import ConfigError, DataError
from kdistill.files import explained, remove_leftovers, sole_use, write_atomic
from kdistill.keys import make_key
from kdistill.options import HELD_OUT, MAX_MINUTES, Words, check_value
from kdistill.priors import ImageGenerator
from kdistill.priors.network_files import holds_generator, save_generator
from kdistill.priors.training import (
    KINDS,
    Measured,
    Quality,
    QualityCheck,
    TrainingKind,
    card,
    memorisation,
    nearest,
)
from kdistill.runner import CHECKPOINT, Checkpoints, Ending, Runner, Timing
from kdistill.signals import terminable
from kdistill.status import describe, quietly, status_line

__all__ = ["TrainedPrior", "check_training", "train_prior"]

MIN_IMAGES_PER_CLASS = 10
SAMPLES_PER_CLASS = 10  # in samples.png
PAIRS = 5  # per class, of generated and nearest training images in nearest.png


@dataclass(frozen=True)
class TrainedPrior:
    """A generator that ``train_prior`` made.

    Attributes:
        folder: Its folder; ``kdistill distill DATA --method glad --set prior=FOLDER`` takes a GAN,
            ``--method ld3m`` a diffusion model.
        generator: The averaged generator.
        quality: Accuracy of a network trained on its images alone.
        iterations: Iterations done.
        finished: False if the time was up first; resume to go on.
    """

    folder: Path
    generator: ImageGenerator
    quality: Quality
    iterations: int
    finished: bool


def train_prior(
    data: ImageDataset | Any,
    *,
    out: str | Path,
    kind: str = "gan",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    validation: float = 0.1,
    resume: bool = False,
    callbacks: Sequence[Callable[[Any], None]] = (),
    device: str | torch.device | None = None,
    threads: int | None = None,
    max_minutes: float | None = None,
    quiet: bool = False,
) -> TrainedPrior:
    """Train a small class-conditional generator on a labelled image set.

    Args:
        data: From ``load_data``, or anything that ``load_data`` takes; square images of 8 to 256
            pixels, for a GAN of a side that is a power of two.
        out: New or empty folder.  ``generator.safetensors`` and ``config.json`` are what ``glad``
            or ``ld3m`` loads; ``samples.png`` shows the classes as rows, ``nearest.png`` pairs of a
            generated image and the training image nearest to it; ``metrics.json`` holds the
            quality, ``metrics.jsonl`` the losses, ``checkpoint.safetensors`` the state;
            ``README.md`` is the card.
        kind: ``"gan"`` (a StyleGAN2) or ``"diffusion"``.
        options: Fields of ``kdistill.priors.gan_training.PriorSpec`` or
            ``kdistill.priors.diffusion_training.DiffusionSpec``: iterations, batch_size, lr, ...
        seed: Same seed, thread count and instruction set give the same bits.
        validation: Share of the training data that is held out, the same images as in ``distill``.
        resume: Continue the training in ``out``, bit-identical to an uninterrupted one;
            ``iterations`` may be raised.
        callbacks: Called with a ``PriorProgress`` or ``DenoisingProgress`` every ten iterations.
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

    Cost: of a GAN per iteration a pass of the generator forward and backward, and three of the
        discriminator (of which one needs no gradient of its weights); every ``r1_every`` iterations
        a second-order pass.  Of a diffusion model a pass of the denoiser forward and backward.
    """
    settings: dict[str, Any] = {
        "kind": kind,
        "options": options,
        "seed": seed,
        "validation": validation,
    }
    how: dict[str, Any] = {"resume": resume, "max_minutes": max_minutes}
    spec = check_training(out, **settings, **how, device=device, threads=threads)
    data = load(data, quiet)
    training_data, held_out = _held_out(KINDS[kind], data, validation, device)
    task = KINDS[kind].new(spec, training_data)
    training = _Training(KINDS[kind], spec, task, training_data, held_out, Path(out).expanduser())
    source = {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "classes": list(data.classes),
        "validation": validation,
    }
    provenance: dict[str, Any] = {"source": source, "environment": _native.environment()}
    with sole_use(training.folder), quietly(quiet):
        _check_contents(training.folder, resume)  # once more, now that nobody else changes them
        remove_leftovers(training.folder)
        ending = training.run(kind, provenance, callbacks, **how)
        measured = training.save_and_measure(ending.state, provenance)
    return TrainedPrior(
        training.folder,
        measured.generator,
        measured.quality,
        ending.state.iteration,
        ending.finished,
    )


def check_training(
    out: str | Path,
    *,
    kind: str = "gan",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    validation: float = 0.1,
    size: int | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    threads: int | None = None,
    max_minutes: float | None = None,
) -> Any:
    """Return the settings, after every check that is possible before the images are read.

    Args: as for ``train_prior``; ``size`` is the side that the images will be resized to.

    Raises:
        ConfigError: As ``train_prior``.
        DataError: A side that a generator does not have, or a folder with other contents.
    """
    check_value("kind", kind, Words(tuple(KINDS)))
    values = {"seed": seed, **(options or {})}
    spec = from_mapping(KINDS[kind].spec, values, where="options of prior train")
    check_value("validation", validation, HELD_OUT)
    if max_minutes is not None:
        check_value("max_minutes", max_minutes, MAX_MINUTES)
    use(threads, device)
    if size is not None:
        KINDS[kind].check_side(size, size)
    check_place(out)
    folder = Path(out).expanduser()
    if folder.is_dir():
        _check_contents(folder, resume)
    return spec


def _held_out(
    kind: TrainingKind, data: ImageDataset, validation: float, device: str | torch.device | None
) -> tuple[ImageDataset, Split]:
    """Return the data to train on and the held-out images, after checks, on the device."""
    kind.check_side(*data.train.images.shape[2:])
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


@dataclass(frozen=True)
class _Training:
    """A training whose settings are checked and whose data are loaded.

    Attributes:
        kind: Kind of generator.
        spec: Settings.
        task: Task of the runner.
        data: Images to train on, and test images.
        held_out: Real images that are not trained on.
        folder: Folder of the generator.
    """

    kind: TrainingKind
    spec: Any
    task: Any
    data: ImageDataset
    held_out: Split
    folder: Path

    def run(
        self,
        name: str,
        provenance: Mapping[str, Any],
        callbacks: Sequence[Callable[[Any], None]],
        *,
        resume: bool,
        **how: Any,
    ) -> Ending[Any]:
        """Run the task to its end, with a status line; ``how`` are fields of the ``Runner``."""
        changeable = self.kind.changeable
        fixed = {key: x for key, x in to_mapping(self.spec).items() if key not in changeable}
        identity = {**provenance, "settings": fixed, "kind": name}
        lines = JsonLines(self.folder / "metrics.jsonl", resume)
        with terminable(), status_line("training") as say:

            def report(timing: Timing, numbers: dict[str, float]) -> None:
                progress = self.kind.progress(timing, numbers)
                say(describe(progress, self.kind.shown(progress)))
                for callback in (lines, *callbacks):
                    callback(progress)

            return Runner(
                task=self.task,
                checkpoints=Checkpoints(self.folder, identity, {"kind": "gan"}),
                report=report,
                check_every=1,
                on_checkpoint=self._write_samples,
                **how,
            ).run(resume=resume)

    def save_and_measure(self, state: Any, provenance: Mapping[str, Any]) -> Measured:
        """Save the generator, measure it, and save it again with what was measured."""
        kind, folder = self.kind, self.folder
        generator = kind.product(self.task, state)
        record = {
            **provenance,
            "settings": to_mapping(self.spec),
            "made by": "kdistill prior train",
            "iterations": state.iteration,
            **kind.facts(self.task, state),
        }
        # one that is there already keeps its quality until it is measured again
        if not holds_generator(folder, generator):
            save_generator(generator, folder, record)  # before what may fail
        with status_line("measuring") as say:
            say("training a network on generated images, and one on real ones")
            check = QualityCheck(self.spec, self.data, self.held_out)
            measured = kind.measure(generator, check)
        real = self.data.train.images
        memorised = memorisation(measured.images, real, self.held_out.images)
        numbers = {
            **to_mapping(measured.quality),
            **measured.record,
            "memorisation": None if memorised is None else vars(memorised),
        }
        text = card(
            folder.name,
            measured.generator,
            self.data.classes,
            source=provenance["source"]["name"],
            texts={**kind.texts(measured.generator, record), "remark": measured.remark},
            quality=measured.quality,
            width=self.spec.quality_width,
            memorised=memorised,
        )
        files = {
            "metrics.json": to_json({**numbers, "iterations": state.iteration}),
            "README.md": text.encode(),
            "nearest.png": _nearest_pairs(measured.images, check.labels, self.data),
        }
        save_generator(measured.generator, folder, {**record, "quality": numbers}, files)
        return measured

    def _write_samples(self, state: Any) -> None:
        """Write ``samples.png``: images of the same noise every time, classes as rows."""
        labels = torch.arange(self.data.num_classes).repeat_interleave(SAMPLES_PER_CLASS)
        images = self.kind.sheet(
            self.task, state, labels, make_key(self.spec.seed, "prior samples")
        )
        heading = (self.data.name, f"generated after {state.iteration:,} iterations")
        picture = preview(images, labels, self.data.classes, heading)
        write_atomic(self.folder / "samples.png", picture.png())


def _nearest_pairs(generated: Tensor, labels: Tensor, data: ImageDataset) -> bytes:
    """Return a picture, one row per class: generated images, the training image nearest to each.

    Those of a class that are nearest to a training image come first.
    """
    distances, rows = nearest(generated, data.train.images)
    shown = []
    for label in range(data.num_classes):
        members = (labels == label).nonzero().squeeze(1)
        first = members[distances[members].argsort(stable=True)[:PAIRS]]
        pairs = torch.stack([generated[first], data.train.images[rows[first]]], 1)
        shown.append(pairs.flatten(0, 1))
    of_class = torch.arange(len(shown)).repeat_interleave(torch.tensor(list(map(len, shown))))
    heading = (data.name, "generated, nearest training image, in pairs")
    return preview(torch.cat(shown), of_class, data.classes, heading).png()
