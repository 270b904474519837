"""Scores of the images of a data set as a small text file, and a reader that refuses a file of other data."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdistill.artifacts.tensors import parse_table, utf8
from kdistill.errors import ConfigError, DataError, did_you_mean
from kdistill.files import FolderLayout, read_regular, write_atomic

FORMAT = 1
TABLE = "scores.csv"
LAYOUT = FolderLayout(files=("histogram.png", "extremes.png", TABLE), last=TABLE)


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """One row per image.

    Attributes:
        labels: int64 ``[N]``.
        scores: By metric ``[N]``, float32; larger is harder.
        classes: Names.
        digest: ``kdistill.data.fingerprint`` of the images and labels that were scored.
        provenance: What else should stand at the head of the file: settings, data, versions.
        files: Where each image was read from, N paths; None for images that are in no files of
            their own.
    """

    labels: Tensor
    scores: Mapping[str, Tensor]
    classes: tuple[str, ...]
    digest: str
    provenance: Mapping[str, Any]
    files: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, metric: str) -> Tensor:
        """Return the scores of one metric ``[N]``.

        Raises:
            ConfigError: The table has no such metric.
        """
        if metric not in self.scores:
            raise ConfigError(
                f"scores: expected a metric of this table, got '{metric}'; "
                f"{did_you_mean(metric, list(self.scores))}"
            )
        return self.scores[metric]

    def ranks(self, metric: str) -> Tensor:
        """Return the rank of every image in its class, int64 ``[N]``: 0 is the easiest; of equals the first comes first."""
        by_score = torch.argsort(self.of(metric), stable=True)
        order = by_score[
            torch.argsort(self.labels[by_score], stable=True)
        ]  # class by class, easy to hard
        counts = torch.bincount(self.labels, minlength=len(self.classes))
        starts = (counts.cumsum(0) - counts)[self.labels[order]]
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - starts)

    def save(self, path: str | Path) -> None:
        """Write the table: one line of JSON after ``#``, then comma-separated ``index,label,<metric>,<metric>_rank,...``.

        A column ``file`` follows ``label`` where images have files of their own.

        Raises:
            DataError: The place cannot be written.
        """
        write_atomic(path, self.encoded(), follow=True)

    def encoded(self) -> bytes:
        """Return what ``save`` writes."""
        head = {
            "format": FORMAT,
            "num_samples": len(self),
            "digest": self.digest,
            "classes": list(self.classes),
            **self.provenance,
        }
        text = io.StringIO()
        text.write("# " + json.dumps(head, sort_keys=True) + "\n")
        writer = csv.writer(text, lineterminator="\n")
        files = [] if self.files is None else [list(map(utf8, self.files))]
        writer.writerow(
            [
                "index",
                "label",
                *["file"] * len(files),
                *(name for metric in self.scores for name in (metric, f"{metric}_rank")),
            ]
        )
        columns = [range(len(self)), self.labels.tolist(), *files]
        for metric, values in self.scores.items():  # nine digits give a float32 back
            columns += [[f"{value:.9g}" for value in values.tolist()], self.ranks(metric).tolist()]
        writer.writerows(zip(*columns, strict=True))
        return text.getvalue().encode()


def load_scores(
    path: str | Path,
    *,
    digest: str | None = None,
    num_samples: int | None = None,
    labels: Tensor | None = None,
) -> ScoreTable:
    """Read a table.  Rows belong to the images that their ``index`` names, in whatever order they and the columns stand.

    Args:
        path: From ``ScoreTable.save``.
        digest: ``fingerprint`` of the images that the scores are for; None takes any.
        num_samples: Their number; None takes any.
        labels: Their labels, int64 ``[N]``; None takes any.

    Raises:
        DataError: No such file, a damaged or incomplete one, or scores of other images.
    """
    path = Path(path)
    try:
        is_ours = (
            path.name == TABLE and not path.is_symlink()
        )  # in the folder of kdistill score, which is replaced as a whole
        content = (
            LAYOUT.read(path.parent, path.name) if is_ours else read_regular(path, follow=True)
        )
        first, _, rest = content.decode("utf-8-sig").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        got = error.strerror or error if isinstance(error, OSError) else error
        raise DataError(
            f"scores: expected a file that can be read, got {path} ({got}); make one with kdistill "
            "score"
        ) from error
    try:
        head = parse_table(first.removeprefix("#"), "its first line", "make it again")
        count, found, classes = (
            int(head["num_samples"]),
            str(head["digest"]),
            tuple(map(str, head["classes"])),
        )
        table = _columns(rest)
        index, label = (
            torch.tensor([int(text) for text in table[name]], dtype=torch.int64)
            for name in ("index", "label")
        )
        metrics = [name.removesuffix("_rank") for name in table if name.endswith("_rank")]
        scores = {
            metric: torch.tensor([float(text) for text in table[metric]]) for metric in metrics
        }
    except (
        ValueError,
        LookupError,
        TypeError,
        OverflowError,
        RuntimeError,
        AttributeError,
        csv.Error,
    ) as error:
        raise _unusable(
            "a table of kdistill score", f"{path} ({type(error).__name__}: {error})"
        ) from error
    if head.get("format", FORMAT) != FORMAT:
        raise _unusable(f"a table of format {FORMAT}", f"{head['format']!r} in {path}")
    if len(index) != count:
        raise _unusable(f"the {count} rows that {path} speaks of", str(len(index)))
    if num_samples is not None and count != num_samples:
        raise DataError(
            f"scores: expected scores of the {num_samples} training images, got {count} in {path}; "
            "score this data set, with the "
            "same share held out"
        )
    if digest is not None and found != digest:
        raise DataError(
            f"scores: expected scores of images with digest {digest[:12]}, got {found[:12]} in "
            f"{path}; score this data set"
        )
    order = _order(index, path)
    files = tuple(table["file"][row] for row in order.tolist()) if "file" in table else None
    label, scores = label[order], {metric: values[order] for metric, values in scores.items()}
    _check_values(label, scores, len(classes) if labels is None else labels, path)
    known = ("format", "num_samples", "digest", "classes")
    return ScoreTable(
        label,
        scores,
        classes,
        found,
        {key: value for key, value in head.items() if key not in known},
        files,
    )


def _columns(text: str) -> dict[str, tuple[str, ...]]:
    """Return the columns by name; every row must be whole."""
    names, *rows = (row for row in csv.reader(io.StringIO(text), strict=True) if row)
    if len(set(names)) < len(names):
        raise ValueError(f"a column twice in {','.join(names)}")
    for row in rows:
        if len(row) != len(names):
            raise ValueError(f"{len(row)} values in the row {','.join(row)[:40]}")
    return dict(zip(names, zip(*rows, strict=True) if rows else ((),) * len(names), strict=True))


def _order(index: Tensor, path: Path) -> Tensor:
    """Return where the row of image 0, 1, ... stands."""
    order = index.argsort(stable=True)
    wrong = (index[order] != torch.arange(len(index))).nonzero()
    if len(wrong):
        raise _unusable(
            f"one row for each index 0..{len(index) - 1}",
            f"{int(index[order[wrong[0]]])} for {int(wrong[0])} in {path}",
        )
    return order


def _check_values(
    label: Tensor, scores: Mapping[str, Tensor], labels: Tensor | int, path: Path
) -> None:
    """Raise DataError for a label that is not the image's (or no class at all), and for a score that is no number."""
    wrong = (label < 0) | (label >= labels) if isinstance(labels, int) else label != labels.cpu()
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        wanted = (
            f"a label of {labels} classes"
            if isinstance(labels, int)
            else f"label {int(labels[row])}"
        )
        raise _unusable(f"{wanted} for image {row}", f"{int(label[row])} in {path}")
    for metric, values in scores.items():
        if bool(values.isnan().any()):
            row = int(values.isnan().nonzero()[0])
            raise _unusable(f"a number as {metric} of image {row}", f"NaN in {path}")


def _unusable(expected: str, got: str) -> DataError:
    return DataError(f"scores: expected {expected}, got {got}; make it again")
