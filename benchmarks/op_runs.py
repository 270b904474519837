"""The benchmark of one op.

Every backend and peer is checked against the float64 reference, then timed beside the others.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measurement import Call, Clock, Timing, clock_of, copy_call, interleaved, read_call
from benchmarks.result_rows import COPY, READ
from kdistill import ops
from kdistill.ops import AUTOMATIC_ORDER, automatic_order, requested_backend
from kdistill.testing.cases import OpCase, Shape, as_tuple
from kdistill.testing.tolerance import assert_close_enough, to_float64


@dataclass(frozen=True)
class Result:
    """One contestant's outcome: a timing by reading ("" or "launch" of the CPU), or a status."""

    op: str
    backend: str
    shape: str
    dtype: str
    metric: str
    status: str
    timing: Timing | None = None
    percent_of_copy: float | None = None
    unit: str = "ms"


@dataclass(frozen=True)
class Contestant:
    name: str
    function: Callable[..., Any]
    backend: str | None  # to choose inside the op; None for a peer
    has_gradients: bool = False  # the function returns them itself, for a cotangent of ones

    def scope(self, *, automatic: str | None = None) -> Any:
        """Return the context of a call; an empty one where the backend is chosen automatically."""
        return nullcontext() if self.backend in (None, automatic) else ops.use_backend(self.backend)


def contestants(case: OpCase, device: torch.device) -> list[Contestant]:
    """Return the backends that run on this device, then plain PyTorch, then the peers."""
    backends = [b for b in AUTOMATIC_ORDER[device.type] if b != "reference"]
    found = [Contestant(b, case.op, b) for b in backends]
    if case.reference not in case.peers.values():
        found.append(Contestant("reference", case.reference, None))
    return found + [Contestant(name, function, None) for name, function in case.peers.items()]


@dataclass(frozen=True)
class Metric:
    wrt: tuple[int, ...]  # positions of the inputs that gradients are taken in
    bytes: Callable[[Shape, int], float] | None  # moved at the least; None: not stated
    extra: tuple[Contestant, ...] = ()  # that only this metric has


def metrics(case: OpCase, device: torch.device) -> dict[str, Metric]:
    """Return, by name, what to time."""
    found = {"forward": Metric((), None if case.grad_order else case.bytes)}
    if case.grad_order:
        found["forward_backward"] = Metric(case.differentiable, case.bytes)
    for name, bench in case.benches.items():
        entry = bench.without_graph
        ours = [b for b in AUTOMATIC_ORDER[device.type] if b != "reference" and entry]
        extra = tuple(
            Contestant(f"{b} without graph", entry, b, has_gradients=True) for b in ours if entry
        )
        found[name] = Metric(bench.differentiable, bench.bytes, extra)
    return found


Known = Callable[
    [bool], list[tuple[Tensor, ...]]
]  # whether for a cotangent of ones -> [eager, truth]


def outputs(
    case: OpCase, contestant: Contestant, inputs: tuple[Any, ...], wrt: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Return value and gradients for a random cotangent.

    Where the function returns gradients itself, the cotangent is ones.
    """
    with contestant.scope():
        if contestant.has_gradients:
            return tuple(contestant.function(*inputs))
        if wrt:
            return case.with_gradients(contestant.function, inputs, seed=1, wrt=wrt)
        return as_tuple(contestant.function(*inputs))


def verdict(
    case: OpCase,
    shape: Shape,
    contestant: Contestant,
    inputs: tuple[Any, ...],
    wrt: tuple[int, ...],
    known: Known,
) -> str:
    """Return "ok", "wrong: ..." by the tolerance rule, or "cannot run: ..."."""

    def compare() -> str:
        got = outputs(case, contestant, inputs, wrt)
        for i, (ours, same, true) in enumerate(
            zip(got, *known(contestant.has_gradients), strict=True)
        ):
            assert_close_enough(
                ours.cpu(), same, true, case.depth(shape), f"{contestant.name} output {i}"
            )
        return "ok"

    return tried(compare)


def tried(check: Callable[[], str]) -> str:
    """Return the result of a check, or the reason why the contestant cannot run here."""
    try:
        return check()
    except AssertionError as error:
        return f"wrong: {error}"
    except Exception as error:  # compilers and libraries raise of their own
        return f"cannot run: {(str(error).splitlines() or [type(error).__name__])[0]}"


def reference_results(
    case: OpCase, inputs: tuple[Any, ...], wrt: tuple[int, ...], of_ones: bool
) -> list[tuple[Tensor, ...]]:
    """Return value and gradients of the reference on the CPU.

    They are taken in the dtype of the inputs (eager) and in float64 (truth).
    """
    here = tuple(x.cpu() if isinstance(x, Tensor) else x for x in inputs)
    found = []
    for values in (here, to_float64(here)):
        if of_ones:
            leaves = [x.detach().clone() if i in wrt else x for i, x in enumerate(values)]
            wanted = [leaves[i].requires_grad_() for i in wrt]
            out = case.reference(*leaves)
            found.append((out.detach(), *torch.autograd.grad(out, wanted, torch.ones_like(out))))
        else:
            found.append(outputs(case, Contestant("", case.reference, None), values, wrt))
    return found


def bound(
    case: OpCase, contestant: Contestant, inputs: tuple[Any, ...], wrt: tuple[int, ...]
) -> Call:
    """Return the call to time: forward, or forward and the gradients in the inputs ``wrt``."""
    device = next(x.device for x in inputs if isinstance(x, Tensor))
    automatic = automatic_order(case.name, device)[0] if requested_backend() is None else None
    scope = partial(contestant.scope, automatic=automatic)
    if not wrt or contestant.has_gradients:

        def forward() -> object:
            with torch.no_grad(), scope():
                return contestant.function(*inputs)

        return forward
    leaves = [x.detach().clone() if i in wrt else x for i, x in enumerate(inputs)]
    wanted = [leaves[i].requires_grad_() for i in wrt]
    with torch.no_grad():
        cotangent = torch.ones_like(contestant.function(*inputs))

    def forward_backward() -> object:
        with scope():
            return torch.autograd.grad(contestant.function(*leaves), wanted, cotangent)

    return forward_backward


def run_op(
    case: OpCase,
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
    quick: bool,
    check_only: bool,
) -> Iterator[Result]:
    """Yield a result per shape, metric and contestant, the bandwidth floors among them."""
    clock = clock_of(device)
    for shape in case.bench_shapes[:1] if quick else case.bench_shapes:
        inputs = case.inputs(shape, seed=0, dtype=dtype, device=str(device))
        for metric, what in metrics(case, device).items():
            if check_only and not what.wrt and case.grad_order:
                continue  # the next metric checks the value too
            common = (str(shape), str(dtype).removeprefix("torch."), metric)
            known = cache(partial(reference_results, case, inputs, what.wrt))
            calls: dict[str, Call] = {}
            for contestant in [*contestants(case, device), *what.extra]:
                status = verdict(case, shape, contestant, inputs, what.wrt, known)
                if status == "ok":
                    calls[contestant.name] = bound(case, contestant, inputs, what.wrt)
                if status != "ok" or check_only:
                    yield Result(case.name, contestant.name, *common, status)
            known.cache_clear()
            moved = None if what.bytes is None else what.bytes(shape, dtype.itemsize)
            if not check_only:
                yield from _timed(case.name, common, calls, moved, device, seconds, clock)


def _timed(
    op: str,
    common: tuple[str, str, str],
    calls: dict[str, Call],
    nbytes: float | None,
    device: torch.device,
    seconds: float,
    clock: Clock,
) -> Iterator[Result]:
    floors = (
        {}
        if not nbytes
        else {COPY: copy_call(int(nbytes), device), READ: read_call(int(nbytes), device)}
    )
    timed = interleaved(calls | floors, seconds, clock)
    copy = timed[COPY][""].median if floors else None
    shape, dtype, metric = common
    for name, readings in timed.items():
        for what, timing in readings.items():
            percent = 100 * copy / timing.median if copy and not what else None
            named = f"{metric}_{what}" if what else metric
            yield Result(op, name, shape, dtype, named, "ok", timing, percent)
