"""The benchmark of one op: every backend and peer is checked against the float64 reference, then timed beside the others."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks._measure import Call, Clock, Timing, clock_of, copy_call, interleaved, read_call
from benchmarks._table import COPY, READ
from kdistill import ops
from kdistill.errors import KDistillError
from kdistill.ops import _registry
from kdistill.testing.cases import OpCase, Shape
from kdistill.testing.tolerance import assert_close_enough, to_float64


@dataclass(frozen=True)
class Result:
    """One contestant's outcome: a timing by what was read ("" the time, "launch" the CPU's part), or a status."""

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
    function: Callable[..., Tensor]
    backend: str | None  # to choose inside the op; None for a peer

    def scope(self) -> Any:
        return nullcontext() if self.backend is None else ops.use_backend(self.backend)


def contestants(case: OpCase, device: torch.device) -> list[Contestant]:
    """Return the backends that run on this device, then plain PyTorch, then the peers."""
    backends = [b for b in _registry.AUTOMATIC[device.type] if b != "reference"]
    found = [Contestant(b, case.op, b) for b in backends]
    if case.reference not in case.peers.values():
        found.append(Contestant("reference", case.reference, None))
    return found + [Contestant(name, function, None) for name, function in case.peers.items()]


def metrics(case: OpCase) -> dict[str, tuple[tuple[int, ...], Callable[[Shape, int], float] | None]]:
    """Return, by name, in which inputs a metric takes gradients and the least bytes it moves (None: not stated)."""
    found: dict[str, Any] = {"forward": ((), None if case.grad_order else case.bytes)}
    if case.grad_order:
        found["forward_backward"] = (case.differentiable, case.bytes)
    return found | {name: (bench.differentiable, bench.bytes) for name, bench in case.benches.items()}


def verdict(case: OpCase, shape: Shape, contestant: Contestant, inputs: tuple[Any, ...], known: list[tuple[Tensor, ...]]) -> str:
    """Return "ok", "wrong: ..." by the tolerance rule, or "cannot run: ..."; ``known`` is [truth, eager]."""
    truth, eager = known
    try:
        with contestant.scope():
            got = case.with_gradients(contestant.function, inputs, seed=1) if case.grad_order else (contestant.function(*inputs),)
        for i, (ours, same, true) in enumerate(zip(got, eager, truth, strict=True)):
            assert_close_enough(ours.cpu(), same, true, case.depth(shape), f"{contestant.name} output {i}")
    except AssertionError as error:
        return f"wrong: {error}"
    except (KDistillError, RuntimeError, NotImplementedError) as error:
        return f"cannot run: {str(error).splitlines()[0]}"
    return "ok"


def truth_of(case: OpCase, shape: Shape, inputs: tuple[Any, ...]) -> list[tuple[Tensor, ...]]:
    """Return value and gradients of the reference in float64 and in the dtype of the inputs, on the CPU."""
    here = tuple(x.cpu() if isinstance(x, Tensor) else x for x in inputs)
    pair = (to_float64(here), here)
    if not case.grad_order:
        return [(case.reference(*values),) for values in pair]
    return [case.with_gradients(case.reference, values, seed=1) for values in pair]


def bound(case: OpCase, contestant: Contestant, inputs: tuple[Any, ...], wrt: tuple[int, ...]) -> Call:
    """Return the call to time: forward, or forward and the gradients in the inputs ``wrt``."""
    if not wrt:

        def forward() -> object:
            with torch.no_grad(), contestant.scope():
                return contestant.function(*inputs)

        return forward
    leaves = [x.detach().clone() if i in wrt else x for i, x in enumerate(inputs)]
    wanted = [leaves[i].requires_grad_() for i in wrt]
    with torch.no_grad():
        cotangent = torch.ones_like(contestant.function(*inputs))

    def forward_backward() -> object:
        with contestant.scope():
            return torch.autograd.grad(contestant.function(*leaves), wanted, cotangent)

    return forward_backward


def run_op(
    case: OpCase, device: torch.device, dtype: torch.dtype, seconds: float, quick: bool, check_only: bool
) -> Iterator[Result]:
    """Yield a result per shape, metric and contestant, the bandwidth floors among them."""
    clock = clock_of(device)
    for shape in case.bench_shapes[:1] if quick else case.bench_shapes:
        inputs = case.inputs(shape, seed=0, dtype=dtype, device=str(device))
        known = truth_of(case, shape, inputs)
        verdicts = {c: verdict(case, shape, c, inputs, known) for c in contestants(case, device)}
        del known
        for metric, (wrt, nbytes) in metrics(case).items():
            common = (str(shape), str(dtype).removeprefix("torch."), metric)
            for contestant, status in verdicts.items():
                if status != "ok" or check_only:
                    yield Result(case.name, contestant.name, *common, status)
            if check_only:
                break
            calls = {c.name: bound(case, c, inputs, wrt) for c, status in verdicts.items() if status == "ok"}
            moved = None if nbytes is None else nbytes(shape, dtype.itemsize)
            yield from _timed(case.name, common, calls, moved, device, seconds, clock)


def _timed(
    op: str, common: tuple[str, str, str], calls: dict[str, Call], nbytes: float | None, device: torch.device, seconds: float,
    clock: Clock,
) -> Iterator[Result]:  # fmt: skip
    floors = {} if not nbytes else {COPY: copy_call(int(nbytes), device), READ: read_call(int(nbytes), device)}
    timed = interleaved(calls | floors, seconds, clock)
    copy = timed[COPY][""].median if floors else None
    shape, dtype, metric = common
    for name, readings in timed.items():
        for what, timing in readings.items():
            percent = 100 * copy / timing.median if copy and not what else None
            named = f"{metric}_{what}" if what else metric
            yield Result(op, name, shape, dtype, named, "ok", timing, percent)
