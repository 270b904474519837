"""Times by graph replay over rotated inputs, and the kernels that a call launches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.measurement import Clock, interleaved

CACHE_NBYTES = 256 << 20  # inputs together are larger than the cache of any GPU of today
MOST_COPIES = 32
REPLAYS = 5


def nbytes(values: Any) -> int:
    """Return the bytes of all tensors in a nest of tuples and lists."""
    if isinstance(values, Tensor):
        return values.numel() * values.element_size()
    return sum(map(nbytes, values)) if isinstance(values, tuple | list) else 0


def copies(inputs: tuple[Any, ...], is_tiny: bool) -> list[tuple[Any, ...]]:
    """Return the inputs and enough copies for every call to read memory and not the cache."""
    wanted = 2 if is_tiny else max(2, min(MOST_COPIES, CACHE_NBYTES // max(1, nbytes(inputs)) + 1))
    return [tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs) for _ in range(wanted)]


def replayed_ms(
    function: Callable[..., object], rotated: Sequence[tuple[Any, ...]], device: torch.device
) -> float:
    """Return milliseconds per call: of the kernels alone on a GPU, of plain calls elsewhere."""

    def every_call() -> None:
        for inputs in rotated:
            function(*inputs)

    if device.type != "cuda":
        return interleaved({"": every_call}, 0.01, Clock())[""][""].median / len(rotated)
    here, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for _ in range(2):
            every_call()
    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=aside):
            every_call()
    finally:
        torch.cuda.set_stream(here)
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    before.record()
    for _ in range(REPLAYS):
        graph.replay()
    after.record()
    torch.cuda.synchronize(device)
    return before.elapsed_time(after) / (REPLAYS * len(rotated))


class Kernel(NamedTuple):
    name: str
    start: float  # microseconds
    end: float


def kernels_of(call: Callable[[], object], device: torch.device) -> list[Kernel]:
    """Return what ran on the device in one call, in order; on a CPU torch's operators."""
    call()
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    events = [e for e in profiled.events() or () if e.device_type == kind]
    return sorted(
        (Kernel(e.name, e.time_range.start, e.time_range.end) for e in events),
        key=lambda k: k.start,
    )


def busy_us(kernels: Sequence[Kernel]) -> float:
    """Return the time in which at least one kernel ran."""
    total, until = 0.0, float("-inf")
    for kernel in kernels:
        total += max(0.0, kernel.end - max(kernel.start, until))
        until = max(until, kernel.end)
    return total


def by_name(kernels: Sequence[Kernel], most: int = 12) -> Iterator[tuple[str, int, float]]:
    """Yield (name, how often, microseconds), the longest together first."""
    durations: dict[str, list[float]] = {}
    for kernel in kernels:
        durations.setdefault(kernel.name[:120], []).append(kernel.end - kernel.start)
    ordered = sorted(durations.items(), key=lambda item: -sum(item[1]))
    yield from ((name, len(times), round(sum(times), 1)) for name, times in ordered[:most])
