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

from kdistill.artifacts import write_atomic
from kdistill.errors import ConfigError, DataError, did_you_mean

FORMAT = 1


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """One row per image.

    Attributes:
        labels: int64 ``[N]``.
        scores: By metric ``[N]``, float32; larger is harder.
        classes: Names.
        digest: ``kdistill.data.fingerprint`` of the images and labels that were scored.
        about: Whatever else should stand at the head of the file: settings, data, versions.
    """

    labels: Tensor
    scores: Mapping[str, Tensor]
    classes: tuple[str, ...]
    digest: str
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, metric: str) -> Tensor:
        """Return the scores of one metric ``[N]``.

        Raises:
            ConfigError: The table has no such metric.
        """
        if metric not in self.scores:
            raise ConfigError(
                f"scores: expected a metric of this table, got '{metric}'; {did_you_mean(metric, list(self.scores))}"
            )
        return self.scores[metric]

    def ranks(self, metric: str) -> Tensor:
        """Return the rank of every image in its class, int64 ``[N]``: 0 is the easiest; of equals the first comes first."""
        by_score = torch.argsort(self.of(metric), stable=True)
        order = by_score[torch.argsort(self.labels[by_score], stable=True)]  # class by class, easy to hard
        counts = torch.bincount(self.labels, minlength=len(self.classes))
        starts = (counts.cumsum(0) - counts)[self.labels[order]]
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - starts)

    def save(self, path: str | Path) -> None:
        """Write the table: one line of JSON after ``#``, then comma-separated ``index,label,<metric>,<metric>_rank,...``.

        Raises:
            DataError: The place cannot be written.
        """
        head = {"format": FORMAT, "num_samples": len(self), "digest": self.digest, "classes": list(self.classes), **self.about}
        text = io.StringIO()
        text.write("# " + json.dumps(head, sort_keys=True) + "\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["index", "label", *(name for metric in self.scores for name in (metric, f"{metric}_rank"))])
        columns = [range(len(self)), self.labels.tolist()]
        for metric, values in self.scores.items():  # nine digits give a float32 back
            columns += [[f"{value:.9g}" for value in values.tolist()], self.ranks(metric).tolist()]
        writer.writerows(zip(*columns, strict=True))
        write_atomic(path, text.getvalue().encode())


def load_scores(path: str | Path, *, digest: str | None = None, num_samples: int | None = None) -> ScoreTable:
    """Read a table.

    Args:
        path: From ``ScoreTable.save``.
        digest: ``fingerprint`` of the images that the scores are for; None takes any.
        num_samples: Their number; None takes any.

    Raises:
        DataError: No such file, a damaged one, or scores of other images.
    """
    path = Path(path)
    try:
        first, _, rest = path.read_text().partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"scores: expected a file that can be read, got {path} ({error}); make one with kdistill score"
        ) from error
    try:
        head = json.loads(first.removeprefix("#"))
        rows = list(csv.DictReader(io.StringIO(rest), strict=True))
        metrics = [name.removesuffix("_rank") for name in rows[0] if name.endswith("_rank")]
        labels = torch.tensor([int(row["label"]) for row in rows])
        scores = {metric: torch.tensor([float(row[metric]) for row in rows]) for metric in metrics}
        count, found, classes = int(head["num_samples"]), str(head["digest"]), tuple(head["classes"])
    except (ValueError, KeyError, IndexError, TypeError, csv.Error) as error:
        raise DataError(
            f"scores: expected a table of kdistill score, got {path} ({type(error).__name__}: {error}); make it again"
        ) from error
    if len(rows) != count:
        raise DataError(f"scores: expected the {count} rows that {path} speaks of, got {len(rows)}; make it again")
    if num_samples is not None and count != num_samples:
        raise DataError(
            f"scores: expected scores of the {num_samples} training images, got {count} in {path}; score this data set, with the "
            "same share withheld"
        )
    if digest is not None and found != digest:
        raise DataError(
            f"scores: expected scores of images with digest {digest[:12]}, got {found[:12]} in {path}; score this data set"
        )
    known = ("format", "num_samples", "digest", "classes")
    return ScoreTable(labels, scores, classes, found, {key: value for key, value in head.items() if key not in known})
