"""PAD's options for other methods: images chosen by difficulty (FIEX), a masked match (FIEM).

Scores come from a table that the user names, or from networks that are trained on the real images
for a few epochs; the cache folder keeps those.  Symbols: N images, R networks.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from kdistill.artifacts.checkpoint import decode_checkpoint, encode_checkpoint
from kdistill.cache import CacheFile, digest_of
from kdistill.data import ImageDataset
from kdistill.data.image_dataset import fingerprint
from kdistill.errors import ConfigError, DataError
from kdistill.methods.base import MethodConfig
from kdistill.options import COUNT, MASKED_SHARE, POSITIVE, Range, Unset, Words
from kdistill.selection import Ranking, ScoreSpec, difficulty, load_scores, rank
from kdistill.selection.difficulty_scores import METRICS
from kdistill.status import status_line

DROPPED = Range("in [0, 1)", lambda x: 0.0 <= x < 1.0, "0.2 leaves a fifth out", "a share ")


@dataclass(frozen=True, kw_only=True)
class DifficultyConfig(MethodConfig):
    """Options of methods that choose real images by difficulty, beside those that every method has.

    Attributes:
        scores: Table made by ``kdistill score`` from the images that the run sees.
        score_metric: What counts as difficulty, a metric of ``kdistill score``.
        score_nets: Networks whose scores are averaged, where there is no table.
        score_epochs: Epochs that each of them is trained for.
    """

    scores: Annotated[str | None, Unset("networks are trained to score the images")] = None
    score_metric: Annotated[str, Words(tuple(METRICS))] = "el2n"
    score_nets: Annotated[int, COUNT] = 10
    score_epochs: Annotated[int, COUNT] = 10

    def scores_identity(self, data: ImageDataset) -> dict[str, Any]:
        """Return what decides the scores: the table's numbers, or how networks are trained.

        Raises:
            DataError: The table does not fit the data.
        """
        if self.scores is not None:
            return {"table": hashlib.sha256(self._table(data).numpy().tobytes()).hexdigest()}
        return {"metric": self.score_metric, "nets": self.score_nets, "epochs": self.score_epochs}

    def table_identity(self, data: ImageDataset) -> dict[str, Any]:
        """Return what a run's record says of a score table, so that it resumes with no other."""
        is_used = self.scores is not None and self.uses_scores
        return {"scores": self.scores_identity(data)} if is_used else {}

    @property
    def uses_scores(self) -> bool:
        """Whether these options make a choice by difficulty."""
        return True

    def ranking(self, data: ImageDataset) -> Ranking:
        """Return the images of every class from easy to hard; networks are trained if scores lack.

        Cost: ``score_nets * (score_epochs + 1)`` passes over the data, once.
        """
        scores = self._trained_scores(data) if self.scores is None else self._table(data)
        return rank(scores, data.train.labels, num_classes=data.num_classes, classes=data.classes)

    def _table(self, data: ImageDataset) -> Tensor:
        train = data.train
        table = load_scores(
            str(self.scores), digest=fingerprint(train), num_samples=len(train), labels=train.labels
        )
        return table.of(self.score_metric)

    def _trained_scores(self, data: ImageDataset) -> Tensor:
        network = f"{self.network(data)!r}, width {self.width}, norm {self.norm}"
        identity = {
            **self.scores_identity(data),
            "training": data.training_digest(),
            "student": network,
        }

        def checked(content: bytes, path: Path) -> Tensor:
            scores = decode_checkpoint(content, path)[0]["scores"]
            if scores.shape == data.train.labels.shape and bool(scores.isfinite().all()):
                return scores
            raise DataError(f"{path}: expected a finite score for each image, got others")

        name = f"{data.name}-{digest_of(identity)}.safetensors"
        file = CacheFile("scores", name, "the images are scored again")
        if (scores := file.read(checked)) is not None:
            return scores
        spec = ScoreSpec(
            metrics=(self.score_metric,), runs=self.score_nets, epochs=self.score_epochs
        )
        images, labels = data.transform.apply(data.train.images), data.train.labels
        with status_line("scores") as progress:
            scores = difficulty(spec, self.network(data), images, labels, progress=progress)[
                self.score_metric
            ]
        file.write(encode_checkpoint({"scores": scores}, identity))
        return scores


@dataclass(frozen=True, kw_only=True)
class AlignedConfig(DifficultyConfig):
    """PAD's options for methods that match batches of real images (PAD, appendix A.1).

    Attributes:
        drop_hardest: Share of the hardest images of each class that is left out (FIEX); helps for
            few images per class.
        drop_easiest: Share of the easiest images of each class that is left out (FIEX); helps for
            many images per class.
        mask_ratio: Share of what is compared, shallow layers first, that is left out (FIEM).
        first_move: Share of their norm by which the first step moves the images, where
            ``lr_images`` is found.
        eight_bit: Let the objective see the images as pictures of 8 bits hold them, clipped and
            rounded, so that an export as PNG loses nothing.
    """

    drop_hardest: Annotated[float, DROPPED] = 0.0
    drop_easiest: Annotated[float, DROPPED] = 0.0
    mask_ratio: Annotated[float, MASKED_SHARE] = 0.0
    first_move: Annotated[float, POSITIVE] = 0.03
    eight_bit: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_hardest + self.drop_easiest >= 1.0:
            raise ConfigError(
                "drop_hardest, drop_easiest: expected shares that leave images, got "
                f"{self.drop_hardest:g} and {self.drop_easiest:g}; 0.2 leaves a fifth out"
            )

    @property
    def uses_scores(self) -> bool:
        """Whether a share is left out."""
        return self.drop_hardest > 0.0 or self.drop_easiest > 0.0

    def selected(self, data: ImageDataset) -> ImageDataset:
        """Return the data without the images that these options leave out.

        Raises:
            DataError: A class would be empty; known before anything is scored.
        """
        if not self.uses_scores:
            return data
        low, high = self.drop_easiest, 1.0 - self.drop_hardest
        unscored_ranking(data).keep(low, high)
        rows = self.ranking(data).keep(low, high)
        return replace(data, train=data.train.take(rows))


def unscored_ranking(data: ImageDataset) -> Ranking:
    """Return a ranking with classes of the right sizes, to check shares without scores."""
    labels = data.train.labels
    scores = labels.new_zeros(len(labels)).float()
    return rank(scores, labels, num_classes=data.num_classes, classes=data.classes)
