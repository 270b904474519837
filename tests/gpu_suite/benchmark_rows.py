"""Rows of `python -m benchmarks.run` in ``<out>/benchmarks.csv``, for ``fastest.json`` too."""

import contextlib
import io
import sys

import torch

from benchmarks import result_rows, run
from tests.gpu_suite.report import Report
from tests.gpu_suite.stage import arguments, device_of
from tests.gpu_suite.stage import main as run_stage

ROWS_FILE = "benchmarks.csv"
HEADLINE = (
    "norm_act_pool",
    "norm_act_pool_tangent",
    "dm_iteration",
    "trajectory_match",
)  # one shape each
TINY = ("step_with_dots",)


def measure(report: Report, device: torch.device, name: str, extra: list[str]) -> None:
    """Run one benchmark, and report how many rows it wrote; wrong ones are failures."""
    target = report.out / ROWS_FILE
    with report.trying(name) as values:
        command = [
            "--op",
            name,
            "--device",
            device.type,
            "--threads",
            str(torch.get_num_threads()),
            "--output",
            str(target),
        ]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            status = run.main([*command, *extra])
        rows = [row for row in result_rows.read_rows(target) if row.op.startswith(name)]
        values.update(
            rows=len(rows),
            best={f"{r.metric} {r.backend} {r.shape}": r.median for r in rows if r.is_ours},
        )
        if status:
            raise AssertionError(
                "; ".join(row.status for row in rows if row.status.startswith("wrong"))
            )


def choose(report: Report) -> None:
    """Report which kernels were faster on this GPU, for ``kdistill/ops/fastest.json``."""
    result_rows.Journal(report.out / ROWS_FILE)  # rows of a stage that was cut off
    with report.trying("fastest.json") as values:
        values["fastest"] = result_rows.fastest(result_rows.read_rows(report.out / ROWS_FILE))


def names(part: str, is_tiny: bool) -> tuple[str, ...]:
    if is_tiny:
        return TINY
    return HEADLINE if part == "headline" else tuple(case.name for case in run.every_case())


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv, part="headline")

    def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
        short = options.part == "headline" or is_tiny
        extra = (
            ["--quick", "--seconds", "0.01" if is_tiny else "0.2"]
            if short
            else ["--seconds", "0.1"]
        )
        for name in names(options.part, is_tiny):
            measure(report, device, name, extra)
        choose(report)

    report_to = [
        "--out",
        str(options.out),
        "--device",
        str(device_of(options.device)),
        *(["--tiny"] if options.tiny else []),
    ]
    return run_stage(f"{options.part}.py", stage, report_to)


if __name__ == "__main__":
    sys.exit(main())
