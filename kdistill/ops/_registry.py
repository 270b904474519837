"""Which backend runs an op, and why the others do not.

``use_backend(...)`` comes before ``KDISTILL_BACKEND``, which comes before the automatic order.  A
backend that was requested and cannot run raises with its reason; the automatic order steps down and
logs it once.

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
from kdistill.ops._layout import Declaration, Declared

BACKENDS = ("cpu", "cuda", "triton", "reference")
AUTOMATIC_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

FASTEST = Path(__file__).with_name("fastest.json")  # device -> op -> backend

_log = logging.getLogger("kdistill")
_requested: ContextVar[str | None] = ContextVar("kdistill_backend", default=None)
_LIB = torch.library.Library("kdistill", "FRAGMENT")
_chosen: dict[tuple[Any, ...], Callable[..., Any]] = {}
# the same, by sizes and strides too: these arguments were checked
_checked: dict[tuple[Any, ...], Callable[..., Any]] = {}
_MOST_CHECKED = 4096
# every op behind torch's dispatcher, with the check of its arguments
guarded: dict[str, Callable[..., Any]] = {}


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
    token = _requested.set(_known(name, "use_backend"))
    try:
        yield
    finally:
        _requested.reset(token)


def _known(name: str, where: str) -> str:
    if name not in (*BACKENDS, "auto"):
        raise ConfigError(
            f"{where}: expected a backend, got '{name}'; {did_you_mean(name, [*BACKENDS, 'auto'])}"
        )
    return name


def requested_backend() -> str | None:
    """Return the backend of ``use_backend`` or ``KDISTILL_BACKEND``; None if it is automatic."""
    name = _requested.get() or _known(
        os.environ.get("KDISTILL_BACKEND") or "auto", "KDISTILL_BACKEND"
    )
    return None if name == "auto" else name


def op_of(name: str) -> str:
    """Return the op of a function of backends: ``norm_act_pool`` for ``norm_act_pool_bwd``."""
    return re.sub(r"(_fwd|_bwd_tangent|_bwd|_tangent|_and_grad|_weight_grad)?$", "", name)


def implementation(name: str, backend: str, args: tuple[Any, ...]) -> Callable[..., Any] | str:
    """Return the function that runs ``name`` on ``backend``, or why it cannot."""
    path = f"kdistill.backends.{backend}.{op_of(name)}"
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == path:
            return f"not written for {backend}; see docs/ops/{op_of(name)}.md"
        return f"cannot be imported: {error}"
    package: Any = importlib.import_module(f"kdistill.backends.{backend}")
    function = getattr(module, name)
    if hasattr(package, "prepared"):
        function = package.prepared(function)
    return cast("Callable[..., Any] | str", package.supports(*args) or function)


def choose(name: str, args: tuple[Any, ...]) -> Callable[..., Any]:
    """Return the implementation of ``name`` for these arguments.

    Raises:
        BackendUnavailableError: Nothing can run it; carries every refusal.
    """
    requested = requested_backend()
    kinds = tuple((a.device, a.dtype) for a in args if isinstance(a, Tensor))
    key = (name, requested, _native.emulating(), kinds)
    if key not in _chosen:
        device = kinds[0][0] if kinds else torch.device("cpu")
        _chosen[key] = _first_that_runs(name, requested, device, args)
    return _chosen[key]


@cache
def measured() -> dict[str, dict[str, str]]:
    """Return, per GPU and op, the backend that was measured to be the fastest."""
    return json.loads(FASTEST.read_text())  # type: ignore[no-any-return]


def automatic_order(name: str, device: torch.device) -> tuple[str, ...]:
    """Return the backends to try for an op function on a device, the best first."""
    order = AUTOMATIC_ORDER.get(device.type, ("reference",))
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    best = measured().get(model, {}).get(op_of(name))
    return (best, *(b for b in order if b != best)) if best in order else order


def _first_that_runs(
    name: str, requested: str | None, device: torch.device, args: tuple[Any, ...]
) -> Callable[..., Any]:
    order = (requested,) if requested else automatic_order(name, device)
    refusals: dict[str, str] = {}
    for backend in order:
        function = implementation(name, backend, args)
        if not isinstance(function, str):
            if refusals:
                reasons = "; ".join(f"{b} {why}" for b, why in refusals.items())
                _log.warning("%s runs on the %s backend: %s", name, backend, reasons)
            return function
        refusals[backend] = function
    reasons = "; ".join(f"{b}: {why}" for b, why in refusals.items())
    raise BackendUnavailableError(
        f"{name}: expected a backend that can run, got none ({reasons}); use another backend or "
        "see `kdistill doctor`",
        refusals,
    )


def forget_choices() -> None:
    """Forget every cached choice (after the native modules or the environment changed)."""
    _chosen.clear()
    _checked.clear()


def _checking(name: str, declared: Declared) -> Callable[..., Any]:
    """Return the op that checks its arguments, chooses a backend and runs.

    Arguments of equal metadata are checked once.
    """

    def run(*args: Any) -> Any:
        key = (name, requested_backend(), _native.emulating(), *map(_metadata, args))
        function = _checked.get(key)
        if function is None:
            declared.check(args)
            function = declared.grouped(choose(name, args), args)
            if len(_checked) >= _MOST_CHECKED:
                _checked.clear()
            _checked[key] = function
        return function(*args)

    guarded[name] = run
    return run


def _metadata(value: Any) -> Any:
    if isinstance(value, Tensor):
        return type(value), value.shape, value.stride(), value.dtype, value.device
    return tuple(value) if isinstance(value, list) else value


def plain(name: str, declare: Declaration, hint: str = "") -> Callable[..., Any]:
    """Return an op that the engine alone calls: check, choose, run; no autograd, grad order 0.

    Args:
        name: The function of the backends.
        declare: Its parameters to the layouts of the tensors among them.
        hint: What to do about tensors that do not fit, where the declaration does not say.
    """
    checked = _checking(name, Declared(name, hint or _call_the_op(name), declare))

    def run(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            raise NotDifferentiableError(
                f"{name}: expected inputs without requires_grad; call it under torch.no_grad()"
            )
        return checked(*args)

    run.__name__ = name
    return run


def register(name: str, declare: Declaration, *, outputs: int = 1) -> Callable[..., Any]:
    """Return an op that torch knows, because users differentiate or compile through it.

    Args:
        name: Registered as ``kdistill::<name>``.
        declare: Its parameters to the layouts of the tensors among them and of the results.  Their
            annotations are the schema, which is functional: no argument changes, no result is a
            view.  Anything else raises ShapeError.
        outputs: Number of results.
    """
    declared = Declared(name, _call_the_op(name), declare)

    def fake(*args: Any) -> Any:
        # torch comes here with one meta tensor among others too, and would return memory that
        # nothing has written
        devices = {a.device for a in args if isinstance(a, Tensor)}
        if len(devices) > 1:
            raise ShapeError(
                f"{name}: expected tensors on one device, got "
                f"{', '.join(sorted(map(str, devices)))}; {declared.hint}"
            )
        return declared.empty(args)

    _LIB.define(f"{name}({declared.schema}) -> ({', '.join(['Tensor'] * outputs)})")
    torch.library.register_fake(f"kdistill::{name}", fake, lib=_LIB)
    run = _checking(name, declared)
    for key in ("CPU", "CUDA"):
        _LIB.impl(name, run, key)
    return cast("Callable[..., Any]", getattr(torch.ops.kdistill, name).default)


def _call_the_op(name: str) -> str:
    return f"call kdistill.ops.{op_of(name)}, which converts its arguments"


def fast_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return ``function.apply`` without its inspection of signatures, 70 us in every call.

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
