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
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

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
        num_params: P.
        epochs: E.

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
        self._checked: set[str] = set()
        self._forgotten: dict[str, str] = {}  # file to the checksum that it no longer has
        index = self.folder / INDEX
        if not os.path.lexists(index):
            if identity is None:
                raise DataError(
                    f"experts: expected {INDEX} in {folder}, got none; train experts with "
                    "`kdistill experts`"
                )
            self.index: dict[str, Any] = {
                "version": VERSION, "identity": identity, "num_params": num_params, "epochs": epochs, "shards": {},
            }  # fmt: skip
            return
        self.index = _read_index(index)
        if identity is not None:
            _check_same(json.loads(json.dumps(identity)), self.index["identity"], self.folder)

    def __len__(self) -> int:
        """Return how many experts there are."""
        return len(self.index["shards"])

    @property
    def epochs(self) -> int:
        """E."""
        return int(self.index["epochs"])

    @property
    def nbytes(self) -> int:
        """Size of the snapshots on the disk, without the headers."""
        return len(self) * (self.epochs + 1) * int(self.index["num_params"]) * 4

    def has(self, expert: int) -> bool:
        """Say whether expert ``expert`` is stored."""
        return _name(expert) in self.index["shards"]

    def add(self, expert: int, snapshots: Tensor) -> None:
        """Store ``snapshots [E+1, P]`` of one expert, and take over what other processes stored in the folder meanwhile.

        Raises:
            ConfigError: Another process stored trajectories of another recipe in the folder.
            DataError: Two snapshots in a row are equal or not finite, the shape is wrong, or the
                disk cannot take it.
        """
        shape = (self.epochs + 1, int(self.index["num_params"]))
        if tuple(snapshots.shape) != shape:
            raise DataError(
                f"experts: expected snapshots {list(shape)}, got {list(snapshots.shape)}; store "
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
        data = encode(
            {TENSOR: snapshots.float()}, {"expert": expert, "identity": self.index["identity"]}
        )
        with locked(
            self.folder / INDEX
        ):  # or another process's entry, made between our reading and writing, would be lost
            remove_leftovers(self.folder)
            write_atomic(self.folder / _name(expert), data)
            self._take_over()
            self.index["shards"][_name(expert)] = hashlib.sha256(data).hexdigest()
            write_atomic(self.folder / INDEX, to_json(self.index))

    @contextmanager
    def claimed(self, expert: int, *, wait: bool) -> Iterator[bool]:
        """Hold expert ``expert`` alone, and say whether it must be trained.

        Args:
            expert: Its number.
            wait: Wait for another process that is training it, and take over what it stored; else
                yield False at once.

        Raises:
            DataError: The folder cannot be written.
        """
        with locked(self.folder / _name(expert), wait=wait) as is_mine:
            yield is_mine and not self._is_entered(expert)

    def _is_entered(self, expert: int) -> bool:
        """Say whether the expert is stored by now, here or by another process."""
        self._take_over()
        name = _name(expert)
        if self.has(expert) or name not in self._forgotten:
            return self.has(expert)
        self.index["shards"][name] = self._forgotten[name]  # trained again, it has the same bits
        try:
            self._check(self.folder / name)
        except DataError:
            del self.index["shards"][name]
            return False
        del self._forgotten[name]
        return True

    def _take_over(self) -> None:
        """Add to the index what another process entered in the one on the disk."""
        if not os.path.lexists(self.folder / INDEX):
            return
        found = _read_index(self.folder / INDEX)
        _check_same(json.loads(json.dumps(self.index["identity"])), found["identity"], self.folder)
        fresh = {
            name: checksum
            for name, checksum in found["shards"].items()
            if self._forgotten.get(name) != checksum
        }
        self._checked -= {
            name for name, checksum in fresh.items() if self.index["shards"].get(name) != checksum
        }
        self.index["shards"].update(fresh)

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return the parameters ``[P]`` of one expert after ``epoch`` epochs; reads this row only.

        Raises:
            ConfigError: There is no such expert or epoch.
            DataError: The file is missing, cut off or was changed.
        """
        if not self.has(expert) or not 0 <= epoch <= self.epochs:
            raise ConfigError(
                f"experts: expected an expert of {len(self)} and an epoch up to {self.epochs}, got "
                f"{expert} and {epoch}; "
                "train more experts or longer"
            )
        path = self.folder / _name(expert)
        self._check(path)
        with safe_open(path, framework="pt") as file:
            row: Tensor = file.get_slice(TENSOR)[epoch : epoch + 1]
        return row[0].clone()

    def _check(self, path: Path) -> None:
        """Compare a shard with its checksum, once per store."""
        if path.name in self._checked:
            return
        advice = (
            "delete the file and run `kdistill experts` again: only this expert is trained anew"
        )
        nbytes = (self.epochs + 1) * int(self.index["num_params"]) * 4
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                if not nbytes < size <= nbytes + HEADER_LIMIT:
                    raise DataError(
                        f"experts: expected a little more than {nbytes:,} bytes in {path}, got "
                        f"{size:,}; {advice}"
                    )
                found = hashlib.file_digest(file, "sha256").hexdigest()
            with safe_open(path, framework="pt") as shard:
                snapshots = shard.get_slice(TENSOR)
                shape, dtype = snapshots.get_shape(), snapshots.get_dtype()
        except (OSError, SafetensorError) as error:
            got = error.strerror or error if isinstance(error, OSError) else error
            raise DataError(f"experts: expected a whole {path}, got: {got}; {advice}") from error
        if found != self.index["shards"][path.name]:
            raise DataError(
                f"experts: expected {path} as it was written, got other bytes (checksum differs); "
                f"{advice}"
            )
        wanted = [self.epochs + 1, int(self.index["num_params"])]
        if shape != wanted or dtype != "F32":
            raise DataError(
                f"experts: expected snapshots {wanted} of F32 in {path}, got {shape} of {dtype}; "
                f"{advice}"
            )
        self._checked.add(path.name)

    def forget_missing(self) -> None:
        """Drop shards from the index whose files are gone or changed, so that they are trained again."""
        for name in list(self.index["shards"]):
            try:
                self._check(self.folder / name)
            except DataError as error:
                _log.warning("%s; it is trained again now", error)
                self._forgotten[name] = self.index["shards"].pop(name)


def _name(expert: int) -> str:
    return f"expert-{expert:05d}.safetensors"


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = parse_table(read_regular(path, limit=JSON_LIMIT), "the file", "it was damaged")
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    except DataError as error:
        raise _damaged(path, str(error)) from error
    if index.get("version") != VERSION:
        raise _damaged(path, f"no index of version {VERSION}")
    kinds = {"identity": dict, "num_params": int, "epochs": int, "shards": dict}
    wrong = [key for key, kind in kinds.items() if type(index.get(key)) is not kind]  # type: True is no number here
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


def _check_same(wanted: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    for part in ("student", "data", "selection", "settings"):
        ours, theirs = wanted.get(part), found.get(part)
        if ours == theirs:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            key = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))[0]
            part, ours, theirs = f"{part}.{key}", ours.get(key), theirs.get(key)
        if part == "settings.epochs":
            raise ConfigError(
                f"experts: expected trajectories of {ours} epochs (what the start epochs and the "
                "target epoch reach, or "
                f"expert_length), got {theirs} in {folder}; ask for {theirs} or use another folder"
            )
        raise ConfigError(
            f"experts: expected trajectories with {part} {ours!r}, got {theirs!r} in {folder}; use "
            "the same settings or another "
            "folder"
        )
