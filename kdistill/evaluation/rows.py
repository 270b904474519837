"""``Row``: what was measured on networks of one kind that were trained on one set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from kdistill.config import from_mapping
from kdistill.errors import ConfigError
from kdistill.evaluation.significance import mean_of, or_none, std_of


# one record of a file: every field is a column of metrics.json
@dataclass(frozen=True, kw_only=True)
class Row:
    """Networks of one kind, trained on one set by the protocol's recipe.

    Attributes:
        name: ``"random"``, ``"full"``, the method of the small set, ...
        model: Name of the network.
        kind: ``"distilled"``, ``"variant"`` (of the small or random set: 8 bits, hard labels, no
            augmentation, fresh images of a generator) or ``"baseline"``.
        accuracies: Test accuracy of each network after the last epoch, in [0, 1].
        validation: The same on the held out training images.
        best_on_test: Largest test accuracy over the epochs of each network: chosen by looking at
            the test set.  None unless asked for.
        lr: Learning rates of the networks; several only where merged evaluations chose different
            ones.
        epochs: Passes over the set.
        images: Number of images in the set, or of those that a generator draws for one epoch.
        nbytes: Bytes of images and labels as the networks were trained on them (float32 pixels,
            int64 labels or float32 label logits); of the generator where one draws other images in
            every epoch.
        seconds: Time of training and testing; of the original training if the row comes from the
            cache.
        unit: What ``sets`` counts: ``"distillation seed"``, ``"subset"``, or nothing for the full
            data.
        sets: Number of sets behind the row.
        sources: Digests of what the numbers were made from, one per evaluation; equal sources are
            the same measurement.
        soft: Whether the labels were soft.
        untrained: Number of networks that did not train: no better than chance on their own
            training images.
        balanced: Mean over classes of the share of its test images that is recognised, one per
            network.
        per_class: Share of each class's test images that is recognised, the mean over networks.
        confusion: Test images of a true class (outer) taken for a class (inner), summed over
            networks; empty for variants and for many classes.
        drawn: Images that a generator drew while the networks were trained; 0 for a set of images.
        drawing_seconds: The part of ``seconds`` in which it did.
    """

    name: str
    model: str
    kind: str
    accuracies: tuple[float, ...]
    validation: tuple[float, ...]
    best_on_test: tuple[float, ...] | None = None
    lr: tuple[float, ...]
    epochs: int
    images: int
    nbytes: int
    seconds: float
    unit: str = ""
    sets: int = 1
    sources: tuple[str, ...] = ()
    soft: bool = False
    untrained: int = 0
    balanced: tuple[float, ...] = ()
    per_class: tuple[float, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    drawn: int = 0
    drawing_seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean test accuracy."""
        return mean_of(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation of the test accuracies (n - 1); NaN for one network."""
        return std_of(self.accuracies)

    @property
    def nets(self) -> int:
        """Networks per set."""
        return len(self.accuracies) // self.sets

    @property
    def seeds(self) -> str:
        """What the spread is over, e.g. ``"3 distillation seeds × 5 nets"``."""
        if not self.unit:
            return _counted(len(self.accuracies), "net")
        return f"{_counted(self.sets, self.unit)} × {_counted(self.nets, 'net')}"

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a plain mapping, with mean, std and seeds."""
        summary = {"mean": self.mean, "std": or_none(self.std), "seeds": self.seeds}
        return {**asdict(self), **summary, "validation_mean": or_none(mean_of(self.validation))}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Row":
        """Return the row that ``to_dict`` or ``dataclasses.asdict`` described, as JSON holds it."""
        known = {field.name for field in fields(cls)}
        own = {key: value for key, value in content.items() if key in known}
        row = from_mapping(cls, own, where="evaluation.rows")
        if not row.accuracies or not 1 <= row.sets <= len(row.accuracies):
            raise ConfigError(
                f"evaluation.rows: expected accuracies of {row.sets} sets, got "
                f"{len(row.accuracies)}; evaluate again"
            )
        return row


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
