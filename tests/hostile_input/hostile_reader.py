"""Test-only: read files in a process of their own and say what each cost.

It is called as ``python -m tests.hostile_input.hostile_reader JOBS``.

JOBS is a JSON list of [reader, path]; for each a line of JSON is printed: the kind of error (or "")
and its text, the seconds of the processor, and the bytes by which the memory grew at its peak."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import kdistill
from kdistill._native import peak_bytes, reset_peak
from kdistill.artifacts import DistilledDataset, import_published, load_checkpoint
from kdistill.artifacts.dataset_card import card
from kdistill.config import load_file
from kdistill.data import load_data
from kdistill.experts import TrajectoryStore
from kdistill.priors.network_files import load_generator, read_network
from kdistill.selection.score_table import load_scores
from kdistill.transforms import Identity


def artefact(path: Path) -> None:
    small = DistilledDataset.from_pretrained(path)
    small.save_pretrained(path.with_name(f"{path.name}-again"))
    card(small)


READERS: dict[str, Any] = {
    "artefact": artefact,
    "checkpoint": load_checkpoint,
    "compare": kdistill.compare,
    "config": load_file,
    "data": lambda path: load_data(path, quiet=True),
    "data at 32": lambda path: load_data(path, quiet=True, size=32),
    "experts": TrajectoryStore,
    "generator": load_generator,
    "network": read_network,
    "published": lambda path: import_published(path, transform=Identity(), classes=["a", "b"]),
    "scores": load_scores,
}


def main() -> None:
    for reader, path in json.loads(Path(sys.argv[1]).read_text()):
        reset_peak()
        before, started, kind, text = peak_bytes(), time.process_time(), "", ""
        try:
            READERS[reader](Path(path))
        except Exception as error:  # of any kind: the test says which are right
            kind, text = type(error).__name__, str(error)
            ours = isinstance(error, kdistill.errors.KDistillError)
            kind = kind if ours else f"not ours: {kind}"
        seconds, grown = time.process_time() - started, peak_bytes() - before
        print(
            json.dumps({"kind": kind, "text": text, "seconds": seconds, "bytes": grown}), flush=True
        )


if __name__ == "__main__":
    main()
