"""Many picture files to tensors: in parallel, with a progress line, from the cache of pictures."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from kdistill.data import image_tensors, picture_files, streamed_images
from kdistill.data.folder_listing import Picture
from kdistill.data.picture_cache import open_pack
from kdistill.data.picture_files import Decoded, Unreadable
from kdistill.data.raw_data import Reading, counted, unusable
from kdistill.status import status_line

PATIENCE_S = 1.0  # a reading that takes longer shows a progress line
AHEAD = 4  # pictures per thread that are decoded before they are asked for
MESSAGE_NAMES = 20  # unreadable files that a message names

T = TypeVar("T")


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
