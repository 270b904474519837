"""Where and with what a row was measured."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from kdistill import _native

ROOT = Path(__file__).parents[1]


def machine() -> str:
    """Return processor, cores and the instruction set that the kernels use."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
            model,
        )
    except OSError:
        pass  # not Linux: what platform says stands
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    isa = "no native build" if _native.why_missing("_cpu") else _native.function("_cpu", "isa")()
    return f"{model}, {cores} cores, {isa}"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"


def why_busy() -> str | None:
    """Return a sentence if other processes keep the cores busy, so that times are worthless."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return (
        f"the machine is busy (load {load:.1f} on {cores} cores): do not commit these times"
        if load > 0.5 * cores
        else None
    )


def commit() -> str:
    """Return the short commit, with ``+`` where the sources differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "csrc",
            "kdistill",
            "benchmarks/*.py",
        )
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__
