"""What is installed, what runs where, and why not."""

import importlib
import importlib.metadata
import importlib.resources
import os
import platform
import shutil
from collections.abc import Iterator

import torch

from kdistill import _native
from kdistill._version import __version__
from kdistill.formatting import wrapped
from kdistill.ops import AUTOMATIC_ORDER, BACKENDS, implementation, requested_backend

PACKAGES = ("torch", "numpy", "triton", "pillow", "safetensors", "typer", "rich")
EXTRAS = {
    "demo": ("mlxtend", "scikit-learn", "scikit-image"),
    "report": ("matplotlib", "jinja2"),
    "diffusion": ("diffusers",),
    "hub": ("datasets", "huggingface_hub"),
}


def version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts() -> Iterator[tuple[str, str]]:
    """Yield (what, value) lines about versions, modules and the machine."""
    yield "kdistill", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        yield package, version(package) or "not installed"
    for extra, packages in EXTRAS.items():
        absent = [p for p in packages if version(p) is None]
        yield (
            f"extra {extra}",
            f'missing {", ".join(absent)}: pip install "kdistill[{extra}]"'
            if absent
            else "installed",
        )
    yield "threads", str(torch.get_num_threads())
    for module in ("_cpu", "_cuda", "_cuda_emulated"):
        why = _native.why_missing(module)
        detail = (
            f"loaded, instruction set {_native.function('_cpu', 'isa')()}"
            if module == "_cpu" and why is None
            else "loaded"
        )
        yield module, why or detail
    yield "nvcc", shutil.which("nvcc") or "not found (needed only to build _cuda)"
    yield (
        "GPU",
        torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use",
    )
    yield "KDISTILL_BACKEND", os.environ.get("KDISTILL_BACKEND") or "not set (automatic)"


def op_names() -> list[str]:
    """Return the name of every op."""
    folder = importlib.resources.files("kdistill.ops")
    return sorted(
        f.name.removesuffix(".py")
        for f in folder.iterdir()
        if f.name.endswith(".py") and f.name[0] != "_"
    )


def backends(op: str, device: str) -> dict[str, str]:
    """Return, per backend, "yes" or why it cannot run ``op`` on float32 tensors of ``device``."""
    probe = (torch.empty(0, device=device),)
    answers = {name: implementation(op, name, probe) for name in BACKENDS}
    return {name: "yes" if callable(what) else str(what) for name, what in answers.items()}


def chosen(op: str, device: str) -> str:
    """Return the backend that the automatic choice (or the one asked for) takes for ``op``."""
    asked = requested_backend()
    able = backends(op, device)
    order = (asked,) if asked else AUTOMATIC_ORDER[device]
    return next((name for name in order if able[name] == "yes"), "none")


def report(*, verbose: bool = False) -> Iterator[str]:
    """Yield the lines of ``kdistill doctor``: facts, ops by backend, and each refusal once.

    Args:
        verbose: Yield for every op what each backend answers, in the place of one line per cause.
    """
    for what, value in facts():
        yield from wrapped(value, 19, f"{what:<18}")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        yield ""
        yield from _of_every_op(device) if verbose else _by_cause(device)
    if not verbose:
        yield ""
        yield "kdistill doctor --verbose shows every op"


def _of_every_op(device: str) -> Iterator[str]:
    for op in op_names():
        yield f"{op} on {device}: {chosen(op, device)}"
        for backend, answer in backends(op, device).items():
            yield from wrapped(answer, 13, f"  {backend:<10}")


def _by_cause(device: str) -> Iterator[str]:
    """Yield which backend runs which ops, and every reason why another does not, once."""
    ops = op_names()
    running: dict[str, list[str]] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for op in ops:
        running.setdefault(chosen(op, device), []).append(op)
        for backend, answer in backends(op, device).items():
            if answer != "yes":
                refused.setdefault((backend, answer.replace(f"{op}.md", "")), []).append(op)
    yield f"ops on {device}"
    for backend, names in running.items():
        yield from wrapped(f"runs {', '.join(names)}", 13, f"  {backend:<10}")
    for (backend, why), names in refused.items():
        which = ", ".join(names) if len(names) <= 3 else f"{len(names)} of {len(ops)} ops"
        yield from wrapped(f"does not run {which}: {why}", 13, f"  {backend:<10}")
