"""The only file that imports the compiled modules, and the rule of addresses.

A kernel gets addresses and sizes.  The public op has checked dtype, device, shape and contiguity,
and the tensors keep a name until the call returns.
"""

import importlib
import importlib.util
import os
import platform
import resource
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kdistill._version import __version__
from kdistill.errors import ConfigError, NativeError

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_emulating = os.environ.get("KDISTILL_CUDA_EMULATION", "") == "1"
_MOST_GROWTH = 256 << 20
# variables with which the libraries under torch choose other kernels, and so other bits; recorded
# where they are set
_OTHER_BITS = (
    *(
        "ATEN_CPU_CAPABILITY",
        "MKL_CBWR",
        "MKL_DYNAMIC",
        "MKL_ENABLE_INSTRUCTIONS",
        "MKL_NUM_THREADS",
    ),
    *(
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "ONEDNN_MAX_CPU_ISA",
        "DNNL_DEFAULT_FPMATH_MODE",
        "DNNL_MAX_CPU_ISA",
        "OPENBLAS_CORETYPE",
    ),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
)
_resident_after = sys.maxsize  # bytes, when freed memory was last given back, or fewer later


@cache
def _load(module: str) -> ModuleType | ImportError:
    loaded = _import(module)
    if (
        isinstance(loaded, ModuleType)
        and module == "_cpu"
        and os.environ.get("KDISTILL_MALLOC") != "system"
    ):
        loaded.keep_freed_memory()
    return loaded


def _import(module: str) -> ModuleType | ImportError:
    # another build of the same modules, such as one with sanitizers
    folder = os.environ.get("KDISTILL_NATIVE_DIR")
    if folder and not Path(folder).is_absolute():
        raise ConfigError(
            f"KDISTILL_NATIVE_DIR: expected an absolute path, got '{folder}'; code that is loaded "
            "must not depend on the current folder"
        )
    try:
        if not folder:
            return importlib.import_module(f"kdistill.{module}")
        path = Path(folder) / f"{module}{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not path.exists():
            return ImportError(f"no {module} in KDISTILL_NATIVE_DIR={folder}")
        spec = importlib.util.spec_from_file_location(f"kdistill.{module}", path)
        loaded = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(loaded)  # type: ignore[union-attr]
        return loaded
    except ImportError as error:
        return error  # cached too: a missing build is found once, and fast


@contextmanager
def emulate_cuda(on: bool = True) -> Iterator[None]:
    """Let the ``cuda`` backend run CPU tensors through ``_cuda_emulated`` in the block (tests)."""
    global _emulating
    before, _emulating = _emulating, on
    try:
        yield
    finally:
        _emulating = before


def emulating() -> bool:
    """Say whether CPU tensors may run the CUDA sources through the emulation."""
    return _emulating


def why_missing(module: str) -> str | None:
    """Return one line that says why ``module`` cannot be imported, or None if it can."""
    loaded = _load(module)
    if isinstance(loaded, ModuleType):
        return None
    failures = ("_build_failure.txt", "_cuda_build_failure.txt")
    for failure in failures if module == "_cuda" else failures[:1]:
        path = Path(__file__).parent / failure
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if line.strip()]
            return f"{module} is not built; the build said: {lines[-1] if lines else 'nothing'}"
    if module == "_cuda":
        return "_cuda is not built; install with nvcc on PATH (KDISTILL_CUDA=on says why it fails)"
    if module == "_cuda_emulated":
        return (
            "_cuda_emulated is not built; install with KDISTILL_EMULATION=on (Linux, g++ 11 or "
            "newer)"
        )
    return f"{module} is not built ({loaded}); reinstall with a C++ compiler on PATH"


def _resolve(module: str, device: torch.device) -> str:
    return "_cuda_emulated" if module == "_cuda" and device.type == "cpu" and _emulating else module


def refusal(module: str, *args: Any) -> str | None:
    """Return why ``module`` cannot run these arguments, or None.

    It may not be built, or not be compiled for the dtype, or run on another device.
    """
    tensors = [a for a in args if isinstance(a, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in _SUFFIX:
            return f"dtype {tensor.dtype} is not compiled; use float32 or float64"
    resolved = _resolve(module, device)
    wanted = "cuda" if resolved == "_cuda" else "cpu"
    if device.type != wanted:
        return f"the tensors are on {device.type}, this backend runs on {wanted}"
    return why_missing(resolved) or (card_refusal(device) if wanted == "cuda" else None)


@cache
def card_refusal(device: torch.device) -> str | None:
    """Return why the kernels of ``_cuda`` cannot run on a card (architecture, driver), or None."""
    module = _load("_cuda")
    compiled, toolkit, driver = (
        _member(module, name) for name in ("architectures", "toolkit", "driver")
    )
    driver = driver()
    major, minor = torch.cuda.get_device_capability(device)
    codes = [(int(number), kind) for number, kind in (code.split("-") for code in compiled.split())]
    runs = any(n // 10 == major and n % 10 <= minor for n, kind in codes if kind == "real")
    from_ptx = any(n <= 10 * major + minor for n, kind in codes if kind == "virtual")
    if not runs and not from_ptx:
        return (
            f"the card has compute capability {major}.{minor}, _cuda was compiled for {compiled}; "
            f"install again with KDISTILL_CUDA_ARCHITECTURES={major}{minor} and an nvcc that knows "
            "it"
        )
    # code of a release runs on every driver of its major version, PTX only on one that is as new
    too_old = driver // 1000 < toolkit // 1000
    if too_old or (not runs and driver < toolkit):
        other = "an older nvcc" if too_old else f"KDISTILL_CUDA_ARCHITECTURES={major}{minor}"
        return (
            f"the driver is of CUDA {_release(driver)}, _cuda was built with {_release(toolkit)}; "
            f"update the driver, or install again with {other}"
        )
    return None


def _release(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def kernel(
    module: str, op: str, dtype: torch.dtype, device: torch.device | None = None
) -> Callable[..., None]:
    """Return the bound function of ``op`` for ``dtype`` on ``device``; call ``refusal`` first.

    The default device is the CPU.
    """
    loaded = _load(_resolve(module, device or torch.device("cpu")))
    return _member(loaded, f"{op}_{_SUFFIX[dtype]}")


def function(module: str, name: str) -> Callable[..., Any]:
    """Return a bound helper that has no dtype, such as ``class_lists`` or ``use_isa``."""
    loaded = _load(module)
    if not isinstance(loaded, ModuleType):
        raise loaded
    return _member(loaded, name)


def _member(module: ModuleType | ImportError, name: str) -> Any:
    member = getattr(module, name, None)
    if member is None:
        raise NativeError(
            f"{getattr(module, '__name__', module)}: expected '{name}', which the Python code "
            "calls, got an older build; run `pip install -e .` again"
        )
    return member


@contextmanager
def stream_of(x: Tensor) -> Iterator[int]:
    """Select the device of ``x`` and yield its current stream; 0 under the emulation."""
    if x.device.type != "cuda":
        yield 0
        return
    with torch.cuda.device(x.device):
        yield torch.cuda.current_stream(x.device).cuda_stream


def environment() -> dict[str, Any]:
    """Return what bit-identity depends on beside the inputs: versions, threads, choices."""
    native = why_missing("_cpu") is None
    return {
        "kdistill": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "isa": function("_cpu", "isa")() if native else "reference",
        "threads": torch.get_num_threads(),
        "backend": os.environ.get("KDISTILL_BACKEND") or "auto",
        "convolution": os.environ.get("KDISTILL_CONVOLUTION") or "auto",
        **{name: os.environ[name] for name in _OTHER_BITS if os.environ.get(name)},
    }


def peak_bytes() -> int:
    """Return the peak resident memory of this process.

    Linux says it in /proc: the resource usage of a process begins with the peak of the one that
    started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def return_freed_memory() -> None:
    """Give free memory back to the system where the process has grown by 256 MB.

    The growth counts from where the process was smallest, or gave memory back.

    glibc (2.36 here) seldom puts an aligned block in the place of a freed one of its size: where
    blocks change in size the heap grows with every turn of a loop, by 8 MB in ``dsa``.  For loops
    to call now and then; has an effect on Linux alone.
    """
    global _resident_after
    native = _load("_cpu")
    resident = _resident_bytes()
    if (
        resident is None
        or not isinstance(native, ModuleType)
        or os.environ.get("KDISTILL_MALLOC") == "system"
    ):
        return
    _resident_after = min(_resident_after, resident)
    if resident < _resident_after + _MOST_GROWTH:
        return
    _member(native, "return_freed_memory")()
    _resident_after = _resident_bytes() or resident


def _resident_bytes() -> int | None:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else None


def reset_peak() -> bool:
    """Let ``peak_bytes`` begin at what is resident now; say whether the system (Linux) could."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
