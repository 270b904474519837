"""Many picture files to tensors: in parallel, with a progress line, and decoded only once.

Decoded pictures lie in ``$KDISTILL_CACHE/images``, one file per place and size: a sha256, then
safetensors with one row per picture.  A row is used for the file that it was made from (path, size,
times and inode are compared) by the decoder that runs now.  When all packs together pass
``MAX_BYTES``, those not used for longest are deleted.
"""

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from torch import Tensor

from kdistill.cache import CacheFile, cache_folder, folder_nbytes
from kdistill.data import image_tensors, picture_files, streamed_images
from kdistill.data.picture_files import Decoded, Picture, Unreadable
from kdistill.data.raw_data import Reading, counted, unusable
from kdistill.formatting import byte_count
from kdistill.status import status_line

T = TypeVar("T")

_log = logging.getLogger("kdistill")

PATIENCE_S = 1.0  # a reading that takes longer shows a progress line
AHEAD = 4  # pictures per thread that are decoded before they are asked for
MESSAGE_NAMES = 20  # unreadable files that a message names

WORTH_BYTES = 8 * 2**20  # picture files of less than this in all are decoded every time
MAX_BYTES = 4 * 2**30  # of all cached pictures together
OVER_WHITE = 1  # bit of a row's flags: alpha was laid over white
# depth and channels of pictures that lie in one tensor, and its type
KINDS = {"bytes1": torch.uint8, "bytes3": torch.uint8, "deep1": torch.float32}


def read_pictures(
    files: Sequence[Picture], place: Path, reading: Reading
) -> tuple[list[Picture], Tensor]:
    """Return the files that can be read, and their pixels ``[N, C, H, W]``.

    Args:
        files: Picture files.
        place: Folder or file that names the pictures; decoded ones are cached per place and size.
        reading: How they are read.

    Raises:
        DataError: Unreadable files (all are named), or files of different sizes without
            ``reading.size``.
    """
    if reading.stream:
        return _stream(files, place, reading)
    pack = open_pack(place, reading.size, files)
    rows: list[int] = []
    decoded: list[Decoded] = []
    for row, result in _decoded(files, pack.stored, place, reading):
        if decoded and result[0].shape[1:] != decoded[0][0].shape[1:]:
            first, other = str(files[rows[0]].path), str(files[row].path)
            raise image_tensors.different_sizes(decoded[0][0], first, result[0], other)
        rows.append(row)
        decoded.append(result)
    if (where := pack.save(rows, decoded)) is not None:
        image_tensors.note(reading.notes, where)
    readable = [files[row] for row in rows]
    images = (image for image, _ in decoded)
    return readable, image_tensors.stack(images, None, lambda row: str(readable[row].path))


def _stream(
    files: Sequence[Picture], place: Path, reading: Reading
) -> tuple[list[Picture], Tensor]:
    """Decode the pictures once now, and again whenever they are used."""
    readable: list[Picture] = []

    def name(row: int) -> str:
        return str(readable[row].path)

    def first_pass() -> Iterator[Tensor]:
        for row, (image, _) in _decoded(files, {}, place, reading):
            readable.append(files[row])
            yield image

    def read_one(row: int) -> Tensor:
        return picture_files.decode(readable[row].path, name(row), [], reading.size)

    images = streamed_images.of_items(read_one, first_pass(), reading.size, name)
    return readable, images


def _decoded(
    files: Sequence[Picture], stored: dict[int, Decoded], place: Path, reading: Reading
) -> Iterator[tuple[int, Decoded]]:
    """Yield row and pixels of the files that can be read.

    Raises:
        DataError: At the end: unreadable files; all are named.
    """
    failures: list[Unreadable] = []

    def decode(row: int) -> Decoded | Unreadable:
        if row in stored:
            return stored[row]
        notes: list[str] = []
        path = files[row].path
        try:
            image = picture_files.decode(path, str(path), notes, reading.size)
        except Unreadable as error:
            return error
        return image, image_tensors.ALPHA in notes

    with ExitStack() as stack:
        progress: Callable[[str], None] | None = None
        begin = time.monotonic()
        for row, result in enumerate(in_parallel(decode, len(files), stack)):
            seconds = time.monotonic() - begin
            if progress is None and seconds > PATIENCE_S and not reading.quiet:
                progress = stack.enter_context(status_line(f"reading {place.name}"))
            if progress is not None:
                done = row + 1
                progress(f"{done:,}/{len(files):,} pictures  {done / seconds:.1f}/s")
            if isinstance(result, Unreadable):
                failures.append(result)
                continue
            if result[1]:
                image_tensors.note(reading.notes, image_tensors.ALPHA)
            yield row, result
    if failures:
        _report(failures, len(files), reading)


def _report(failures: list[Unreadable], total: int, reading: Reading) -> None:
    """Name the unreadable files in a note where they may be left out, else in an error."""
    count = len(failures)
    listed = ", ".join(f"{failure.name} ({failure.reason})" for failure in failures[:MESSAGE_NAMES])
    if count > MESSAGE_NAMES:
        listed += f" and {count - MESSAGE_NAMES} more (kdistill check lists them all)"
    if not reading.skip_unreadable or count == total:
        it, noun = ("it", "a picture") if count == 1 else ("them", "pictures")
        got = listed if count == 1 else f"{count} that it cannot: {listed}"
        fix = f"remove or replace {it}, or leave {it} out with skip_unreadable=True"
        raise unusable(f"{noun} that Pillow can read", got, fix)
    reading.notes.append(f"{counted(count, 'unreadable file')} left out: {listed}")


def in_parallel(work: Callable[[int], T], count: int, stack: ExitStack) -> Iterator[T]:
    """Yield ``work(0), work(1), ...`` in order, computed a little ahead.

    Args:
        work: What each of the threads does, one per processor.
        count: Number of calls.
        stack: Ends the threads when it closes.
    """
    threads = min(count, available_processors())
    if threads <= 1:
        yield from map(work, range(count))
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="kdistill-read")
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    waiting: deque[Future[T]] = deque()
    for row in range(count):
        waiting.append(pool.submit(work, row))
        if len(waiting) >= AHEAD * threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def available_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        keys: Keys of the pictures of the place, ``[N, 32]`` uint8.
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
        size = byte_count(path.stat().st_size)
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
    return Pack(file, keys, file.read(lambda content, _: _read_pack(content, keys, size)) or {})


def _sha256(text: str) -> "hashlib._Hash":
    return hashlib.sha256(text.encode(errors="surrogateescape"))


def _read_pack(content: bytes, keys: Tensor, size: int | None) -> dict[int, Decoded]:
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
    """Delete other packs, those not used for longest first, until all have few enough bytes."""
    others = [path for path in latest.parent.iterdir() if path != latest]
    excess = folder_nbytes(latest.parent) - MAX_BYTES
    for path in sorted(others, key=lambda path: path.lstat().st_mtime_ns):
        if excess <= 0:
            return
        excess -= path.lstat().st_size
        path.unlink(missing_ok=True)
