"""Hardware counters of the four kernels that move most bytes, by Nsight Compute."""

import csv
import shutil
import subprocess
import sys

import torch

from kdistill.testing.backends import running_on
from kdistill.testing.cases import case
from tests.gpu_suite.report import ROOT, Report, Skipped
from tests.gpu_suite.smoke import backends, why_not
from tests.gpu_suite.stage import arguments, device_of
from tests.gpu_suite.stage import main as run_stage

OPS = ("norm_act_pool", "filtered_lrelu", "fir_bias_act", "class_mean_sqdist")
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "percent of memory",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "percent of arithmetic",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "percent of warps",
    "launch__registers_per_thread": "registers",
}
MOST_LAUNCHES = 60


def command(device: torch.device, child: list[str]) -> list[str]:
    ncu = [
        "ncu",
        "--csv",
        "--page",
        "raw",
        "--print-units",
        "base",
        "--clock-control",
        "none",
        "--metrics",
        ",".join(METRICS),
    ]
    return [
        *ncu,
        "--kernel-name",
        f"regex:{'|'.join(OPS)}",
        "--launch-count",
        str(MOST_LAUNCHES),
        sys.executable,
        *child,
    ]


def table(output: str) -> list[dict[str, str]]:
    """Return the lines of ncu's table; it follows what the program and ncu say."""
    lines = output.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        raise RuntimeError(f"expected a table of ncu, got: {output[-400:]}")
    rows = list(csv.DictReader(lines[first:]))
    return [row for row in rows if row["ID"]]  # the first line names units


def run_ops(device: torch.device, is_tiny: bool) -> None:
    """Run every op once on every backend that measures something: what ncu looks at."""
    for name in OPS:
        of = case(name)
        shape = of.tiny if is_tiny else of.bench_shapes[0]
        for backend in backends(device):
            if backend != "reference" and why_not(backend, device) is None:
                with running_on(backend):
                    of.results(of.op, of.inputs(shape, seed=0, device=str(device)))


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    if shutil.which("ncu") is None:
        report.row("ncu", "skipped: not on PATH")
        return
    child = [
        "-m",
        "tests.gpu_suite.counters",
        "--out",
        str(report.out),
        "--device",
        str(device),
        "--child",
        "yes",
    ]
    rows = []
    with report.trying("ncu"):
        done = subprocess.run(
            command(device, [*child, *(["--tiny"] if is_tiny else [])]),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
            raise Skipped("the driver lets administrators alone read counters")
        rows = table(done.stdout + done.stderr)
    for row in rows:
        counted = {shown: row.get(metric, "") for metric, shown in METRICS.items()}
        report.row(
            row["Kernel Name"][:80],
            **counted,
            grid=row.get("Grid Size"),
            block=row.get("Block Size"),
        )


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv, child="")
    device = device_of(options.device)
    if options.child:
        run_ops(device, options.tiny)
        return 0
    tiny = ["--tiny"] if options.tiny else []
    return run_stage(__file__, stage, ["--out", str(options.out), "--device", str(device), *tiny])


if __name__ == "__main__":
    sys.exit(main())
