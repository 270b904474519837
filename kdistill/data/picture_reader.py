"""Many picture files to tensors: in parallel, with a progress line, from the cache of decoded pictures where it has them."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from kdistill.data import image_tensors, picture_files
from kdistill.data.folder_listing import Picture
from kdistill.data.picture_cache import open_pack
from kdistill.data.picture_files import Decoded
from kdistill.data.raw_data import ReadOptions, counted, unusable
from kdistill.status import status_line

PATIENCE_S = 1.0  # a reading that takes longer shows a progress line
AHEAD = 4  # pictures per thread that are decoded before they are asked for
MESSAGE_NAMES = 20  # unreadable files that a message names

T = TypeVar("T")


class PictureReader:
    """Reads picture files in order.

    Args:
        options: Size, whether to be quiet, and whether files that cannot be read are left out.
        notes: What was understood is appended.
        place: Folder or file that names the pictures; the cache is kept per place and size.

    Attributes:
        failures: Files that could not be read, with the reason.
    """

    def __init__(self, options: ReadOptions, notes: list[str], place: Path):
        self.options, self.notes, self.place = options, notes, place
        self.failures: list[picture_files.Unreadable] = []

    def read(self, files: Sequence[Picture]) -> tuple[list[int], Tensor]:
        """Return the rows of ``files`` that can be read, and their pixels ``[N, C, H, W]``, which the cache keeps.

        Raises:
            DataError: Unreadable files (all are named), or files of different sizes without
                ``size``.
        """
        pack = open_pack(self.place, self.options.size, files)
        rows: list[int] = []
        decoded: list[Decoded] = []
        for row, result in self._results(files, pack.stored):
            if decoded and result[0].shape[1:] != decoded[0][0].shape[1:]:
                raise image_tensors.different_sizes(
                    decoded[0][0], str(files[rows[0]].path), result[0], str(files[row].path)
                )
            rows.append(row)
            decoded.append(result)
        self._report(len(files))
        if any(is_over_white for _, is_over_white in decoded):
            image_tensors.note(self.notes, image_tensors.ALPHA)
        if (where := pack.save(rows, decoded)) is not None:
            image_tensors.note(self.notes, where)
        return rows, image_tensors.collect(
            (image for image, _ in decoded), None, lambda k: str(files[rows[k]].path)
        )

    def each(self, files: Sequence[Picture]) -> Iterator[tuple[int, Tensor]]:
        """Yield row and pixels of the files that can be read, keeping none.

        Raises:
            DataError: At the end: unreadable files; all are named.
        """
        for row, (image, is_over_white) in self._results(files, {}):
            if is_over_white:
                image_tensors.note(self.notes, image_tensors.ALPHA)
            yield row, image
        self._report(len(files))

    def _results(
        self, files: Sequence[Picture], stored: dict[int, Decoded]
    ) -> Iterator[tuple[int, Decoded]]:
        def decode(row: int) -> Decoded | picture_files.Unreadable:
            if row in stored:
                return stored[row]
            own: list[str] = []
            try:
                image = picture_files.decode(
                    files[row].path, str(files[row].path), own, self.options.size
                )
            except picture_files.Unreadable as error:
                return error
            return image, image_tensors.ALPHA in own

        with ExitStack() as stack:
            say: Callable[[str], None] | None = None
            begin = time.monotonic()
            for row, result in enumerate(in_parallel(decode, len(files), stack)):
                seconds = time.monotonic() - begin
                if say is None and seconds > PATIENCE_S and not self.options.quiet:
                    say = stack.enter_context(status_line(f"reading {self.place.name}"))
                if say is not None:
                    say(f"{row + 1:,}/{len(files):,} pictures  {(row + 1) / seconds:.1f}/s")
                if isinstance(result, picture_files.Unreadable):
                    self.failures.append(result)
                else:
                    yield row, result

    def _report(self, total: int) -> None:
        if not self.failures:
            return
        listed = ", ".join(
            f"{failure.name} ({failure.reason})" for failure in self.failures[:MESSAGE_NAMES]
        )
        if len(self.failures) > MESSAGE_NAMES:
            listed += (
                f" and {len(self.failures) - MESSAGE_NAMES} more (kdistill check lists them all)"
            )
        fix = "remove or replace {}, or leave {} out with skip_unreadable=True"
        it = "it" if len(self.failures) == 1 else "them"
        if not self.options.skip_unreadable or len(self.failures) == total:
            got = listed if it == "it" else f"{len(self.failures)} that it cannot: {listed}"
            noun = "a picture" if it == "it" else "pictures"
            raise unusable(f"{noun} that Pillow can read", got, fix.format(it, it))
        self.notes.append(f"{counted(len(self.failures), 'unreadable file')} left out: {listed}")


def in_parallel(work: Callable[[int], T], count: int, stack: ExitStack) -> Iterator[T]:
    """Yield ``work(0), work(1), ...`` in order, computed by a thread per processor a little ahead."""
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
