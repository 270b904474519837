"""``metrics.jsonl``: one line per look at a run or a training."""

import json
import os
import time
from pathlib import Path
from typing import Any

from kdistill.errors import DataError
from kdistill.files import append_regular, read_regular, write_atomic


class JsonLines:
    """Appends one line per look at the run to ``metrics.jsonl``; a resumed run replaces the lines that it does again."""

    def __init__(self, path: Path, resume: bool):
        self.path, self.is_first = path, True
        if not resume:
            path.unlink(missing_ok=True)

    def __call__(self, progress: Any) -> None:
        """Append the numbers of ``progress``, all but its images."""
        row = {key: value for key, value in vars(progress).items() if key != "images"}
        try:
            if self.is_first:
                self._cut(progress.iteration)
            append_regular(self.path, json.dumps({**row, "time": time.time()}) + "\n")
        except OSError as error:
            raise DataError(
                f"{self.path}: expected to append a line, got: {error.strerror}; free some space "
                "or move what is in the way, "
                "then continue with resume=True"
            ) from error

    def _cut(self, iteration: int) -> None:
        """Drop the lines from ``iteration`` on, and a line that a kill cut short."""
        self.is_first = False
        if not os.path.lexists(self.path):
            return
        kept = []
        for line in read_regular(self.path).decode(errors="replace").splitlines():
            try:
                if json.loads(line)["iteration"] < iteration:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        write_atomic(self.path, "".join(kept).encode())
