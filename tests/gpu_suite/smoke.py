"""Every op on every backend and dtype against the float64 reference, with poisoned outputs.

A kernel that breaks the process's CUDA context breaks every later call in it: the rest is then run
in a new process."""

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import torch

from kdistill import _native
from kdistill.engine import use_precision
from kdistill.ops import AUTOMATIC_ORDER
from kdistill.testing.backends import has_kernel, runnable_backends, running_on
from kdistill.testing.cases import OpCase, every_case
from tests.gpu_suite.report import ROOT, Report, Skipped
from tests.gpu_suite.stage import arguments, device_of

DTYPES = (torch.float32, torch.float64)


def backends(device: torch.device) -> list[str]:
    return list(AUTOMATIC_ORDER["cuda"]) if device.type == "cuda" else runnable_backends()


def plan(device: torch.device) -> list[tuple[OpCase, str, torch.dtype]]:
    """Return every combination that has a kernel; the order is the same in every process."""
    names = backends(device)
    return [
        (case, name, dtype)
        for case in every_case()
        for name in names
        if has_kernel(case.name, name)
        for dtype in DTYPES
    ]


def why_not(backend: str, device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return _native.why_missing("_cuda") if backend == "cuda" else None


def shapes(case: OpCase, is_tiny: bool) -> Iterator[object]:
    yield case.tiny
    if not is_tiny:
        yield case.shapes[1]


def check(
    case: OpCase, backend: str, dtype: torch.dtype, device: torch.device, is_tiny: bool
) -> None:
    if reason := why_not(backend, device):
        raise Skipped(reason)
    with running_on(backend), use_precision("fp32", device):
        for shape in shapes(case, is_tiny):
            case.check(case.inputs(shape, seed=0, dtype=dtype, device=str(device)), shape)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_broken(device: torch.device) -> bool:
    """Say whether a failed kernel took this process's CUDA context with it."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        return bool(torch.ones(1, device=device).item() != 1.0)
    except RuntimeError:
        return True


def run(
    report: Report, device: torch.device, is_tiny: bool, first: int, only: str, share: str = "0/1"
) -> int | None:
    """Try combinations from ``first`` on; return where a new process has to go on, None at the end.

    ``only`` names a backend, and ``share`` is part/parts of the combinations.
    """
    part, parts = map(int, share.split("/"))
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.simplefilter("ignore")
    for number, (case, backend, dtype) in enumerate(plan(device)):
        if number < first or (only and backend != only) or number // len(DTYPES) % parts != part:
            continue
        before = report.failures
        with report.trying(f"{case.name} {backend} {str(dtype).removeprefix('torch.')}"):
            check(case, backend, dtype, device, is_tiny)
        if report.failures > before and is_broken(device):
            report.row(
                f"{case.name} {backend}", "failed: it broke the CUDA context; a new process goes on"
            )
            return number + 1
    return None


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv, first=0, failures=0, backend="", share="0/1", parallel=0)
    report = Report(options.out, "smoke", options.failures)
    device = device_of(options.device)
    again = [
        sys.executable,
        "-m",
        "tests.gpu_suite.smoke",
        "--out",
        str(options.out),
        "--device",
        str(device),
    ]
    again += ["--tiny"] if options.tiny else []
    if options.parallel and device.type == "cuda" and not options.backend:
        return in_parallel(again, options.parallel)
    following = run(report, device, options.tiny, options.first, options.backend, options.share)
    if following is not None:
        rest = ["--first", str(following), "--failures", str(report.failures)]
        os.execv(
            sys.executable, [*again, *rest, "--backend", options.backend, "--share", options.share]
        )
    return 1 if report.failures else 0


def in_parallel(command: list[str], parts: int) -> int:
    """Run every backend in its own process, Triton in several; return 1 if one of them failed."""
    shares = [
        ("reference", "0/1"),
        ("cuda", "0/1"),
        *(("triton", f"{part}/{parts}") for part in range(parts)),
    ]
    running = [
        subprocess.Popen([*command, "--backend", backend, "--share", share], cwd=ROOT)
        for backend, share in shares
    ]
    return max(process.wait() for process in running) and 1


if __name__ == "__main__":
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # read at the first product, which is later
    sys.exit(main())
