"""Every op on every backend and in both dtypes against the float64 reference, its outputs poisoned before the kernels write.

A kernel that breaks the process's CUDA context breaks every later call in it: the rest is then run in a new process.
"""

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator

import torch

from kdistill import _native
from kdistill.engine import use_precision
from kdistill.ops import _registry
from kdistill.testing.backends import has_kernel, runnable_backends, running_on
from kdistill.testing.cases import OpCase, every_case
from tests.gpu_suite.report import Report, Skipped
from tests.gpu_suite.stage import arguments, device_of

DTYPES = (torch.float32, torch.float64)


def backends(device: torch.device) -> list[str]:
    return list(_registry.AUTOMATIC["cuda"]) if device.type == "cuda" else runnable_backends()


def plan(device: torch.device) -> list[tuple[OpCase, str, torch.dtype]]:
    """Return every combination that has a kernel; the order is the same in every process."""
    names = backends(device)
    return [(case, name, dtype) for case in every_case() for name in names if has_kernel(case.name, name) for dtype in DTYPES]


def why_not(backend: str, device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return _native.why_missing("_cuda") if backend == "cuda" else None


def shapes(case: OpCase, is_tiny: bool) -> Iterator[object]:
    yield case.tiny
    if not is_tiny:
        yield from case.shapes[:3]


def check(case: OpCase, backend: str, dtype: torch.dtype, device: torch.device, is_tiny: bool) -> None:
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


def run(report: Report, device: torch.device, is_tiny: bool, first: int, only: str) -> int | None:
    """Try combination ``first`` and all after it; return where a new process has to go on, or None at the end."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.simplefilter("ignore")
    for number, (case, backend, dtype) in enumerate(plan(device)):
        if number < first or (only and backend != only):
            continue
        before = report.failures
        with report.trying(f"{case.name} {backend} {str(dtype).removeprefix('torch.')}"):
            check(case, backend, dtype, device, is_tiny)
        if report.failures > before and is_broken(device):
            report.row(f"{case.name} {backend}", "failed: it broke the CUDA context; a new process goes on")
            return number + 1
    return None


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv, first=0, failures=0, backend="")
    report = Report(options.out, "smoke", options.failures)
    device = device_of(options.device)
    following = run(report, device, options.tiny, options.first, options.backend)
    if following is not None:
        rest = ["--first", str(following), "--failures", str(report.failures), "--backend", options.backend]
        again = ["--out", str(options.out), "--device", str(device), *(["--tiny"] if options.tiny else []), *rest]
        os.execv(sys.executable, [sys.executable, "-m", "tests.gpu_suite.smoke", *again])
    return 1 if report.failures else 0


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product, which is later
    sys.exit(main())
