"""`pytest -m gpu` in several processes, so that a test that ends its process ends no other."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.gpu_suite.limits import begun
from tests.gpu_suite.report import ROOT, Report
from tests.gpu_suite.stage import main

SECONDS = 90.0  # of one test
PROCESSES = 6  # each has a CUDA context and keeps the memory of its largest test
FINISHED = (0, 1, 5)  # pytest's exit status: all passed, some failed, none was left to run


def share(
    report: Report, part: int, parts: int, folder: Path, arguments: list[str], seconds: float
) -> int:
    """Run one share of the tests; return how many of them ended their process."""
    file, ended = folder / f"begun-{part}.txt", set()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.gpu_suite.limits",
        *arguments,
    ]
    command += [
        "--share",
        f"{part}/{parts}",
        "--seconds",
        str(seconds),
        "--rows",
        str(report.out),
        "--begun",
        str(file),
    ]
    while True:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print(done.stdout[-3000:], flush=True)
        cut_off = {name for name, has_ended in begun(file).items() if not has_ended} - ended
        for name in cut_off:
            report.row(
                name,
                f"failed: it ended its process with status {done.returncode}, or took more than "
                f"{seconds:g} s",
            )
        ended |= cut_off
        if not cut_off and done.returncode in FINISHED:
            return len(ended)
        if not cut_off:
            raise RuntimeError(
                f"pytest ended with status {done.returncode} between tests: {done.stdout[-800:]}"
            )


def run(report: Report, processes: int, arguments: list[str], seconds: float = SECONDS) -> None:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        parts = [
            pool.submit(share, report, i, processes, Path(folder), arguments, seconds)
            for i in range(processes)
        ]
        for part in parts:
            part.result()


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    if device.type != "cuda":
        report.row("pytest -m gpu", "skipped: no GPU that torch can use")
        return
    if missing := [
        name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None
    ]:
        report.row("pytest -m gpu", f"skipped: {' and '.join(missing)} not installed")
        return
    # only files that have such tests: another that cannot be imported here would end the collection
    files = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text()
    ]
    # what newer libraries deprecate is no failure of a kernel
    quiet = [
        f"-Wdefault::{kind}"
        for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")
    ]
    run(report, min(PROCESSES, os.cpu_count() or 1), ["-m", "gpu", *quiet, *files])


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
