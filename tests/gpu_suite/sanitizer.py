"""The CUDA kernels on tiny shapes under compute-sanitizer: memcheck, racecheck, initcheck."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from kdistill import _native
from tests.gpu_suite.report import ROOT, Report, Skipped, read_rows
from tests.gpu_suite.stage import main

TOOLS = ("memcheck", "racecheck", "initcheck")
ENVIRONMENT = {
    # every tensor is an allocation of its own, so that a write beyond its end is noticed
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def program() -> str | None:
    return shutil.which("compute-sanitizer")


def verdict(output: str) -> str:
    """Return how a tool's output sums up."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    if not summaries:
        raise RuntimeError(f"expected a summary, got: {output[-400:]}")
    return str(summaries[-1])


def run(tool: str, device: torch.device, report: Report) -> None:
    with report.trying(tool) as values, tempfile.TemporaryDirectory() as folder:
        smoke = [
            "-m",
            "tests.gpu_suite.smoke",
            "--out",
            folder,
            "--device",
            str(device),
            "--tiny",
            "--backend",
            "cuda",
        ]
        done = subprocess.run(
            [str(program()), "--tool", tool, "--target-processes", "all", sys.executable, *smoke],
            cwd=ROOT, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if "Device not supported" in done.stdout:
            raise Skipped("compute-sanitizer does not support this machine")
        values.update(said=verdict(done.stdout), ops=len(read_rows(Path(folder))))
        if not re.match(r"0 (errors|hazards)", values["said"]):
            errors = [line for line in done.stdout.splitlines() if line.startswith("=========")]
            raise AssertionError(
                " / ".join(line.removeprefix("=========").strip() for line in errors[1:6])
            )


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    reason = _native.why_missing("_cuda") if device.type == "cuda" else None
    if program() is None or reason:
        report.row("compute-sanitizer", f"skipped: {reason or 'not on PATH'}")
        return
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        list(pool.map(lambda tool: run(tool, device, report), TOOLS))


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
