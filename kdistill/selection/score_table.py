"""Scores of the images of a data set as a small text file, which is refused for other data."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
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
# what a damaged table raises
_DAMAGED = (
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    RuntimeError,
    AttributeError,
    csv.Error,
)
LAYOUT = FolderLayout(files=("histogram.png", "extremes.png", TABLE), last=TABLE)


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """One row per image.

    Attributes:
        labels: int64 ``[N]``.
        scores: Scores ``[N]`` by metric, float32; larger is harder.
        classes: Names of the classes.
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
        """Return the rank of every image in its class, int64 ``[N]``.

        0 is the easiest; of equals the first comes first.
        """
        by_score = torch.argsort(self.of(metric), stable=True)
        # class by class, easy to hard
        order = by_score[torch.argsort(self.labels[by_score], stable=True)]
        counts = torch.bincount(self.labels, minlength=len(self.classes))
        starts = (counts.cumsum(0) - counts)[self.labels[order]]
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - starts)

    def save(self, path: str | Path) -> None:
        """Write the table.

        It is one line of JSON after ``#``, then comma-separated
        ``index,label,<metric>,<metric>_rank,...``.  A column ``file`` follows ``label`` where
        images have files of their own.

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
        columns: dict[str, Sequence[object]] = {
            "index": range(len(self)),
            "label": self.labels.tolist(),
        }
        if self.files is not None:
            columns["file"] = list(map(utf8, self.files))
        for metric, values in self.scores.items():  # nine digits give a float32 back
            columns[metric] = [f"{value:.9g}" for value in values.tolist()]
            columns[f"{metric}_rank"] = self.ranks(metric).tolist()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue().encode()


def load_scores(
    path: str | Path,
    *,
    digest: str | None = None,
    num_samples: int | None = None,
    labels: Tensor | None = None,
) -> ScoreTable:
    """Read a table.

    Rows belong to the images that their ``index`` names, in whatever order they and the columns
    stand.

    Args:
        path: From ``ScoreTable.save``.
        digest: ``fingerprint`` of the images that the scores are for; None takes any.
        num_samples: Number of those images; None takes any.
        labels: Labels of those images, int64 ``[N]``; None takes any.

    Raises:
        DataError: No such file, a damaged or incomplete one, or scores of other images.
    """
    path = Path(path)
    first, _, rest = _read(path).partition("\n")
    try:
        head = parse_table(first.removeprefix("#"), "its first line", "make it again")
        count, own_digest = int(head["num_samples"]), str(head["digest"])
        classes = tuple(map(str, head["classes"]))
        table = _columns(rest)
        index, own_labels = (
            torch.tensor([int(text) for text in table[name]], dtype=torch.int64)
            for name in ("index", "label")
        )
        metrics = [name.removesuffix("_rank") for name in table if name.endswith("_rank")]
        scores = {
            metric: torch.tensor([float(text) for text in table[metric]]) for metric in metrics
        }
    except _DAMAGED as error:
        got = f"{path} ({type(error).__name__}: {error})"
        raise _unusable("a table of kdistill score", got) from error
    if head.get("format", FORMAT) != FORMAT:
        raise _unusable(f"a table of format {FORMAT}", f"{head['format']!r} in {path}")
    if len(index) != count:
        raise _unusable(f"the {count} rows that {path} speaks of", str(len(index)))
    if num_samples is not None and count != num_samples:
        raise DataError(
            f"scores: expected scores of the {num_samples} training images, got {count} in {path}; "
            "score this data set, with the same share held out"
        )
    if digest is not None and own_digest != digest:
        raise DataError(
            f"scores: expected scores of images with digest {digest[:12]}, got {own_digest[:12]} "
            f"in {path}; score this data set"
        )
    order = _order(index, path)
    own_labels, scores = own_labels[order], {name: scores[name][order] for name in metrics}
    _check_values(own_labels, scores, len(classes) if labels is None else labels, path)
    known = ("format", "num_samples", "digest", "classes")
    return ScoreTable(
        own_labels,
        scores,
        classes,
        own_digest,
        {key: value for key, value in head.items() if key not in known},
        tuple(table["file"][row] for row in order.tolist()) if "file" in table else None,
    )


def _read(path: Path) -> str:
    try:
        if path.name == TABLE and not path.is_symlink():
            # in the folder of kdistill score, which is replaced as a whole
            return LAYOUT.read(path.parent, path.name).decode("utf-8-sig")
        return read_regular(path, follow=True).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or error
        raise DataError(
            f"scores: expected a file that can be read, got {path} ({got}); make one with kdistill "
            "score"
        ) from error


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
    """Raise DataError for a label that is not the image's, and for a score that is no number.

    Where ``labels`` is the number of classes, a label must be a class.
    """
    wrong = (label < 0) | (label >= labels) if isinstance(labels, int) else label != labels.cpu()
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        is_count = isinstance(labels, int)
        wanted = f"a label of {labels} classes" if is_count else f"label {int(labels[row])}"
        raise _unusable(f"{wanted} for image {row}", f"{int(label[row])} in {path}")
    for metric, values in scores.items():
        if bool(values.isnan().any()):
            row = int(values.isnan().nonzero()[0])
            raise _unusable(f"a number as {metric} of image {row}", f"NaN in {path}")


def _unusable(expected: str, got: str) -> DataError:
    return DataError(f"scores: expected {expected}, got {got}; make it again")
