"""Data that is already in the process: arrays, torch data sets, Hugging Face data sets.  Duck typed: nothing is imported."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from kdistill.data import image_tensors, picture_files, streamed_images
from kdistill.data.raw_data import RawData, RawPart, label_values, unusable
from kdistill.errors import ConfigError, did_you_mean

# the names under which images and labels lie in files and dicts, most explicit first
PAIRS = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
    "validation": (
        ("x_val", "y_val"),
        ("x_valid", "y_valid"),
        ("val_images", "val_labels"),
        ("x_validation", "y_validation"),
    ),
    "all": (
        ("x", "y"),
        ("images", "labels"),
        ("image", "label"),
        ("data", "labels"),
        ("data", "targets"),
    ),
}


def is_hugging_face(spec: object) -> bool:
    """Return whether ``spec`` looks like a ``datasets.Dataset`` or ``DatasetDict``."""
    parts = list(spec.values()) if isinstance(spec, Mapping) else [spec]
    return bool(parts) and all(
        hasattr(part, "features") and hasattr(part, "column_names") for part in parts
    )


def read_pair(
    images: Any,
    labels: Any,
    size: int | None,
    *,
    where: str = "train",
    notes: list[str],
    stream: bool = False,
) -> RawPart:
    """Read images ``[N, H, W]``, ``[N, H, W, C]``, ``[N, C, H, W]`` or a sequence of single images, and one label for each."""
    is_array = isinstance(images, Tensor) or (
        isinstance(images, np.ndarray) and images.dtype != object
    )
    if is_array and stream:
        found = streamed_images.of_array(images, size, where)
    elif is_array:
        found = image_tensors.batch(images, f"{where} images", notes)
        found = found if size is None else image_tensors.square(found, size)
    elif stream:
        raise ConfigError(
            f"stream: expected an array of images in {where}, got a list of them; leave stream out"
        )
    else:
        singles = (
            image_tensors.single(image, f"{where} image {row}", notes)
            for row, image in enumerate(images)
        )
        found = image_tensors.collect(singles, size, lambda row: f"{where} image {row}")
    return RawPart(found, label_values(labels, len(found), where))


def read_mapping(arrays: Mapping[str, Any], size: int | None, *, where: str) -> RawData:
    """Read a dict or file of named arrays; see ``PAIRS`` for the names.

    Raises:
        DataError: No known pair of names is there.
    """
    by_name = {str(key).lower(): value for key, value in arrays.items()}
    notes: list[str] = []

    def part(which: str) -> RawPart | None:
        for x, y in PAIRS[which]:
            if x in by_name and y in by_name:
                return read_pair(
                    by_name[x],
                    by_name[y],
                    size,
                    where="train" if which == "all" else which,
                    notes=notes,
                )
        return None

    train = part("train") or part("all")
    if train is None:
        wanted = ", ".join(f"'{x}' and '{y}'" for x, y in (*PAIRS["train"], *PAIRS["all"][:2]))
        raise unusable(f"{wanted} in {where}", sorted(map(str, arrays)), "rename the arrays")
    return RawData(train, part("test"), part("validation"), notes=notes)


def read_dataset(
    dataset: Any, size: int | None, *, where: str = "train", notes: list[str], stream: bool = False
) -> RawPart:
    """Read a torch ``Dataset``: items ``(image, label)`` or ``{"image": ..., "label": ...}``, class names from ``.classes``.

    ``Subset`` and the like are looked through for the names; classes that a subset has no image of
    are dropped. With ``stream`` items are asked for once now, and again whenever they are looked
    at: they must not change.
    """
    if not len(dataset):
        raise unusable(f"images in {where}", f"an empty {type(dataset).__name__}", "add images")
    labels: list[Any] = []

    def images() -> Iterator[Tensor]:
        for row in range(len(dataset)):
            image, label = _item(dataset[row], row)
            labels.append(
                label.item()
                if isinstance(label, Tensor | np.generic) and label.ndim == 0
                else label
            )
            yield image_tensors.single(image, f"{where} image {row}", notes)

    def name(row: int) -> str:
        return f"{where} image {row}"

    if stream:

        def one(row: int) -> Tensor:
            return image_tensors.single(_item(dataset[row], row)[0], name(row), [])

        found = streamed_images.of_items(one, images(), size, name)
    else:
        found = image_tensors.collect(images(), size, name)
    owner, wrapped = dataset, False
    while not hasattr(owner, "classes") and hasattr(owner, "dataset"):
        owner, wrapped = owner.dataset, True
    names = getattr(owner, "classes", None)
    rows = [label.tolist() if isinstance(label, Tensor | np.ndarray) else label for label in labels]
    return RawPart(
        found,
        label_values(rows, len(found), where),
        tuple(map(str, names)) if names else None,
        present_only=wrapped,
    )


def _item(item: Any, row: int) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        for image, label in (
            ("image", "label"),
            ("img", "label"),
            ("images", "labels"),
            ("pixel_values", "labels"),
        ):
            if image in item and label in item:
                return item[image], item[label]
    elif isinstance(item, Sequence) and not isinstance(item, str | bytes) and len(item) >= 2:
        return item[0], item[1]
    raise unusable(
        "items (image, label)", f"{type(item).__name__} at item {row}", "wrap the data set"
    )


def read_hugging_face(
    spec: Any, size: int | None, *, image_column: str | None = None, label_column: str | None = None
) -> RawData:
    """Read a Hugging Face ``Dataset`` or ``DatasetDict`` (splits ``train``, ``test``, ``validation``), decoded with Pillow.

    Raises:
        ConfigError: A column that is not there, or several that could be meant.
        DataError: No image or label column, or no ``train`` split.
    """
    notes: list[str] = []
    splits = dict(spec) if isinstance(spec, Mapping) else {"train": spec}
    if "train" not in splits:
        raise unusable("a split 'train'", sorted(splits), "pass one split, and the other as test=")

    def part(which: str) -> RawPart | None:
        if which not in splits:
            return None
        return _hugging_face_part(splits[which], size, image_column, label_column, which, notes)

    train = part("train")
    licence = getattr(getattr(splits["train"], "info", None), "license", "") or "unknown"
    is_distilled = (
        "label_logits" in splits["train"].column_names
    )  # only DistilledDataset.export writes that
    return RawData(
        train,
        part("test"),
        part("validation"),
        licence=str(licence),
        is_distilled=is_distilled,
        notes=notes,
    )


def _hugging_face_part(
    rows: Any,
    size: int | None,
    image_column: str | None,
    label_column: str | None,
    where: str,
    notes: list[str],
) -> RawPart:
    if not hasattr(rows, "__len__"):
        raise unusable(
            "a data set with a length", f"a stream ({where})", "load it without streaming=True"
        )
    image_column = _column(rows, "image", image_column, ("image", "img", "picture"))
    label_column = _column(rows, "label", label_column, ("label", "labels", "class", "target"))
    labels: list[Any] = []

    def images() -> Iterator[Tensor]:
        for row in range(len(rows)):
            item = rows[row]
            labels.append(item[label_column])
            yield _hugging_face_image(item[image_column], f"{where} image {row}", notes)

    found = image_tensors.collect(images(), size, lambda row: f"{where} image {row}")
    names = getattr(rows.features[label_column], "names", None)
    return RawPart(found, label_values(labels, len(found), where), tuple(names) if names else None)


def _hugging_face_image(value: Any, name: str, notes: list[str]) -> Tensor:
    if isinstance(value, Mapping):  # Image(decode=False)
        source = value["path"] if value.get("bytes") is None else io.BytesIO(value["bytes"])
        return picture_files.decode(source, value.get("path") or name, notes)
    return image_tensors.single(
        value if isinstance(value, Image.Image | Tensor | np.ndarray) else np.asarray(value),
        name,
        notes,
    )


def _column(rows: Any, what: str, asked: str | None, usual: tuple[str, ...]) -> str:
    columns = list(rows.column_names)
    if asked is not None:
        if asked not in columns:
            raise ConfigError(
                f"{what}_column: expected a column of the data set, got '{asked}'; "
                f"{did_you_mean(asked, columns)}"
            )
        return asked
    kind = {"image": "Image", "label": "ClassLabel"}[what]
    typed = [name for name in columns if type(rows.features[name]).__name__ == kind]
    found = typed or [name for name in columns if name.lower() in usual]
    if len(found) > 1:
        found = [name for name in found if name.lower() in usual] or found
    if not found:
        raise unusable(
            f"{what}s in a column", f"the columns {columns}", f"name it with {what}_column="
        )
    if len(found) > 1:
        raise ConfigError(
            f"{what}_column: expected one column, got {found}; choose with {what}_column="
        )
    return found[0]
