"""What is checked of a small set and the real data before networks are trained."""

from pathlib import Path
from typing import Any

from kdistill.artifacts import DistilledDataset
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError, DataError


def check_order(small: Any, data: Any) -> None:
    """Raise ConfigError unless the small set comes first."""
    if isinstance(small, ImageDataset) and isinstance(data, DistilledDataset):
        raise ConfigError(
            "evaluate: expected the small set and then the real data, got them the other way "
            "round; swap them"
        )
    if not isinstance(small, DistilledDataset | str | Path):
        raise ConfigError(
            f"evaluate: expected a small set or its folder first, got {type(small).__name__}; call "
            "evaluate(small, data)"
        )


def check_fits(small: DistilledDataset, data: ImageDataset) -> None:
    """Raise DataError unless sizes and classes agree and there are test images."""
    ours, theirs = (
        "×".join(map(str, images.shape[1:])) for images in (small.images, data.train.images)
    )
    if ours != theirs or small.num_classes != data.num_classes:
        raise DataError(
            f"evaluate: expected a small set of {theirs} images in {data.num_classes} classes like "
            f"{data.name}, got {ours} in {small.num_classes}; load the data that it was made from, "
            "at its size"
        )
    unnamed = tuple(map(str, range(small.num_classes)))
    if small.classes not in (unnamed, tuple(data.classes)):
        place = next(
            i for i, (a, b) in enumerate(zip(small.classes, data.classes, strict=True)) if a != b
        )
        raise DataError(
            f"evaluate: expected label {place} to mean '{data.classes[place]}' like in "
            f"{data.name}, got '{small.classes[place]}'; load the data that the small set was made "
            "from"
        )
    check_test_images(data)


def check_test_images(data: ImageDataset) -> None:
    """Raise DataError if there are no test images."""
    if not len(data.test):
        raise DataError(
            f"evaluate: expected test images in {data.name}, got none; give load_data a test part"
        )
