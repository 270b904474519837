"""Data that is already in the process: arrays, torch data sets, Hugging Face data sets.

They are recognised by what they have, not by their type: no library is imported.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from kdistill.data import image_tensors, picture_files, streamed_images
from kdistill.data.raw_data import (
    RawData,
    RawPart,
    Reading,
    choose_column,
    label_values,
    numbered,
    unusable,
)
from kdistill.errors import ConfigError

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
ITEM_KEYS = (
    ("image", "label"),
    ("img", "label"),
    ("images", "labels"),
    ("pixel_values", "labels"),
)
# what columns of a Hugging Face data set hold: the type of such a feature, and usual names
COLUMNS = {
    "image_column": ("Image", ("image", "img", "picture")),
    "label_column": ("ClassLabel", ("label", "labels", "class", "target")),
}


def is_hugging_face(spec: object) -> bool:
    """Return whether ``spec`` looks like a ``datasets.Dataset`` or ``DatasetDict``."""
    parts = list(spec.values()) if isinstance(spec, Mapping) else [spec]
    return bool(parts) and all(
        hasattr(part, "features") and hasattr(part, "column_names") for part in parts
    )


def read_pair(images: Any, labels: Any, reading: Reading, where: str = "train") -> RawPart:
    """Read images, an array or tensor of them or a sequence of single ones, and their labels.

    Shapes are ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]``.
    """
    is_array = isinstance(images, Tensor) or (
        isinstance(images, np.ndarray) and images.dtype != object
    )
    if reading.stream and not is_array:
        raise ConfigError(
            f"stream: expected an array of images in {where}, got a list of them; leave stream out"
        )
    if reading.stream:
        pixels = streamed_images.of_array(images, reading.size, where)
    elif is_array:
        pixels = image_tensors.from_batch(images, f"{where} images", reading.notes)
        if reading.size is not None:
            pixels = image_tensors.resize_square(pixels, reading.size)
    else:
        singles = (
            image_tensors.from_image(image, numbered(where)(row), reading.notes)
            for row, image in enumerate(images)
        )
        pixels = image_tensors.stack(singles, reading.size, numbered(where))
    return RawPart(pixels, label_values(labels, len(pixels), where))


def read_mapping(arrays: Mapping[str, Any], reading: Reading, *, where: str) -> RawData:
    """Read a dict or file of named arrays; see ``PAIRS`` for the names.

    Raises:
        DataError: No known pair of names is there.
    """
    by_name = {str(key).lower(): value for key, value in arrays.items()}
    parts: dict[str, RawPart] = {}
    for which, pairs in PAIRS.items():
        part = "train" if which == "all" else which
        for x, y in pairs:
            if part not in parts and x in by_name and y in by_name:
                parts[part] = read_pair(by_name[x], by_name[y], reading, part)
    if "train" not in parts:
        wanted = ", ".join(f"'{x}' and '{y}'" for x, y in (*PAIRS["train"], *PAIRS["all"][:2]))
        raise unusable(f"{wanted} in {where}", sorted(map(str, arrays)), "rename the arrays")
    return RawData(**parts)


def read_dataset(dataset: Any, reading: Reading, where: str = "train") -> RawPart:
    """Read a torch ``Dataset``, class names from its ``classes``.

    Items are ``(image, label)`` or ``{"image": ..., "label": ...}``; streamed ones are asked for
    once now, and again whenever they are used: they must not change.  A ``Subset`` and the like
    have the names of the data set that they wrap, but for classes that they have no image of.
    """
    if not len(dataset):
        raise unusable(f"images in {where}", f"an empty {type(dataset).__name__}", "add images")
    images, labels = _read_items(
        len(dataset), lambda row: _item(dataset[row], row), image_tensors.from_image, reading, where
    )
    owner = dataset
    while not hasattr(owner, "classes") and hasattr(owner, "dataset"):
        owner = owner.dataset
    names = getattr(owner, "classes", None)
    names = tuple(map(str, names)) if names else None
    return RawPart(images, labels, names, present_only=owner is not dataset)


def _read_items(
    count: int,
    item: Callable[[int], tuple[Any, Any]],
    to_tensor: Callable[[Any, str, list[str]], Tensor],
    reading: Reading,
    where: str,
) -> tuple[Tensor, np.ndarray]:
    """Return the images and labels of ``count`` items.

    Args:
        count: Number of items.
        item: Row to image and label.
        to_tensor: Image, its name in messages, and notes to ``[C, H, W]``.
        reading: How they are read.
        where: Part of the data, for messages.
    """
    labels: list[Any] = []
    name = numbered(where)

    def first_pass() -> Iterator[Tensor]:
        for row in range(count):
            image, label = item(row)
            is_array = isinstance(label, Tensor | np.ndarray | np.generic)
            labels.append(label.tolist() if is_array else label)
            yield to_tensor(image, name(row), reading.notes)

    def read_one(row: int) -> Tensor:
        return to_tensor(item(row)[0], name(row), [])

    if reading.stream:
        images = streamed_images.of_items(read_one, first_pass(), reading.size, name)
    else:
        images = image_tensors.stack(first_pass(), reading.size, name)
    return images, label_values(labels, len(images), where)


def _item(item: Any, row: int) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        for image, label in ITEM_KEYS:
            if image in item and label in item:
                return item[image], item[label]
    elif isinstance(item, Sequence) and not isinstance(item, str | bytes) and len(item) >= 2:
        return item[0], item[1]
    got = f"{type(item).__name__} at item {row}"
    raise unusable("items (image, label)", got, "wrap the data set")


def read_hugging_face(spec: Any, reading: Reading) -> RawData:
    """Read a Hugging Face ``Dataset`` or ``DatasetDict``, decoded with Pillow.

    The splits of a ``DatasetDict`` are ``train``, ``test`` and ``validation``.

    Raises:
        ConfigError: A column that is not there, or several that could be meant.
        DataError: No image or label column, or no ``train`` split.
    """
    splits = dict(spec) if isinstance(spec, Mapping) else {"train": spec}
    if "train" not in splits:
        raise unusable("a split 'train'", sorted(splits), "pass one split, and the other as test=")
    names = [which for which in ("train", "test", "validation") if which in splits]
    parts = {which: _hugging_face_part(splits[which], reading, which) for which in names}
    licence = getattr(getattr(splits["train"], "info", None), "license", "") or "unknown"
    # only DistilledDataset.export writes that
    is_distilled = "label_logits" in splits["train"].column_names
    return RawData(**parts, licence=str(licence), is_distilled=is_distilled)


def _hugging_face_part(rows: Any, reading: Reading, where: str) -> RawPart:
    if not hasattr(rows, "__len__"):
        fix = "load it without streaming=True"
        raise unusable("a data set with a length", f"a stream ({where})", fix)
    names = list(rows.column_names)
    chosen = []
    for option, (feature, usual) in COLUMNS.items():
        is_usual = {name: name.lower() in usual for name in names}
        typed = [name for name in names if type(rows.features[name]).__name__ == feature]
        typed = [name for name in typed if is_usual[name]] or typed
        candidates = typed or [name for name in names if is_usual[name]]
        asked = getattr(reading, option)
        chosen.append(choose_column(option, asked, candidates, names, "the data set"))

    def item(row: int) -> tuple[Any, Any]:
        values = rows[row]
        return values[chosen[0]], values[chosen[1]]

    images, labels = _read_items(len(rows), item, _hugging_face_image, reading, where)
    classes = getattr(rows.features[chosen[1]], "names", None)
    return RawPart(images, labels, tuple(classes) if classes else None)


def _hugging_face_image(value: Any, name: str, notes: list[str]) -> Tensor:
    if isinstance(value, Mapping):  # Image(decode=False)
        source = value["path"] if value.get("bytes") is None else io.BytesIO(value["bytes"])
        return picture_files.decode(source, value.get("path") or name, notes)
    if not isinstance(value, Image.Image | Tensor | np.ndarray):
        value = np.asarray(value)
    return image_tensors.from_image(value, name, notes)
