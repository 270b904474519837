"""Decoded pictures in ``$KDISTILL_CACHE/images``, so that a folder of photographs is decoded once.

One file per place and size: a sha256, then safetensors with one row per picture.  A row is used for
    the file that it was made
from (path, size, times and inode are compared) by the decoder that runs now.  Files that somebody
else could have written are not used.  When all of them together pass ``MAX_BYTES``, those not used
for longest are deleted.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from kdistill.cache import cache_folder, folder_nbytes, make_private, read_private
from kdistill.data import image_tensors, picture_files
from kdistill.data.folder_listing import Picture
from kdistill.data.picture_files import Decoded
from kdistill.errors import DataError
from kdistill.files import remove_leftovers, write_atomic

_log = logging.getLogger("kdistill")

WORTH_BYTES = 8 * 2**20  # picture files of less than this in all are decoded every time
MAX_BYTES = 4 * 2**30  # of all cached pictures together
OVER_WHITE = 1  # bit of a row's flags: alpha was laid over white


def images_folder() -> Path:
    """Return the folder of decoded pictures; deleting what is in it costs time only."""
    return cache_folder() / "images"


def empty_images() -> int:
    """Delete all decoded pictures and return how many bytes that freed."""
    folder = images_folder()
    freed = folder_nbytes(folder) if folder.is_dir() else 0
    for file in folder.iterdir() if folder.is_dir() else ():
        file.unlink(missing_ok=True)
    return freed


@dataclass
class Pack:
    """The cached pictures of one place.

    Attributes:
        file: Where they lie, or None if nothing is cached.
        keys: Of every picture of the place, ``[N, 32]`` uint8.
        stored: Row to decoded picture, of those that the cache has.
    """

    file: Path | None = None
    keys: Tensor = field(default_factory=lambda: torch.zeros(0, 32, dtype=torch.uint8))
    stored: dict[int, Decoded] = field(default_factory=dict)

    def keep(self, rows: Sequence[int], decoded: Sequence[Decoded]) -> str | None:
        """Write the pack if it has changed, and return what the summary says about it; None if nothing is cached."""
        if self.file is None or not rows:
            return None
        if set(rows) <= set(self.stored):
            with suppress(OSError):
                os.utime(self.file)  # those not used for longest are deleted first
            return _where(self.file, "taken from")
        tensors = _packed([image for image, _ in decoded])
        tensors["keys"] = self.keys[list(rows)]
        tensors["flags"] = torch.tensor(
            [OVER_WHITE * over for _, over in decoded], dtype=torch.uint8
        )
        payload = safetensors.torch.save(tensors)
        try:
            _write(self.file, hashlib.sha256(payload).digest() + payload)
        except (OSError, DataError) as error:
            _log.info("cannot write %s (%s); pictures are decoded every time", self.file, error)
            return None
        return _where(self.file, "kept in")


def open_pack(place: Path, size: int | None, files: Sequence[Picture]) -> Pack:
    """Return what is cached of ``files``; nothing where they are small or ``KDISTILL_IMAGE_CACHE`` is ``off``."""
    if (
        os.environ.get("KDISTILL_IMAGE_CACHE") == "off"
        or sum(file.stamp[0] for file in files) < WORTH_BYTES
    ):
        return Pack()
    about = f"{place.resolve()}\0{size}\0{picture_files.decoder_version()}"
    try:
        folder = images_folder()
    except RuntimeError as error:
        _log.info("no cache folder (%s); pictures are decoded every time", error)
        return Pack()
    keys = b"".join(
        hashlib.sha256(
            f"{file.path.absolute()}\0{file.stamp}".encode(errors="surrogateescape")
        ).digest()
        for file in files
    )
    pack = Pack(
        folder
        / f"{hashlib.sha256(about.encode(errors='surrogateescape')).hexdigest()[:32]}.pictures",
        torch.frombuffer(bytearray(keys), dtype=torch.uint8).reshape(-1, 32),
    )
    try:
        pack.stored = _read(pack.file, pack.keys, size)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        _log.warning("cannot use the cached pictures in %s (%s); decoding again", pack.file, error)
    return pack


def _read(file: Path, keys: Tensor, size: int | None) -> dict[int, Decoded]:
    content = read_private(file, limit=MAX_BYTES)
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("its checksum does not match")
    tensors = safetensors.torch.load(payload)
    images = _unpacked(tensors, size)
    if tensors["keys"].shape != (len(images), 32) or tensors["flags"].shape != (len(images),):
        raise ValueError("its parts do not fit together")
    by_key = {key.tobytes(): row for row, key in enumerate(tensors["keys"].numpy())}
    flags = tensors["flags"].tolist()
    found = ((row, by_key.get(key.tobytes())) for row, key in enumerate(keys.numpy()))
    return {row: (images[at], bool(flags[at] & OVER_WHITE)) for row, at in found if at is not None}


def _packed(images: list[Tensor]) -> dict[str, Tensor]:
    """Return the pictures by kind: grey and colour, bytes and 16-bit ones, each with its row numbers."""
    kinds: dict[str, list[int]] = {}
    for row, image in enumerate(images):
        kinds.setdefault(
            f"{'bytes' if image.dtype == torch.uint8 else 'deep'}{image.shape[0]}", []
        ).append(row)
    packed = {}
    for kind, rows in kinds.items():
        stacked = torch.stack([images[row] for row in rows])
        packed[kind] = (
            stacked if stacked.dtype == torch.uint8 else stacked.float()
        )  # a 16-bit number, exactly
        packed[f"{kind}_rows"] = torch.tensor(rows)
    return packed


def _unpacked(tensors: dict[str, Tensor], size: int | None) -> list[Tensor]:
    images: dict[int, Tensor] = {}
    for kind, dtype in (("bytes1", torch.uint8), ("bytes3", torch.uint8), ("deep1", torch.float32)):
        if kind not in tensors:
            continue
        stacked, rows = tensors[kind], tensors[f"{kind}_rows"].tolist()
        is_sound = (
            stacked.ndim == 4
            and stacked.shape[:2] == (len(rows), int(kind[-1]))
            and stacked.dtype == dtype
        )
        if not is_sound or (size is not None and stacked.shape[2:] != (size, size)):
            raise ValueError(f"unexpected shape {list(stacked.shape)} of {kind}")
        images.update(
            zip(
                rows,
                stacked if dtype == torch.uint8 else stacked.to(image_tensors.KNOWN),
                strict=True,
            )
        )
    if sorted(images) != list(range(len(images))):
        raise ValueError("rows are missing")
    return [images[row] for row in range(len(images))]


def _write(file: Path, content: bytes) -> None:
    if len(content) > MAX_BYTES // 2:
        _log.info(
            "%d bytes of decoded pictures are too many to keep; they are decoded every time",
            len(content),
        )
        raise OSError(0, "too large")
    make_private(file.parent)
    remove_leftovers(file.parent)
    write_atomic(file, content, mode=0o600)
    _delete_oldest(file.parent, keep=file)


def _delete_oldest(folder: Path, keep: Path) -> None:
    files = sorted((path.lstat().st_mtime_ns, path) for path in folder.iterdir() if path != keep)
    excess = folder_nbytes(folder) - MAX_BYTES
    for _, path in files:
        if excess <= 0:
            return
        excess -= path.lstat().st_size
        path.unlink(missing_ok=True)


def _where(file: Path, verb: str) -> str:
    return f"decoded pictures {verb} {file.parent} ({file.stat().st_size / 1e6:.1f} MB; kdistill cache --empty deletes them)"
