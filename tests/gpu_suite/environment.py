"""Versions, the GPU, the backend of every op, and packages that other stages will miss."""

import importlib.util
import shutil
import subprocess
import sys

import torch

from benchmarks import provenance
from kdistill import doctor
from tests.gpu_suite.report import Report
from tests.gpu_suite.stage import main

NEEDED = ("pytest", "hypothesis", "sklearn", "triton", "pybind11")
TOOLS = ("nvcc", "cmake", "ninja", "compute-sanitizer", "ncu", "nvidia-smi")


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    report.row("device", device=device.type, torch=torch.__version__, cuda=torch.version.cuda)
    report.row(
        "facts",
        commit=provenance.commit(),
        machine=provenance.machine(),
        facts=dict(doctor.facts()),
    )
    report.row(
        "packages", missing=[name for name in NEEDED if importlib.util.find_spec(name) is None]
    )
    report.row("tools", paths={name: shutil.which(name) for name in TOOLS})
    with report.trying("GPU") as values:
        values.update(gpu(device))
    for op in doctor.op_names():
        with report.trying(f"backends of {op}") as values:
            values.update(
                chosen=doctor.chosen(op, device.type), backends=doctor.backends(op, device.type)
            )


def gpu(device: torch.device) -> dict[str, object]:
    if device.type != "cuda":
        return {"name": "none that torch can use"}
    properties = torch.cuda.get_device_properties(device)
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit",
        "--format=csv,noheader",
    ]
    said = (
        subprocess.run(query, capture_output=True, text=True).stdout.strip()
        if shutil.which("nvidia-smi")
        else ""
    )
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),
        "driver and clocks": said,
    }


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
