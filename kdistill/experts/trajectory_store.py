"""The trajectory store: a folder with one memory-mapped safetensors file per expert and an index.

    experts.json              identity, shape and the checksum of every file
    expert-00000.safetensors  snapshots [epochs + 1, P] float32

A shard is written whole or not at all and entered in the index afterwards, so a killed training
loses one expert at most. Processes that share a folder enter their shards one after the other (a
lock beside the index), and none trains an expert that another one is training (a lock beside the
shard).

Symbols: E epochs, P parameters.
"""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdistill.artifacts.checkpoint import first_difference
from kdistill.artifacts.tensors import encode, parse_table, to_json
from kdistill.errors import ConfigError, DataError
from kdistill.files import locked, open_regular, read_regular, remove_leftovers, write_atomic
from kdistill.files.safe_files import JSON_LIMIT

_log = logging.getLogger("kdistill")

INDEX = "experts.json"
TENSOR = "snapshots"
VERSION = 1
HEADER_LIMIT = 1 << 24  # bytes of a shard before its snapshots
_SHARD = re.compile(r"expert-\d{5,9}\.safetensors")


class TrajectoryStore:
    """Expert trajectories in a folder.

    Args:
        folder: Made at the first ``add`` if it is not there.
        identity: What the trajectories must come from; None takes what the folder says.
        num_params: Number of parameters, P.
        epochs: Number of epochs, E.

    Raises:
        ConfigError: The folder holds trajectories of another data set, network or recipe.
        DataError: The index is damaged, or there is none and no identity was given.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any] | None = None,
        *,
        num_params: int = 0,
        epochs: int = 0,
    ):
        self.folder = Path(folder)
        self._checked: dict[str, str] = {}  # file to the checksum that it was found to have
        index = self.folder / INDEX
        if not os.path.lexists(index):
            if identity is None:
                raise DataError(
                    f"experts: expected {INDEX} in {folder}, got none; train experts with "
                    "`kdistill experts`"
                )
            self.index: dict[str, Any] = {
                "version": VERSION,
                "identity": identity,
                "num_params": num_params,
                "epochs": epochs,
                "shards": {},
            }
            return
        self.index = _read_index(index)
        if identity is not None:
            _check_same(json.loads(json.dumps(identity)), self.index["identity"], self.folder)

    def __len__(self) -> int:
        """Return the number of experts."""
        return len(self.index["shards"])

    @property
    def epochs(self) -> int:
        """Number of epochs E."""
        return int(self.index["epochs"])

    @property
    def _shape(self) -> list[int]:
        """Shape of the snapshots of an expert."""
        return [self.epochs + 1, int(self.index["num_params"])]

    @property
    def _nbytes(self) -> int:
        """Size of the snapshots of an expert, without the header of the file."""
        return math.prod(self._shape) * 4

    @property
    def nbytes(self) -> int:
        """Size of the snapshots on the disk, without the headers."""
        return len(self) * self._nbytes

    def has(self, expert: int) -> bool:
        """Return whether expert ``expert`` is stored."""
        return _name(expert) in self.index["shards"]

    def add(self, expert: int, snapshots: Tensor) -> None:
        """Store the snapshots of one expert.

        What other processes stored in the folder meanwhile is taken over.

        Args:
            expert: Number of the expert.
            snapshots: ``[E+1, P]``.

        Raises:
            ConfigError: Another process stored trajectories of another recipe in the folder.
            DataError: Two snapshots in a row are equal or not finite, the shape is wrong, or the
                disk cannot take it.
        """
        if list(snapshots.shape) != self._shape:
            raise DataError(
                f"experts: expected snapshots {self._shape}, got {list(snapshots.shape)}; store "
                "every epoch"
            )
        if not bool(torch.isfinite(snapshots).all()):
            raise DataError(
                f"experts: expected finite parameters, got infinity or NaN in expert {expert}; "
                "lower lr"
            )
        if bool((snapshots[1:] == snapshots[:-1]).all(1).any()):
            raise DataError(
                f"experts: expected every epoch to change expert {expert}, got equal snapshots; "
                "store clones"
            )
        metadata = {"expert": expert, "identity": self.index["identity"]}
        data = encode({TENSOR: snapshots.float()}, metadata)
        # or the entry of another process, made between our reading and writing, would be lost
        with locked(self.folder / INDEX):
            remove_leftovers(self.folder)
            write_atomic(self.folder / _name(expert), data)
            self._reload()
            self.index["shards"][_name(expert)] = hashlib.sha256(data).hexdigest()
            write_atomic(self.folder / INDEX, to_json(self.index))

    @contextmanager
    def claimed(self, expert: int, *, wait: bool) -> Iterator[bool]:
        """Hold expert ``expert`` alone, and yield whether it must be trained.

        Args:
            expert: Number of the expert.
            wait: Wait for another process that is training it, and take over what it stored; else
                yield False at once.

        Raises:
            DataError: The folder cannot be written.
        """
        with locked(self.folder / _name(expert), wait=wait) as is_mine:
            if is_mine:
                self._reload()
            yield is_mine and not self.has(expert)

    def _reload(self) -> None:
        """Take over the entries of the index on the disk, which others may have changed."""
        if os.path.lexists(self.folder / INDEX):
            index = _read_index(self.folder / INDEX)
            ours = json.loads(json.dumps(self.index["identity"]))
            _check_same(ours, index["identity"], self.folder)
            self.index["shards"] = index["shards"]

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return the parameters ``[P]`` of one expert after ``epoch`` epochs; reads this row only.

        Raises:
            ConfigError: There is no such expert or epoch.
            DataError: The file is missing, cut off or was changed.
        """
        if not self.has(expert) or not 0 <= epoch <= self.epochs:
            raise ConfigError(
                f"experts: expected an expert of {len(self)} and an epoch up to {self.epochs}, got "
                f"{expert} and {epoch}; train more experts or longer"
            )
        path = self.folder / _name(expert)
        self._check(path)
        with safe_open(path, framework="pt") as file:
            row: Tensor = file.get_slice(TENSOR)[epoch : epoch + 1]
        return row[0].clone()

    def _check(self, path: Path) -> None:
        """Compare a shard with its checksum, once per store.

        Raises:
            DataError: They differ, or it is no whole shard.
        """
        checksum = self.index["shards"][path.name]
        if self._checked.get(path.name) == checksum:
            return
        fix = "delete the file and run `kdistill experts` again: only this expert is trained anew"
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                if not self._nbytes < size <= self._nbytes + HEADER_LIMIT:
                    raise DataError(
                        f"experts: expected a little more than {self._nbytes:,} bytes in {path}, "
                        f"got {size:,}; {fix}"
                    )
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            with safe_open(path, framework="pt") as shard:
                snapshots = shard.get_slice(TENSOR)
                shape, dtype = snapshots.get_shape(), snapshots.get_dtype()
        except (OSError, SafetensorError) as error:
            got = getattr(error, "strerror", None) or error
            raise DataError(f"experts: expected a whole {path}, got: {got}; {fix}") from error
        if digest != checksum:
            raise DataError(
                f"experts: expected {path} as it was written, got other bytes (checksum differs); "
                f"{fix}"
            )
        if shape != self._shape or dtype != "F32":
            raise DataError(
                f"experts: expected snapshots {self._shape} of F32 in {path}, got {shape} of "
                f"{dtype}; {fix}"
            )
        self._checked[path.name] = checksum

    def forget_missing(self) -> None:
        """Drop shards from the index whose files are gone or changed.

        They are trained again then.
        """
        damaged = [name for name in self.index["shards"] if self._is_damaged(name, warn=True)]
        if damaged:
            with locked(self.folder / INDEX):
                self._reload()
                for name in damaged:  # one that was trained again meanwhile stays
                    if name in self.index["shards"] and self._is_damaged(name):
                        del self.index["shards"][name]
                write_atomic(self.folder / INDEX, to_json(self.index))

    def _is_damaged(self, name: str, warn: bool = False) -> bool:
        try:
            self._check(self.folder / name)
        except DataError as error:
            if warn:
                _log.warning("%s; it is trained again now", error)
            return True
        return False


def _name(expert: int) -> str:
    return f"expert-{expert:05d}.safetensors"


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = parse_table(read_regular(path, limit=JSON_LIMIT), "the file", "it was damaged")
    except (OSError, DataError) as error:
        raise _damaged(path, getattr(error, "strerror", None) or str(error)) from error
    if index.get("version") != VERSION:
        raise _damaged(path, f"no index of version {VERSION}")
    kinds = {"identity": dict, "num_params": int, "epochs": int, "shards": dict}
    # type, not isinstance: True is no number here
    wrong = [key for key, kind in kinds.items() if type(index.get(key)) is not kind]
    if not wrong and not all(type(checksum) is str for checksum in index["shards"].values()):
        wrong = ["shards"]
    if wrong:
        raise _damaged(path, f"no usable '{wrong[0]}'")
    if min(index["num_params"], index["epochs"]) < 0:
        raise _damaged(path, "sizes below 0")
    odd = next((name for name in index["shards"] if not _SHARD.fullmatch(name)), None)
    if odd is not None:
        raise _damaged(path, f"a shard named {odd[:60]!r}")
    return index


def _damaged(path: Path, got: str) -> DataError:
    return DataError(
        f"experts: expected a trajectory index in {path}, got: {got}; delete the folder and train "
        "the experts again"
    )


def _check_same(wanted: dict[str, Any], stored: dict[str, Any], folder: Path) -> None:
    """Raise ConfigError that names the first part in which two identities differ."""
    parts = ("student", "data", "selection", "settings")
    differences = (first_difference(wanted.get(part), stored.get(part), part) for part in parts)
    part, ours, theirs = next(filter(None, differences), ("", None, None))
    if part == "settings.epochs":
        raise ConfigError(
            f"experts: expected trajectories of {ours} epochs (what the start epochs and the "
            f"target epoch reach, or expert_length), got {theirs} in {folder}; ask for {theirs} or "
            "use another folder"
        )
    if part:
        raise ConfigError(
            f"experts: expected trajectories with {part} {ours!r}, got {theirs!r} in {folder}; use "
            "the same settings or another folder"
        )
