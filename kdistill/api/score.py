"""``score``: how hard every training image is, as a table and in pictures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kdistill import _native
from kdistill.api.inputs import check_place, use
from kdistill.api.run_folder import check_writable
from kdistill.artifacts.score_pictures import extremes, histograms
from kdistill.config import from_mapping, to_mapping
from kdistill.data import ImageDataset, fingerprint, load_data, normalised
from kdistill.engine import build_student
from kdistill.options import HELD_OUT, check_value
from kdistill.selection import ScoreSpec, ScoreTable, difficulty, load_scores
from kdistill.selection.score_table import LAYOUT, TABLE
from kdistill.status import quietly, status_line

__all__ = ["load_scores_of", "score"]


def score(
    data: ImageDataset | Any,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    validation: float = 0.1,
    out: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> ScoreTable:
    """Score every training image by how hard several briefly trained networks find it.

    Args:
        data: From ``load_data``, or anything that ``load_data`` takes; what memory does not hold
            comes from ``load_data(..., stream=True)``.
        options: Fields of ``ScoreSpec``: metrics (names, or one text with commas), runs, epochs,
            lr, batch_size, momentum, weight_decay, student, width.
        seed: Seed of all runs.
        validation: Share of the training data that ``distill`` would hold out: scores are those of
            the rest, in its order.
        out: Folder for ``scores.csv``, ``histogram.png`` and ``extremes.png`` (of the first
            metric); None writes nothing.
        say: Another progress callback, told what is being done.
        device: ``"cpu"`` or ``"cuda"``; None keeps the data's.
        threads: CPU threads; None keeps torch's.
        quiet: Do not show the progress.

    Returns:
        The table.  Same data, options, seed, thread count and machine: same bits.

    Raises:
        ConfigError: An unknown option or metric, or a number out of range.
        DataError: The folder cannot be written.
        NonFiniteError: A training run blew up; lower ``lr``.

    Cost: ``runs * epochs`` passes of training (and as many forward passes for forgetting), then one
        forward and backward pass for each run; a batch is normalised when it is looked at, so that
        memory is that of the data and of one batch.
    """
    spec = check_score(options, seed, validation, out)
    use(threads, device)
    if out is not None:
        check_writable(Path(out))
    data = data if isinstance(data, ImageDataset) else load_data(data, quiet=quiet)
    training = data.holdout(validation)[0].to(device or data.train.images.device)
    student = build_student(
        spec.student,
        channels=training.channels,
        size=training.size,
        classes=training.num_classes,
        width=spec.width,
    )
    with quietly(quiet), status_line("scoring", also=say) as show:
        scores = difficulty(
            spec,
            student,
            normalised(training.train.images, training.transform),
            training.train.labels,
            progress=show,
        )
    provenance = {
        "data": data.name,
        "validation": validation,
        "settings": to_mapping(spec),
        "environment": _native.environment(),
    }
    table = ScoreTable(
        training.train.labels.cpu(),
        scores,
        tuple(training.classes),
        fingerprint(training.train),
        provenance,
        training.train.files,
    )
    if out is not None:
        _write(table, training, Path(out))
    return table


def check_score(
    options: Mapping[str, Any] | None, seed: int, validation: float, out: str | Path | None
) -> ScoreSpec:
    """Return the settings of ``score``, after every check that is possible before images are read.

    Raises:
        ConfigError: An unknown option or metric, or a number out of range.
        DataError: ``out`` cannot be written.
    """
    settings = dict(options or {})
    if isinstance(settings.get("metrics"), str):
        settings["metrics"] = tuple(name.strip() for name in settings["metrics"].split(","))
    check_value("validation", validation, HELD_OUT)
    if out is not None:
        check_place(out)
    return from_mapping(ScoreSpec, {"seed": seed, **settings}, where="options of score")


def load_scores_of(data: ImageDataset, path: str | Path) -> ScoreTable:
    """Return the table in ``path``, which must be that of the training images of ``data``.

    Raises:
        DataError: No such file, a damaged one, or scores of other images.
    """
    return load_scores(
        path, digest=fingerprint(data.train), num_samples=len(data.train), labels=data.train.labels
    )


def _write(table: ScoreTable, data: ImageDataset, folder: Path) -> None:
    first = next(iter(table.scores))
    heading = f"{data.name}: easiest and hardest by {first}"
    captions = (
        [f"{row}" for row in range(len(table))]
        if table.files is None
        else [Path(file).name for file in table.files]
    )
    sheet = extremes(
        data.train.images, table.labels, table.of(first), table.classes, heading, captions
    )
    panels = histograms(dict(table.scores), f"{data.name}: scores of {len(table):,} images")
    LAYOUT.write(
        folder, {TABLE: table.encoded(), "histogram.png": panels, "extremes.png": sheet.png()}
    )
