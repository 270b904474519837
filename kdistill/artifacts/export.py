"""A set in the formats that other programs read.

Every writer takes the contents of the set and a path, and leaves a whole result or none.
"""

import importlib.util
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdistill.artifacts.conclusions import is_number
from kdistill.artifacts.contents import SetContents, lookup
from kdistill.artifacts.dataset_card import card
from kdistill.artifacts.image_grids import to_image
from kdistill.artifacts.tensors import to_json
from kdistill.errors import ConfigError, DataError, MissingExtraError, did_you_mean
from kdistill.files import explained, new_folder, write_atomic

NPZ_VERSION = 1
# normalisation of test images in the challenge's evaluation: (classes, size) -> file, mean, std
_ECCV24 = {
    (100, 32): ("cifar100.pt", (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    (200, 64): ("tinyimagenet.pt", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def export(contents: SetContents, path: str | Path, to: str) -> Path:
    """Write a set in another format; see ``DistilledDataset.export``."""
    if to not in WRITERS:
        raise ConfigError(
            f"export: expected a known format, got '{to}'; {did_you_mean(to, list(WRITERS))}"
        )
    return WRITERS[to](contents, Path(path))


def _imagefolder(contents: SetContents, path: Path) -> Path:
    folders = class_folders(contents.classes)
    with new_folder(path) as staging, explained(path):
        for folder in folders:
            (staging / folder).mkdir()
        for label, number, png in _pngs(contents):
            (staging / folders[label] / f"{number:05d}.png").write_bytes(png)
        # load_data splits no test images off a distilled set
        (staging / ".kdistill.json").write_bytes(to_json({"distilled": True}))
    return path


def _npz(contents: SetContents, path: Path) -> Path:
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
    learned = {name: tensor.numpy() for name, tensor in contents.learned().items()}
    arrays: dict[str, Any] = {
        "kdistill": np.int64(NPZ_VERSION),  # load_data knows the file by it
        "x_train": learned.pop("images"),
        "y_train": contents.labels.numpy(),
        "classes": np.array(contents.classes),
        **learned,
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    _write_new(path, buffer.getvalue())
    return path


def _ddranking(contents: SetContents, path: Path) -> Path:
    order, logits = _class_major(contents, "ddranking"), contents.label_logits
    images = contents.transform.apply(contents.images)[order]
    if contents.channels == 1:
        images = images.expand(-1, 3, -1, -1)  # the format knows colour only
    tensors = {
        "images.pt": images,
        # the soft losses of the format apply the softmax themselves
        "labels.pt": None if logits is None else logits[order],
        "lr.pt": _learned_lr(contents),
    }
    return _tensor_folder(path, tensors)


def _mtt(contents: SetContents, path: Path) -> Path:
    labels, logits = contents.labels, contents.label_logits
    tensors = {
        "images_best.pt": contents.transform.apply(contents.images),
        "labels_best.pt": labels if logits is None else logits,
        # that code's name for the images with the whitening undone
        "images_zca_best.pt": contents.images if contents.transform.kind == "zca" else None,
        "lr_best.pt": _learned_lr(contents),
    }
    return _tensor_folder(path, tensors)


def _eccv24(contents: SetContents, path: Path) -> Path:
    order = _class_major(contents, "eccv24")
    if contents.ipc != 10:
        raise DataError(
            f"export eccv24: expected 10 images per class, got {contents.ipc}; the challenge takes "
            "row i for class i // 10, so distill with ipc=10"
        )
    name, mean, std = _ECCV24.get((contents.num_classes, contents.size), ("images.pt", None, None))
    if mean is None or contents.channels != 3:
        images = contents.transform.apply(contents.images)
    else:
        images = (contents.images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(
            -1, 1, 1
        )
    if path.suffix == ".pt":
        _write_new(path, _pt_bytes(images[order]))
        return path
    return _tensor_folder(path, {name: images[order]})


def _hf(contents: SetContents, path: Path) -> Path:
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError(
            "export hf: expected pyarrow, which writes parquet, got no such package; pip install "
            '"kdistill[hub]", or export imagefolder, which load_dataset reads too'
        )
    import pyarrow as pa
    import pyarrow.parquet as pq

    with new_folder(path) as staging, explained(path):
        (staging / "data").mkdir()
        pq.write_table(
            _arrow_table(contents, pa), staging / "data" / "train-00000-of-00001.parquet"
        )
        (staging / "README.md").write_text(card(contents, files="hf"), encoding="utf-8")
        (staging / "preview.png").write_bytes(contents.preview_page().png())
    return path


EIGHT_BIT = ("imagefolder", "hf")  # formats of pictures
SAME = 0.01 / 255  # difference to a level of 8 bits that is rounding of float32


def eight_bit_note(contents: SetContents) -> str | None:
    """Return what pictures of 8 bits lose of a set, in a sentence; None where it is nothing."""
    images = contents.images
    lost = float((images - (images.clamp(0.0, 1.0) * 255).round() / 255).abs().max())
    if lost < SAME:
        return None
    remedy = "npz holds every value, and distill --set eight_bit=true makes sets that pictures hold"
    evaluation = lookup(contents.metrics, "evaluation")
    costs = [
        cost
        for scores in dict(lookup(evaluation, "scores") or {}).values()
        if is_number(cost := lookup(scores, "eight_bit_cost"))
    ]
    if not costs:
        return f"pixels are clipped to 0..1 and rounded; kdistill evaluate measures it; {remedy}"
    protocol = lookup(evaluation, "protocol", "name")
    cost = f"{100 * max(costs):.1f} points of accuracy" if max(costs) > 0.0 else "no accuracy"
    return f"8 bits cost this set {cost} (evaluation by protocol {protocol}); {remedy}"


WRITERS: dict[str, Callable[[SetContents, Path], Path]] = {
    "imagefolder": _imagefolder,
    "npz": _npz,
    "ddranking": _ddranking,
    "mtt": _mtt,
    "eccv24": _eccv24,
    "hf": _hf,
}


# names of devices on Windows: no folder there can have them, whatever its ending
_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"),
}


def class_folders(classes: Sequence[str]) -> list[str]:
    """Return one safe folder name per class whose alphabetical order is the order of the classes.

    Readers of this layout number the folders alphabetically; a number goes in front where names
    alone would change the labels.
    """
    names = [re.sub(r"[^\w.+-]+", "_", name).strip("._")[:60] or "class" for name in classes]
    names = [f"class_{name}" if name.split(".")[0].upper() in _DEVICES else name for name in names]
    if names == sorted(names) and len({name.casefold() for name in names}) == len(names):
        return names
    digits = len(str(len(names) - 1))
    return [
        f"{label:0{digits}d}" + (f"_{name}" if name != str(label) else "")
        for label, name in enumerate(names)
    ]


def _arrow_table(contents: SetContents, pa: Any) -> Any:
    """Return the columns of the Hub: ``image``, ``class_id`` and ``label_logits`` if any."""
    rows = list(_pngs(contents))
    columns = {
        "image": pa.array(
            [{"bytes": png, "path": f"{label:05d}/{number:05d}.png"} for label, number, png in rows]
        ),
        "class_id": pa.array([label for label, _, _ in rows], pa.int64()),
    }
    features = {
        "image": {"_type": "Image"},
        "class_id": {"names": list(contents.classes), "_type": "ClassLabel"},
    }
    if contents.label_logits is not None:
        columns["label_logits"] = pa.array(
            contents.label_logits[_by_class(contents)].tolist(), pa.list_(pa.float32())
        )
        features["label_logits"] = {
            "feature": {"dtype": "float32", "_type": "Value"},
            "_type": "Sequence",
        }
    table = pa.table(columns)
    return table.replace_schema_metadata(
        {b"huggingface": to_json({"info": {"features": features}})}
    )


def _pngs(contents: SetContents) -> Iterator[tuple[int, int, bytes]]:
    """Yield label, number within the class and PNG file of every image, class by class."""
    if contents.channels not in (1, 3):
        raise DataError(
            f"export: expected grey or colour images, got {contents.channels} channels; use npz, "
            "which keeps any number"
        )
    numbers = [count() for _ in contents.classes]
    for row in _by_class(contents).tolist():
        label, buffer = int(contents.labels[row]), io.BytesIO()
        to_image(contents.images[row]).save(buffer, format="png")
        yield label, next(numbers[label]), buffer.getvalue()


def _by_class(contents: SetContents) -> Tensor:
    return torch.argsort(contents.labels, stable=True)


def _class_major(contents: SetContents, to: str) -> Tensor:
    """Return the order in which positions tell the labels, or refuse a set without one."""
    if len(set(contents.counts)) > 1:
        raise DataError(
            f"export {to}: expected the same number of images in every class, got "
            f"{min(contents.counts)} to {max(contents.counts)}; the format derives labels from row "
            "numbers, so use mtt or npz"
        )
    return _by_class(contents)


def _learned_lr(contents: SetContents) -> Tensor | None:
    return None if contents.learned_lr is None else torch.tensor(contents.learned_lr)


def _tensor_folder(path: Path, tensors: Mapping[str, Tensor | None]) -> Path:
    """Write one file per tensor; those that are None are left out."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with new_folder(path) as staging, explained(path):
        for name, tensor in present.items():
            (staging / name).write_bytes(_pt_bytes(tensor))
    return path


def _write_new(path: Path, data: bytes) -> None:
    with explained(path):
        if path.exists() and (path.is_dir() or path.stat().st_size):
            occupant = "a folder" if path.is_dir() else "one with contents"
            raise DataError(
                f"{path}: expected a new or empty file, got {occupant}; choose another place"
            )
    write_atomic(path, data, follow=True)


def _pt_bytes(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor.clone().contiguous(), buffer)
    return buffer.getvalue()
