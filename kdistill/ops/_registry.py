"""Which backend runs an op, and why the others do not.

``use_backend(...)`` comes before ``KDISTILL_BACKEND``, which comes before the automatic order.  A
backend that was asked for and cannot run raises with its reason; the automatic order steps down and
says so once.

Where a GPU's kernels were measured, the automatic order begins with the faster ones
(``fastest.json``, written by ``python -m benchmarks.run --device cuda``): a committed file and no
timing at run time, which could choose otherwise, and so other bits, in the next run.
"""

import importlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kdistill import _native
from kdistill.errors import (
    BackendUnavailableError,
    ConfigError,
    NotDifferentiableError,
    ShapeError,
    did_you_mean,
)
from kdistill.ops._layout import Layouts, checker

BACKENDS = ("cpu", "cuda", "triton", "reference")
AUTOMATIC = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

FASTEST = Path(__file__).with_name("fastest.json")  # device -> op -> backend

_log = logging.getLogger("kdistill")
_asked: ContextVar[str | None] = ContextVar("kdistill_backend", default=None)
_LIB = torch.library.Library("kdistill", "FRAGMENT")
_chosen: dict[tuple[Any, ...], Callable[..., Any]] = {}
_checked: dict[
    tuple[Any, ...], Callable[..., Any]
] = {}  # the same, by sizes and strides too: these arguments were checked
_MOST_CHECKED = 4096
guarded: dict[
    str, Callable[..., Any]
] = {}  # every op that checks its arguments, behind torch's dispatcher


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the ``with`` block on one backend.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"triton"``, ``"reference"``, or ``"auto"`` for the automatic
            choice.

    Raises:
        ConfigError: The name is unknown.
        BackendUnavailableError: At the first op that this backend cannot run, with the reason.
    """
    token = _asked.set(_known(name, "use_backend"))
    try:
        yield
    finally:
        _asked.reset(token)


def _known(name: str, where: str) -> str:
    if name not in (*BACKENDS, "auto"):
        raise ConfigError(
            f"{where}: expected a backend, got '{name}'; {did_you_mean(name, [*BACKENDS, 'auto'])}"
        )
    return name


def asked_backend() -> str | None:
    """Return the backend asked for by ``use_backend`` or ``KDISTILL_BACKEND``, or None for the automatic choice."""
    name = _asked.get() or _known(os.environ.get("KDISTILL_BACKEND") or "auto", "KDISTILL_BACKEND")
    return None if name == "auto" else name


def module_of(name: str) -> str:
    """Return the file stem of an op function: ``norm_act_pool`` for ``norm_act_pool_bwd``."""
    return re.sub(r"(_fwd|_bwd_tangent|_bwd|_tangent|_and_grad|_weight_grad)?$", "", name)


def implementation(name: str, backend: str, args: tuple[Any, ...]) -> Callable[..., Any] | str:
    """Return the function that runs ``name`` on ``backend``, or the sentence that says why it cannot."""
    path = f"kdistill.backends.{backend}.{module_of(name)}"
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == path:
            return f"not written for {backend}; see docs/ops/{module_of(name)}.md"
        return f"cannot be imported: {error}"
    reason = module.supports(*args) if hasattr(module, "supports") else None
    if reason is not None:
        return cast("str", reason)
    found = cast("Callable[..., Any]", getattr(module, name))
    prepared = getattr(importlib.import_module(f"kdistill.backends.{backend}"), "prepared", None)
    return cast("Callable[..., Any]", prepared(found)) if prepared else found


def choose(name: str, args: tuple[Any, ...]) -> Callable[..., Any]:
    """Return the implementation of ``name`` for these arguments.

    Raises:
        BackendUnavailableError: Nothing can run it; carries every refusal.
    """
    asked = asked_backend()
    kinds = tuple((a.device, a.dtype) for a in args if isinstance(a, Tensor))
    key = (name, asked, _native.emulating(), kinds)
    if key not in _chosen:
        _chosen[key] = _walk(
            name,
            asked,
            next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu")),
            args,
        )
    return _chosen[key]


@cache
def measured() -> dict[str, dict[str, str]]:
    """Return, per GPU and op, the backend that was measured to be the fastest."""
    return json.loads(FASTEST.read_text())  # type: ignore[no-any-return]


def automatic_order(name: str, device: torch.device) -> tuple[str, ...]:
    """Return the backends to try for an op function on a device, the best first."""
    order = AUTOMATIC.get(device.type, ("reference",))
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    best = measured().get(model, {}).get(module_of(name))
    return (best, *(b for b in order if b != best)) if best in order else order


def _walk(
    name: str, asked: str | None, device: torch.device, args: tuple[Any, ...]
) -> Callable[..., Any]:
    order = (asked,) if asked else automatic_order(name, device)
    refusals: dict[str, str] = {}
    for backend in order:
        found = implementation(name, backend, args)
        if not isinstance(found, str):
            if refusals:
                _log.warning(
                    "%s runs on the %s backend: %s",
                    name,
                    backend,
                    "; ".join(f"{b} {why}" for b, why in refusals.items()),
                )
            return found
        refusals[backend] = found
    raise BackendUnavailableError(
        f"{name}: expected a backend that can run, got none ({_sentence(refusals)}); "
        "use another backend or see `kdistill doctor`",
        refusals,
    )


def _sentence(refusals: dict[str, str]) -> str:
    return "; ".join(f"{backend}: {why}" for backend, why in refusals.items())


def forget_choices() -> None:
    """Forget every cached choice (after the native modules or the environment changed)."""
    _chosen.clear()
    _checked.clear()


def _checking(name: str, layouts: Layouts, hint: str) -> Callable[..., Any]:
    """Return the op that checks its arguments, chooses a backend and runs; equal metadata are checked once."""
    check = checker(name, hint, layouts)

    def run(*args: Any) -> Any:
        key = (name, asked_backend(), _native.emulating(), *map(_metadata, args))
        found = _checked.get(key)
        if found is None:
            check(args)
            found = choose(name, args)
            if len(_checked) >= _MOST_CHECKED:
                _checked.clear()
            _checked[key] = found
        return found(*args)

    guarded[name] = run
    return run


def _metadata(value: Any) -> Any:
    if isinstance(value, Tensor):
        return type(value), value.shape, value.stride(), value.dtype, value.device
    return tuple(value) if isinstance(value, list) else value


def plain(name: str, layouts: Layouts | None = None) -> Callable[..., Any]:
    """An op that the engine alone calls: choose and run.  No torch.library, no autograd, grad order 0.

    Args:
        name: The function of the backends.
        layouts: The layouts of its tensors, checked before it runs; None where the public function
            has checked all of them.
    """
    checked = (
        None
        if layouts is None
        else _checking(name, layouts, "pass what the forward was given and returned")
    )

    def run(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            raise NotDifferentiableError(
                f"{name}: expected inputs without requires_grad; call it under torch.no_grad()"
            )
        return checked(*args) if checked else choose(name, args)(*args)

    run.__name__ = name
    return run


def register(
    name: str, schema: str, *, fake: Callable[..., Any], layouts: Layouts
) -> Callable[..., Any]:
    """An op that torch must know, because users differentiate or compile through it.

    Args:
        name: Registered as ``kdistill::<name>``.
        schema: Arguments and results in torch's schema language, functional (no in-place, no view).
        fake: The same arguments to outputs of the right shape, dtype and device, without touching
            data.
        layouts: The same arguments to the layouts of the tensors among them; anything else raises
            ShapeError.
    """
    hint = f"call kdistill.ops.{module_of(name)}, which converts what it is given"

    def on_one_device(*args: Any) -> Any:
        # torch comes here with one meta tensor among others too, and would return memory that
        # nothing has written
        devices = {a.device for a in args if isinstance(a, Tensor)}
        if len(devices) > 1:
            raise ShapeError(
                f"{name}: expected tensors on one device, got "
                f"{', '.join(sorted(map(str, devices)))}; {hint}"
            )
        return fake(*args)

    _LIB.define(name + schema)
    torch.library.register_fake(f"kdistill::{name}", on_one_device, lib=_LIB)
    run = _checking(name, layouts, hint)
    for key in ("CPU", "CUDA"):
        _LIB.impl(name, run, key)
    return cast("Callable[..., Any]", getattr(torch.ops.kdistill, name).default)


def fast_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return ``function.apply`` without the inspection of signatures that ``setup_context`` brings to every call (70 us).

    Calls that torch transforms (``torch.func``) or traces (``torch.compile``) go to ``function``
    itself, which they need.
    """

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = function.forward(*args)
            function.setup_context(ctx, args, output)
            return output

        backward = staticmethod(function.backward)

    def apply(*args: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return function.apply(*args)
        return Eager.apply(*args)

    return apply


def check_same_dtype_and_device(where: str, **tensors: Tensor) -> None:
    """Raise ShapeError unless all tensors share one dtype and one device."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ShapeError(
                f"{where}: expected {name} like {first_name} ({first.dtype} on {first.device}), "
                f"got {tensor.dtype} on "
                f"{tensor.device}; convert with .to({first_name})"
            )
