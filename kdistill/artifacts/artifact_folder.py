"""The artefact folder: written whole or not at all, and read checked."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from kdistill.artifacts.contents import FILES, RUN_FILES, SetContents, lookup
from kdistill.artifacts.dataset_card import card
from kdistill.artifacts.tensors import decode, encode, one_number, parse_table, to_json
from kdistill.errors import ConfigError, DataError, ShapeError
from kdistill.files import FolderLayout, check_plain, explained
from kdistill.files.safe_files import JSON_LIMIT
from kdistill.transforms import from_state

T = TypeVar("T", bound=SetContents)

SCHEMA_VERSION = 1
_TRANSFORM = "transform."


def _other_files(config: bytes) -> Iterable[str]:
    """Return the files of an artefact beside those that all have, as its config names them."""
    return set(json.loads(config)["artifact"]["files"]) - set(RUN_FILES)


LAYOUT = FolderLayout(files=FILES, last="config.json", others=_other_files)


def write_artifact(contents: SetContents, path: str | Path) -> Path:
    """Write the artefact folder of a set; see ``DistilledDataset.save_pretrained``."""
    path = Path(path)
    check_output(path)
    transform = contents.transform
    state = {_TRANSFORM + name: tensor for name, tensor in transform.state().items()}
    data = encode(
        {**contents.learned(), "labels": contents.labels, **state},
        {
            "schema_version": SCHEMA_VERSION,
            "classes": contents.classes,
            "transform": transform.kind,
        },
    )
    files = {
        "data.safetensors": data,
        "config.json": _config(contents, data),
        "metrics.json": to_json(contents.metrics),
        "README.md": card(contents).encode(),
        "preview.png": contents.preview_page().png(),
    }
    LAYOUT.write(path, files | dict(contents.files))
    return path


def read_artifact(path: str | Path, cls: type[T]) -> T:
    """Read an artefact folder as a ``cls``; see ``DistilledDataset.from_pretrained``."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(
            f"{path}: expected an artefact folder, got "
            f"{'a file' if path.exists() else 'nothing there'}; check the path"
        )
    return LAYOUT.read_together(path, lambda: _read_checked(path, cls))


def _read_checked(path: Path, cls: type[T]) -> T:
    config = _checked_config(path)
    try:
        files = {name: _checked_file(path, name, config) for name in config["artifact"]["files"]}
        where = path / "data.safetensors"
        tensors, metadata = decode(files.pop("data.safetensors"), where)
        state = {
            name.removeprefix(_TRANSFORM): x
            for name, x in tensors.items()
            if name.startswith(_TRANSFORM)
        }
        classes = metadata["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise TypeError("classes that are no list of names")
        return cls(
            images=tensors["images"],
            labels=tensors["labels"],
            label_logits=tensors.get("label_logits"),
            learned_lr=one_number(tensors, "learned_lr", where),
            classes=classes,
            config={key: value for key, value in config.items() if key != "artifact"},
            metrics=_json(path, "metrics.json") if LAYOUT.has(path, "metrics.json") else {},
            transform=from_state(metadata["transform"], state),
            files=files,
        )
    except (KeyError, TypeError, AttributeError, ConfigError, ShapeError) as error:
        raise DataError(
            f"{path}: expected images, labels and classes that fit together, got: {error}; save "
            "the set again"
        ) from error


def read_file(path: str | Path, name: str) -> bytes | None:
    """Return a file that a method added to an artefact, checked as the whole artefact is.

    Returns:
        The content; None where there is no artefact, or its ``config.json`` names no such file.

    Raises:
        DataError: The file or ``config.json`` is damaged or of another schema version.
    """
    path = Path(path)
    if recorded_run(path) is None:
        return None

    def read() -> bytes | None:
        config = _checked_config(path)
        try:
            return (
                _checked_file(path, name, config) if name in config["artifact"]["files"] else None
            )
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path / 'config.json'}: expected size and sha256 of {name}, got others "
                f"({error}); restore it, or distil again"
            ) from error

    return LAYOUT.read_together(path, read)


def check_output(path: str | Path) -> None:
    """Refuse a place where an artefact cannot or should not be written, before a long run.

    Raises:
        DataError: ``path`` is a file, or a folder with contents that no kdistill run left there.
    """
    path = Path(path)
    with explained(path):
        if path.exists() and not path.is_dir():
            raise DataError(f"{path}: expected a folder, got a file; choose another place")
        present = {file.name for file in path.iterdir()} if path.is_dir() else set()
    names = {name for name in present if not name.startswith(".")}
    if {"config.json", ".next"} & present:
        # all five: an artefact, even if its config was damaged
        is_ours = names >= set(FILES) or recorded_run(path) is not None
    else:
        is_ours = not names or bool(names & set(RUN_FILES) and not names & set(FILES))
    if not is_ours:
        listed = ", ".join(sorted(names & set(FILES) or names)[:3])
        raise DataError(
            f"{path}: expected a new or empty folder or an earlier artefact, got one with "
            f"{listed}; choose another place"
        )


def recorded_run(path: Path) -> tuple[dict[str, Any], int] | None:
    """Return the configuration of the artefact in ``path`` and its iterations; None without one.

    Neither the images nor checksums are read; an artefact without a record of its iterations counts
    as 0.
    """
    config, metrics = {}, {}
    with suppress(DataError):
        config = _json(path, "config.json")
        metrics = _json(path, "metrics.json")
    if config.pop("artifact", None) is None:
        return None
    iterations = lookup(metrics, "distillation", "iterations")
    return config, iterations if isinstance(iterations, int) else 0


def _config(contents: SetContents, data: bytes) -> bytes:
    transform: dict[str, Any] = {"kind": contents.transform.kind}
    for name, tensor in contents.transform.state().items():
        place = f"data.safetensors: {_TRANSFORM}{name} {list(tensor.shape)}"
        transform[name] = tensor.tolist() if transform["kind"] == "standard" else place
    artifact = {
        "schema_version": SCHEMA_VERSION,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in {"data.safetensors": data, **contents.files}.items()
        },
        "images": list(contents.images.shape),
        "classes": contents.classes,
        "ipc": contents.ipc,
        "labels": "hard" if contents.label_logits is None else "soft",
        "transform": transform,
    }
    config = {**contents.config, "artifact": artifact}
    artifact["checksum"] = hashlib.sha256(to_json(config)).hexdigest()
    return to_json(config)


def _checked_config(path: Path) -> dict[str, Any]:
    config = _json(path, "config.json")
    artifact = config.get("artifact")
    if not isinstance(artifact, dict) or "schema_version" not in artifact:
        raise DataError(
            f"{path / 'config.json'}: expected the description of an artefact, got another file; "
            "check the path"
        )
    if artifact["schema_version"] != SCHEMA_VERSION:
        raise DataError(
            f"{path / 'config.json'}: expected schema version {SCHEMA_VERSION}, got "
            f"{artifact['schema_version']}; use the kdistill that wrote it, or a newer one"
        )
    checksum = artifact.pop("checksum", None)
    if hashlib.sha256(to_json(config)).hexdigest() != checksum:
        raise DataError(
            f"{path / 'config.json'}: expected the contents that its checksum names, got others; "
            "it was changed after saving: restore it, or save the set again"
        )
    return config


def _checked_file(path: Path, name: str, config: dict[str, Any]) -> bytes:
    expected = config["artifact"]["files"][name]
    where = path / check_plain(name, path / "config.json")
    size = expected["bytes"]
    if type(size) is not int:
        raise DataError(
            f"{path / 'config.json'}: expected the size of {name} as a number, got another kind; "
            "save the set again"
        )
    data = _read(path, name, limit=size)
    if len(data) != size:
        raise DataError(
            f"{where}: expected {size} bytes, got {len(data)}; it was cut off or replaced: restore "
            "it"
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
