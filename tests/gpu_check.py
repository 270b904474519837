"""Everything that wants a GPU: `python -m tests.gpu_check --out DIR [--part A|B] [--dry-run]`.

Stages are processes with a time limit each; one that fails or is cut off does not stop the next.
``DIR/rows.jsonl`` has a line per result, on disk before the next is tried; ``log.txt`` what the
stages said, ``ptxas.txt`` registers and spills of the kernels, ``benchmarks.csv`` rows that can be
committed, ``summary.txt`` the end of this output.  docs/guide/gpu.md says what to do with them.
Needs no pip and no network.

Exit status: 0 where everything was checked on a GPU, 1 where something failed, 3 where nothing
    failed but there is no GPU.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.gpu_suite.report import ROOT, ROWS, read_rows

NATIVE = ROOT / "build" / "gpu-check" / "native"  # what the stage ``build`` makes
TOOLKIT = "/usr/local/cuda/bin"
PART_SECONDS = 530  # of the nine minutes that a part may take
NO_GPU = 3


@dataclass(frozen=True)
class Stage:
    """A module of tests/gpu_suite.

    Attributes:
        name: As it is called in the rows.
        parts: "A", "B", or both.
        seconds: Time limit.
        what: One line for ``--dry-run``.
        module: Where it differs from the name.
        arguments: Beside those that every stage gets.
    """

    name: str
    parts: str
    seconds: int
    what: str
    module: str = ""
    arguments: tuple[str, ...] = ()


STAGES = (
    Stage("environment", "AB", 60, "versions, the GPU, the backend of every op, missing packages"),
    Stage("build", "AB", 90, "_cpu and _cuda for this GPU alone, with what ptxas says"),
    Stage(
        "smoke",
        "A",
        80,
        "every op on every backend in both dtypes, outputs poisoned",
        arguments=("--parallel", "6"),
    ),
    Stage("gradient", "A", 30, "the exact trajectory gradient against autograd, every precision"),
    Stage("graphs", "A", 30, "recorded steps against plain ones, recovery, same bits twice"),
    Stage("gpu_tests", "A", 100, "pytest -m gpu in parallel, 90 s per test"),
    Stage("sanitizer", "A", 60, "memcheck, racecheck and initcheck on tiny shapes"),
    Stage("ceilings", "A", 20, "copy bandwidth; products in fp32, tf32 and bf16"),
    Stage("headline", "A", 55, "benchmark rows of two ops and two whole calls", "benchmark_rows"),
    Stage("replayed", "B", 50, "times of kernels by graph replay over rotated inputs"),
    Stage(
        "benchmarks",
        "B",
        110,
        "benchmark rows of every op",
        "benchmark_rows",
        ("--part", "benchmarks"),
    ),
    Stage("convolutions", "B", 55, "cuDNN by layout, precision and batch, with kernel names"),
    Stage(
        "end_to_end",
        "B",
        60,
        "whole calls by batch, precision, plain or recorded; ConvNet-5 on 128 pixels",
    ),
    Stage("profiled", "B", 25, "one outer step: launches, share of GPU busy, transposes"),
    Stage("counters", "B", 35, "hardware counters of four kernels"),
    Stage("learning", "B", 30, "distill and evaluate on digits, its loss curve beside the CPU's"),
)


@dataclass(frozen=True)
class Outcome:
    stage: Stage
    status: str  # "ok", "failed: ..." or "skipped"
    seconds: float
    rows: list[dict[str, object]]


def limited(command: list[str], seconds: float, log: TextIO, environment: dict[str, str]) -> str:
    """Run a command with all that it starts for so long at most; return "ok" or how it ended."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        status = process.wait(seconds)
        return "ok" if status == 0 else f"failed: exit status {status}"
    except subprocess.TimeoutExpired:
        return f"failed: cut off after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(
                process.pid, signal.SIGKILL
            )  # the processes of the stage are a group of their own
        process.wait()


def run(stage: Stage, seconds: float, options: argparse.Namespace, device: str) -> Outcome:
    """Run one stage, and read the rows that it wrote."""
    rows_file = options.out / ROWS
    offset = rows_file.stat().st_size if rows_file.exists() else 0
    path = os.pathsep.join(
        [os.environ.get("PATH", os.defpath), TOOLKIT]
    )  # where its installer puts nvcc, ncu and the sanitizer
    environment = {**os.environ, "PATH": path}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), os.environ.get("PYTHONPATH", "")]
    ).rstrip(os.pathsep)
    if NATIVE.exists() and stage.name != "build" and list(NATIVE.glob("_cpu.*")):
        environment["KDISTILL_NATIVE_DIR"] = str(NATIVE)
    tiny = ["--tiny"] if device == "cpu" else []
    command = [
        sys.executable,
        "-m",
        f"tests.gpu_suite.{stage.module or stage.name}",
        "--out",
        str(options.out),
    ]
    began = time.monotonic()
    with (options.out / "log.txt").open("a") as log:
        log.write(f"\n==== {stage.name}\n")
        log.flush()
        status = limited(
            [*command, "--device", device, *tiny, *stage.arguments], seconds, log, environment
        )
    rows = read_rows(options.out, offset)
    results = [str(row["status"]) for row in rows if row["what"] != "the whole stage"]
    if status == "ok" and any(result.startswith("failed") for result in results):
        status = "failed: see its rows"
    if status == "ok" and results and all(result.startswith("skipped") for result in results):
        status = results[0]
    return Outcome(stage, status, time.monotonic() - began, rows)


def device_in(outcome: Outcome) -> str:
    """Return the device that ``environment`` reports; None if it failed: every stage chooses."""
    return next((str(row["device"]) for row in outcome.rows if row["what"] == "device"), "auto")


def described(outcome: Outcome) -> str:
    """Return a line for a stage, and one for each of its first failures."""
    counts = Counter(
        str(row["status"]).split(":")[0] for row in outcome.rows if row["what"] != "the whole stage"
    )
    counted = ", ".join(f"{number} {status}" for status, number in counts.items())
    lines = [
        f"{outcome.stage.name:<14}{outcome.seconds:6.0f} s  {outcome.status}"
        + (f" ({counted})" if counted else "")
    ]
    failures = [row for row in outcome.rows if str(row["status"]).startswith("failed")]
    lines += [f"    {str(row['what'])[:60]}: {str(row['status'])[:160]}" for row in failures[:5]]
    return "\n".join(
        [
            *lines,
            *([f"    and {len(failures) - 5} more in rows.jsonl"] if len(failures) > 5 else []),
        ]
    )


def check(options: argparse.Namespace, stages: list[Stage]) -> int:
    options.out.mkdir(parents=True, exist_ok=True)
    device, outcomes, end = options.device, [], time.monotonic() + PART_SECONDS * len(options.part)
    for stage in stages:
        left = end - time.monotonic()
        if left < 1:
            outcomes.append(Outcome(stage, "failed: no time was left for it", 0.0, []))
        else:
            outcomes.append(run(stage, min(stage.seconds, left), options, device))
        if stage.name == "environment" and device == "auto":
            device = device_in(outcomes[-1])
            if device == "cpu":
                print(
                    "no GPU that torch can use: what can run without one runs, at its smallest "
                    "sizes",
                    flush=True,
                )
        print(described(outcomes[-1]), flush=True)
    failed = [o.stage.name for o in outcomes if o.status.startswith("failed")]
    skipped = [o.stage.name for o in outcomes if o.status.startswith("skipped")]
    ends = [
        f"{len(outcomes)} stages on {device}, {len(failed)} failed"
        + (f": {', '.join(failed)}" if failed else "")
    ]
    if skipped:
        ends.append(f"skipped: {', '.join(skipped)}")
    if device == "cpu":
        ends.append("there was no GPU: nothing is said about one")
    (options.out / "summary.txt").write_text("\n".join([*map(described, outcomes), *ends]) + "\n")
    print("\n".join([*ends, f"rows and logs: {options.out}"]))
    return 1 if failed else NO_GPU if device == "cpu" else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/gpu-check"),
        help="folder for rows, logs and the summary",
    )
    parser.add_argument(
        "--part", choices=("A", "B", "AB"), default="AB", help="each takes less than nine minutes"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="STAGE",
        help="this stage, and `environment`; may be repeated",
    )
    parser.add_argument(
        "--device", default="auto", help="auto: cuda where torch can use one, else cpu"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the stages and their time limits"
    )
    options = parser.parse_args(argv)
    names = [stage.name for stage in STAGES]
    for name in options.only or ():
        if name not in names:
            parser.error(f"--only: expected a stage, got '{name}'; one of {', '.join(names)}")
    wanted = {"environment", *(options.only or names)}
    stages = [
        s for s in STAGES if s.name in wanted and (options.only or set(s.parts) & set(options.part))
    ]
    if options.dry_run:
        for stage in stages:
            print(f"{stage.parts:<3}{stage.name:<14}{stage.seconds:4} s  {stage.what}")
        print(f"at most {PART_SECONDS} s per part; nothing was run")
        return 0
    options.out = options.out.resolve()
    return check(options, stages)


if __name__ == "__main__":
    sys.exit(main())
