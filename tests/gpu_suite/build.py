"""`_cpu` and `_cuda` built for this GPU alone, and what ptxas reports of every kernel."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.gpu_suite.report import ROOT, Report
from tests.gpu_suite.stage import main

FOLDER = ROOT / "build" / "gpu-check"
NATIVE = FOLDER / "native"  # KDISTILL_NATIVE_DIR of the stages that follow
IMPORTS = (
    'from kdistill import _native; why = _native.why_missing("_cuda"); '
    'print(why or "loaded"); raise SystemExit(why is not None)'
)


def commands(architecture: str, targets: tuple[str, ...], folder: Path) -> list[list[str]]:
    """Return how CMake is called."""
    import pybind11

    configure = [
        *(
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(folder / "cmake"),
            "-G",
            "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
        ),
        *(
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DKDISTILL_CUDA=on",
            "-DKDISTILL_EMULATION=OFF",
        ),
        *(f"-DKDISTILL_CUDA_ARCHITECTURES={architecture}", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v"),
    ]
    return [
        configure,
        ["cmake", "--build", str(folder / "cmake"), "--verbose", "--target", *targets],
    ]


def kernels(log: str) -> list[dict[str, object]]:
    """Return name, registers, stack and spills of every kernel that a build's output names."""
    rows: list[dict[str, object]] = []
    for line in log.splitlines():
        if name := re.search(r"Compiling entry function '(\w+)' for '(sm_\w+)'", line):
            rows.append({"kernel": name[1], "architecture": name[2]})
        elif rows and (
            frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line)
        ):
            rows[-1].setdefault("stack", int(frame[1]))
            rows[-1].setdefault("spills", int(frame[2]))
        elif rows and (used := re.search(r"Used (\d+) registers", line)):
            rows[-1].setdefault("registers", int(used[1]))
    return rows


def demangled(names: list[str]) -> list[str]:
    if not shutil.which("c++filt"):
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    return [
        re.sub(r"\(anonymous namespace\)::|kd::cuda::|\(.*", "", line)
        for line in done.stdout.splitlines()
    ]


def stage(report: Report, device: torch.device, is_tiny: bool, folder: Path = FOLDER) -> None:
    missing = [
        f"no {tool} on PATH" for tool in ("nvcc", "cmake", "ninja") if shutil.which(tool) is None
    ]
    missing += ["no pybind11"] if importlib.util.find_spec("pybind11") is None else []
    if missing:
        report.row("_cuda", f"skipped: {' and '.join(missing)}; stages use what is installed")
        return
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    targets = ("_cuda",) if device.type == "cpu" else ("_cpu", "_cuda")
    native = folder / "native"
    shutil.rmtree(native, ignore_errors=True)
    with report.trying("compile", architecture=f"{major}{minor}") as values:
        log = ""
        try:
            for command in commands(f"{major}{minor}", targets, folder):
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
                log += done.stdout
                if done.returncode:
                    raise RuntimeError(
                        f"{' '.join(command[:2])} ended with status {done.returncode}: "
                        f"{done.stdout[-1500:]}"
                    )
        finally:
            values.update(write_kernels(report, log))
        native.mkdir(parents=True)
        for target in targets:
            shutil.copy(next((folder / "cmake").glob(f"{target}.*.so")), native)
    if device.type == "cpu":
        return  # a CUDA module without a GPU: the stages that follow run what is installed
    with report.trying("import") as values:
        done = subprocess.run(
            [sys.executable, "-c", IMPORTS], cwd=ROOT, env={**os.environ,
            "KDISTILL_NATIVE_DIR": str(native)}, capture_output=True, text=True,
        )  # fmt: skip
        values["said"] = done.stdout.strip()
        if done.returncode:
            shutil.rmtree(native)
            raise RuntimeError(done.stdout + done.stderr[-500:])


def write_kernels(report: Report, log: str) -> dict[str, object]:
    """Write ``ptxas.txt``, and return what of it belongs into a row."""
    rows = kernels(log)
    names = demangled([str(one["kernel"]) for one in rows])
    lines = [
        f"{one.get('registers')} registers, {one.get('stack')} bytes of stack, {one.get('spills')} "
        f"spilled: {name}"
        for name, one in sorted(
            zip(names, rows, strict=True), key=lambda pair: -int(str(pair[1].get("spills", 0)))
        )
    ]
    report.out.mkdir(parents=True, exist_ok=True)
    (report.out / "ptxas.txt").write_text("\n".join(lines) + "\n")
    return {"kernels": len(rows), "spilling": sum(bool(one.get("spills")) for one in rows)}


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
