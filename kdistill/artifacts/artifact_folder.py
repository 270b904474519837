"""The artefact folder: written whole or not at all, and read with every checksum checked."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdistill.artifacts.dataset_card import card
from kdistill.artifacts.preview import png_bytes
from kdistill.artifacts.tensors import decode, encode, one_number, parse_table, to_json
from kdistill.errors import ConfigError, DataError, ShapeError
from kdistill.files import FolderLayout, check_plain, explained
from kdistill.files.regular_files import JSON_LIMIT
from kdistill.transforms import from_state

if TYPE_CHECKING:
    from kdistill.artifacts.dataset import DistilledDataset

SCHEMA_VERSION = 1
FILES = ("data.safetensors", "config.json", "metrics.json", "README.md", "preview.png")
# a run leaves these before its artefact
RUN_FILES = ("checkpoint.safetensors", "checkpoint.safetensors.prev", "metrics.jsonl", "snapshots")
_TRANSFORM = "transform."


def _other_files(config: bytes) -> Iterable[str]:
    """Return the files of an artefact beside those that all have, as its config names them."""
    return set(json.loads(config)["artifact"]["files"]) - set(RUN_FILES)


LAYOUT = FolderLayout(files=FILES, last="config.json", others=_other_files)


def save(small: "DistilledDataset", path: str | Path) -> Path:
    """Write the artefact folder of ``small``; see ``DistilledDataset.save_pretrained``."""
    path = Path(path)
    check_output(path)
    data = encode(
        _tensors(small),
        {
            "schema_version": SCHEMA_VERSION,
            "classes": small.classes,
            "transform": small.transform.kind,
        },
    )
    contents = {
        "data.safetensors": data,
        "config.json": _config(small, data),
        "metrics.json": to_json(small.metrics),
        "README.md": card(small).encode(),
        "preview.png": png_bytes(small),
        **small.files,
    }
    LAYOUT.write(path, contents)
    return path


def load(path: str | Path) -> "DistilledDataset":
    """Read an artefact folder; see ``DistilledDataset.from_pretrained``."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(
            f"{path}: expected an artefact folder, got "
            f"{'a file' if path.exists() else 'nothing there'}; check the path"
        )
    return LAYOUT.read_together(path, lambda: _loaded(path))


def _loaded(path: Path) -> "DistilledDataset":
    from kdistill.artifacts.dataset import DistilledDataset

    described = _checked_config(path)
    try:
        contents = {
            name: _checked(path, name, described) for name in described["artifact"]["files"]
        }
        tensors, metadata = decode(contents.pop("data.safetensors"), path / "data.safetensors")
        state = {
            name.removeprefix(_TRANSFORM): x
            for name, x in tensors.items()
            if name.startswith(_TRANSFORM)
        }
        classes = metadata["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise TypeError("classes that are no list of names")
        return DistilledDataset(
            images=tensors["images"],
            labels=tensors["labels"],
            label_logits=tensors.get("label_logits"),
            learned_lr=one_number(tensors, "learned_lr", path / "data.safetensors"),
            classes=classes,
            config={key: value for key, value in described.items() if key != "artifact"},
            metrics=_json(path, "metrics.json") if LAYOUT.has(path, "metrics.json") else {},
            transform=from_state(metadata["transform"], state),
            files=contents,
        )
    except (KeyError, TypeError, AttributeError, ConfigError, ShapeError) as error:
        raise DataError(
            f"{path}: expected images, labels and classes that fit together, got: {error}; save "
            "the set again"
        ) from error


def check_output(path: str | Path) -> None:
    """Refuse a place where an artefact cannot or should not be written, before a long run.

    Raises:
        DataError: ``path`` is a file, or a folder with contents that no kdistill run left there.
    """
    path = Path(path)
    with explained(path):
        if path.exists() and not path.is_dir():
            raise DataError(f"{path}: expected a folder, got a file; choose another place")
        entries = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    names = {name for name in entries if not name.startswith(".")}
    if {"config.json", ".next"} & entries:
        ours = names >= set(FILES) or _is_artefact(
            path
        )  # all five: an artefact, even if its config was damaged
    else:
        ours = not names or bool(names & set(RUN_FILES) and not names & set(FILES))
    if not ours:
        seen = ", ".join(sorted(names & set(FILES) or names)[:3])
        raise DataError(
            f"{path}: expected a new or empty folder or an earlier artefact, got one with {seen}; "
            "choose another place"
        )


def recorded(path: Path) -> tuple[dict[str, Any], int] | None:
    """Return the configuration of the artefact in ``path`` and how many iterations its run had done; None where there is none.

    Neither the images nor checksums are read; an artefact without a record of its iterations counts
    as 0.
    """
    try:
        described = _json(path, "config.json")
        if "artifact" not in described:
            return None
    except DataError:
        return None
    try:
        done = _json(path, "metrics.json")["distillation"]["iterations"]
    except (DataError, KeyError, TypeError):
        done = 0
    config = {key: value for key, value in described.items() if key != "artifact"}
    return config, done if isinstance(done, int) else 0


def _is_artefact(path: Path) -> bool:
    with suppress(DataError):
        return "artifact" in _json(path, "config.json")
    return False


def _tensors(small: "DistilledDataset") -> dict[str, torch.Tensor]:
    tensors = {"images": small.images, "labels": small.labels}
    if small.label_logits is not None:
        tensors["label_logits"] = small.label_logits
    if small.learned_lr is not None:
        tensors["learned_lr"] = torch.tensor(small.learned_lr, dtype=torch.float64)
    return tensors | {_TRANSFORM + name: tensor for name, tensor in small.transform.state().items()}


def _config(small: "DistilledDataset", data: bytes) -> bytes:
    state = small.transform.state()
    transform: dict[str, Any] = {"kind": small.transform.kind}
    if small.transform.kind == "standard":
        transform |= {name: tensor.tolist() for name, tensor in state.items()}
    elif state:
        transform |= {
            name: f"data.safetensors: {_TRANSFORM}{name} {list(tensor.shape)}"
            for name, tensor in state.items()
        }
    about = {
        "schema_version": SCHEMA_VERSION,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in {"data.safetensors": data, **small.files}.items()
        },
        "images": list(small.images.shape),
        "classes": small.classes,
        "ipc": small.ipc,
        "labels": "hard" if small.label_logits is None else "soft",
        "transform": transform,
    }
    described = {**small.config, "artifact": about}
    about["checksum"] = hashlib.sha256(to_json(described)).hexdigest()
    return to_json(described)


def _checked_config(path: Path) -> dict[str, Any]:
    described = _json(path, "config.json")
    about = described.get("artifact")
    if not isinstance(about, dict) or "schema_version" not in about:
        raise DataError(
            f"{path / 'config.json'}: expected the description of an artefact, got another file; "
            "check the path"
        )
    if about["schema_version"] != SCHEMA_VERSION:
        raise DataError(
            f"{path / 'config.json'}: expected schema version {SCHEMA_VERSION}, got "
            f"{about['schema_version']}; "
            "use the kdistill that wrote it, or a newer one"
        )
    checksum = about.pop("checksum", None)
    if hashlib.sha256(to_json(described)).hexdigest() != checksum:
        raise DataError(
            f"{path / 'config.json'}: expected the contents that its checksum names, got others; "
            "it was changed after saving: restore it, or save the set again"
        )
    return described


def _checked(path: Path, name: str, described: dict[str, Any]) -> bytes:
    expected = described["artifact"]["files"][name]
    where = path / check_plain(name, path / "config.json")
    limit = expected["bytes"]
    if type(limit) is not int:
        raise DataError(
            f"{path / 'config.json'}: expected the size of {name} as a number, got another kind; "
            "save the set again"
        )
    data = _read(path, name, limit=limit)
    if len(data) != limit:
        raise DataError(
            f"{where}: expected {limit} bytes, got {len(data)}; it was cut off or replaced: "
            "restore it"
        )
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise DataError(
            f"{where}: expected the contents that config.json names, got others; it was damaged or "
            "changed: restore it"
        )
    return data


def _read(path: Path, name: str, *, limit: int = JSON_LIMIT) -> bytes:
    try:
        return LAYOUT.read(path, name, limit=limit)
    except OSError as error:
        raise DataError(
            f"{path / name}: expected a file of the artefact, got: {error.strerror}; restore it or "
            "check the path"
        ) from error


def _json(path: Path, name: str) -> dict[str, Any]:
    return parse_table(_read(path, name), path / name, "the file was damaged: restore it")
