"""Decoded pictures in ``$KDISTILL_CACHE/images``, so that a folder of photographs is decoded once.

One file per place and size: a sha256, then safetensors with one row per picture.  A row is used for
the file that it was made from (path, size, times and inode are compared) by the decoder that runs
now.  When all packs together pass ``MAX_BYTES``, those not used for longest are deleted.
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

from kdistill.cache import CacheFile, cache_folder, folder_nbytes
from kdistill.data import image_tensors, picture_files
from kdistill.data.folder_listing import Picture
from kdistill.data.picture_files import Decoded

_log = logging.getLogger("kdistill")

WORTH_BYTES = 8 * 2**20  # picture files of less than this in all are decoded every time
MAX_BYTES = 4 * 2**30  # of all cached pictures together
OVER_WHITE = 1  # bit of a row's flags: alpha was laid over white
# depth and channels of pictures that lie in one tensor, and its type
KINDS = {"bytes1": torch.uint8, "bytes3": torch.uint8, "deep1": torch.float32}


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
        file: File of the cache, or None if nothing is cached.
        keys: Of every picture of the place, ``[N, 32]`` uint8.
        stored: Row to decoded picture, of those that the cache has.
    """

    file: CacheFile | None = None
    keys: Tensor = field(default_factory=lambda: torch.zeros(0, 32, dtype=torch.uint8))
    stored: dict[int, Decoded] = field(default_factory=dict)

    def save(self, rows: Sequence[int], decoded: Sequence[Decoded]) -> str | None:
        """Write the pack if it has changed.

        Returns:
            What the summary says about it; None if nothing is cached.
        """
        if self.file is None or self.file.path is None or not rows:
            return None
        path, verb = self.file.path, "taken from"
        if set(rows) <= set(self.stored):
            with suppress(OSError):
                os.utime(path)  # those not used for longest are deleted first
        else:
            tensors = _packed([image for image, _ in decoded])
            tensors["keys"] = self.keys[list(rows)]
            tensors["flags"] = torch.tensor(
                [OVER_WHITE * over for _, over in decoded], dtype=torch.uint8
            )
            payload = safetensors.torch.save(tensors)
            if len(payload) > MAX_BYTES // 2:
                _log.info("cache: %d bytes of decoded pictures are too many", len(payload))
                return None
            if not self.file.write(hashlib.sha256(payload).digest() + payload):
                return None
            _delete_oldest(path)
            verb = "kept in"
        size = f"{path.stat().st_size / 1e6:.1f} MB"
        return (
            f"decoded pictures {verb} {path.parent} ({size}; kdistill cache --empty deletes them)"
        )


def open_pack(place: Path, size: int | None, files: Sequence[Picture]) -> Pack:
    """Return what is cached of ``files``.

    Nothing is cached where they are small or ``KDISTILL_IMAGE_CACHE`` is ``off``.
    """
    is_off = os.environ.get("KDISTILL_IMAGE_CACHE") == "off"
    if is_off or sum(file.stamp[0] for file in files) < WORTH_BYTES:
        return Pack()
    digests = (_sha256(f"{file.path.absolute()}\0{file.stamp}").digest() for file in files)
    keys = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).reshape(-1, 32)
    name = _sha256(f"{place.resolve()}\0{size}\0{picture_files.decoder_version()}").hexdigest()
    file = CacheFile(
        "images",
        f"{name[:32]}.pictures",
        "pictures are decoded again",
        max_bytes=MAX_BYTES,
        level=logging.INFO,
    )
    return Pack(file, keys, file.read(lambda content, _: _decoded(content, keys, size)) or {})


def _sha256(text: str) -> "hashlib._Hash":
    return hashlib.sha256(text.encode(errors="surrogateescape"))


def _decoded(content: bytes, keys: Tensor, size: int | None) -> dict[int, Decoded]:
    """Return the pictures of a pack by the rows that they have in ``keys``.

    Raises:
        ValueError, KeyError, safetensors.SafetensorError: The pack is damaged.
    """
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("its checksum does not match")
    tensors = safetensors.torch.load(payload)
    images = _unpacked(tensors, size)
    if tensors["keys"].shape != (len(images), 32) or tensors["flags"].shape != (len(images),):
        raise ValueError("its parts do not fit together")
    entries = zip(images, (tensors["flags"] & OVER_WHITE).bool().tolist(), strict=True)
    by_key = dict(zip(map(bytes, tensors["keys"].numpy()), entries, strict=True))
    wanted = enumerate(map(bytes, keys.numpy()))
    return {row: by_key[key] for row, key in wanted if key in by_key}


def _packed(images: list[Tensor]) -> dict[str, Tensor]:
    """Return the pictures by kind: grey and colour, bytes and 16-bit ones, each with its rows."""
    kinds: dict[str, list[int]] = {}
    for row, image in enumerate(images):
        depth = "bytes" if image.dtype == torch.uint8 else "deep"
        kinds.setdefault(f"{depth}{image.shape[0]}", []).append(row)
    packed = {}
    for kind, rows in kinds.items():
        stacked = torch.stack([images[row] for row in rows])
        # float32 holds a 16-bit number exactly
        packed[kind] = stacked if stacked.dtype == torch.uint8 else stacked.float()
        packed[f"{kind}_rows"] = torch.tensor(rows)
    return packed


def _unpacked(tensors: dict[str, Tensor], size: int | None) -> list[Tensor]:
    images: dict[int, Tensor] = {}
    for kind, dtype in KINDS.items():
        if kind not in tensors:
            continue
        stacked, rows = tensors[kind], tensors[f"{kind}_rows"].tolist()
        has_shape = stacked.ndim == 4 and stacked.shape[:2] == (len(rows), int(kind[-1]))
        has_size = size is None or stacked.shape[2:] == (size, size)
        if not has_shape or not has_size or stacked.dtype != dtype:
            raise ValueError(f"unexpected shape {list(stacked.shape)} of {kind}")
        whole = stacked if dtype == torch.uint8 else stacked.to(image_tensors.SCALED)
        images.update(zip(rows, whole, strict=True))
    if sorted(images) != list(range(len(images))):
        raise ValueError("rows are missing")
    return [images[row] for row in range(len(images))]


def _delete_oldest(latest: Path) -> None:
    """Delete other packs, those not used for longest first, until all of them have few enough bytes."""
    others = [path for path in latest.parent.iterdir() if path != latest]
    excess = folder_nbytes(latest.parent) - MAX_BYTES
    for path in sorted(others, key=lambda path: path.lstat().st_mtime_ns):
        if excess <= 0:
            return
        excess -= path.lstat().st_size
        path.unlink(missing_ok=True)
