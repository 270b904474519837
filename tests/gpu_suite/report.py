"""Rows of the GPU check: JSON lines, on disk before the next thing is tried.  Without torch."""

import contextlib
import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[2]
ROWS = "rows.jsonl"


class Skipped(Exception):
    """What cannot be tried here, and why."""


@dataclass
class Report:
    """The rows of one stage in ``<out>/rows.jsonl``; their status says how it went."""

    out: Path
    stage: str
    failures: int = 0

    def row(self, what: str, status: str = "ok", **values: Any) -> None:
        """Append a row and wait until it is on disk."""
        self.failures += status.startswith("failed")
        self.out.mkdir(parents=True, exist_ok=True)
        line = json.dumps(
            {"stage": self.stage, "what": what, "status": status, **values}, default=str
        )
        with (self.out / ROWS).open("a+") as file:
            file.write(("\n" if _ends_inside_a_line(file) else "") + line + "\n")
            file.flush()
            os.fsync(file.fileno())
        shown = " ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in values.items()
        )
        print(f"{self.stage}: {what}: {status} {shown}"[:400], flush=True)

    @contextmanager
    def trying(self, what: str, **values: Any) -> Iterator[dict[str, Any]]:
        """Write a row for the block, with values or why it failed; the next block runs anyway."""
        began, status = time.perf_counter(), "ok"
        try:
            yield values
        except Skipped as reason:
            status = f"skipped: {reason}"
        except Exception as error:  # whatever goes wrong on a GPU is a row, and the next is tried
            traceback.print_exc()
            status = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.row(what, status, **values, seconds=round(time.perf_counter() - began, 3))


def _ends_inside_a_line(file: TextIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    return file.read() not in ("", "\n")


def read_rows(out: Path, offset: int = 0) -> list[dict[str, Any]]:
    """Return the whole rows behind a position in the file; a line that a kill cut off is none."""
    if not (out / ROWS).exists():
        return []
    with (out / ROWS).open() as file:
        file.seek(offset)
        lines = file.read().splitlines()
    rows = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
