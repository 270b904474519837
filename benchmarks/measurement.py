"""Timing of contestants in one process, all in every round, so that noise meets them alike."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SAMPLE_MS = 2.0  # a sample of a faster call is the mean of as many calls as fill this
WARM_BELOW_MS = 50.0  # slower calls are their own warm-up
MIN_ROUNDS, MAX_ROUNDS = 7, 400
L2_FLUSH_NBYTES = 256 << 20  # more than the cache of any GPU of today
HOLD_MS, LONGEST_HOLD_MS = (
    1.0,
    50.0,
)  # for which a GPU is held up, so that a call is launched before its first kernel runs
CYCLES = 1_000_000  # of the hold-up that is timed once

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: the median and the 20th and 80th percentile of ``n`` samples."""

    median: float
    p20: float
    p80: float
    n: int

    @staticmethod
    def of(samples: Sequence[float]) -> "Timing":
        ordered = sorted(samples)

        def at(q: float) -> float:
            position = q * (len(ordered) - 1)
            low = int(position)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (position - low) * (ordered[high] - ordered[low])

        return Timing(at(0.5), at(0.2), at(0.8), len(ordered))


def interleaved(
    calls: dict[str, Call], seconds: float, clock: "Clock"
) -> dict[str, dict[str, Timing]]:
    """Time every call in every round, rotating the order, for about ``seconds`` per call.

    Returns:
        By name of the call, by what the clock reads (``""`` for the time itself, ``"launch"`` for
        the CPU's part on a GPU).
    """
    repeats = {name: clock.repeats(call) for name, call in calls.items()}
    names, samples = list(calls), {name: {} for name in calls}
    end, rounds = time.perf_counter() + seconds * len(calls), 0
    gc.collect()
    gc.disable()
    try:
        while rounds < MIN_ROUNDS or (time.perf_counter() < end and rounds < MAX_ROUNDS):
            shift = rounds % len(names)
            for name in names[shift:] + names[:shift]:
                for what, ms in clock.sample(calls[name], repeats[name]).items():
                    samples[name].setdefault(what, []).append(ms)
            rounds += 1
    finally:
        gc.enable()
    return {
        name: {what: Timing.of(values) for what, values in of.items()}
        for name, of in samples.items()
    }


class Clock:
    """Wall clock of the CPU.

    Before every sample one call that is not counted brings data, code and threads back.
    """

    def repeats(self, call: Call) -> int:
        call()
        start = time.perf_counter()
        call()
        ms = (time.perf_counter() - start) * 1e3
        return 0 if ms > WARM_BELOW_MS else max(1, int(SAMPLE_MS / max(ms, 1e-4)))

    def sample(self, call: Call, repeats: int) -> dict[str, float]:
        if repeats:
            call()
        count = max(1, repeats)
        start = time.perf_counter()
        for _ in range(count):
            call()
        return {"": (time.perf_counter() - start) * 1e3 / count}


class CudaClock(Clock):
    """Events on the current stream, around kernels that are launched before the first one runs.

    Before every call the L2 cache is overwritten and the stream is held up for longer than the CPU
    takes to launch the call, so the events see the kernels; ``launch`` is the CPU's part.  A call
    that waits for the GPU, or takes longer to launch than the longest hold-up, is timed as it runs,
    without one."""

    def __init__(self, device: torch.device, gpu: Any = torch.cuda):
        self.gpu = gpu
        self.flush = torch.empty(L2_FLUSH_NBYTES, dtype=torch.uint8, device=device)
        self.holds: dict[Call, float] = {}
        gpu._sleep(CYCLES)
        before, after = (gpu.Event(enable_timing=True) for _ in range(2))
        before.record()
        gpu._sleep(CYCLES)
        after.record()
        gpu.synchronize()
        self.cycles_per_ms = CYCLES / before.elapsed_time(after)

    def repeats(self, call: Call) -> int:
        for _ in range(3):
            call()
        self.gpu.synchronize()
        hold = HOLD_MS
        while hold <= LONGEST_HOLD_MS:
            _, launch, was_late = self._timed(call, hold)
            if not was_late:
                break
            hold = 2 * max(hold, launch)
        self.holds[call] = hold if hold <= LONGEST_HOLD_MS else 0.0
        return 1

    def sample(self, call: Call, repeats: int) -> dict[str, float]:
        ms, launch, was_late = self._timed(call, self.holds[call])
        if (
            was_late and self.holds[call]
        ):  # the GPU's clock has risen since, or the CPU was disturbed
            self.holds[call] = min(2 * self.holds[call], LONGEST_HOLD_MS)
            ms, launch, _ = self._timed(call, self.holds[call])
        return {"": ms, "launch": launch}

    def _timed(self, call: Call, hold: float) -> tuple[float, float, bool]:
        """Return milliseconds of kernels and launch, and whether the launch outlasted the delay."""
        before, after = (self.gpu.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        if hold:
            self.gpu._sleep(int(hold * self.cycles_per_ms))
        before.record()
        start = time.perf_counter()
        call()
        launch = (time.perf_counter() - start) * 1e3
        was_late = before.query()
        after.record()
        self.gpu.synchronize()
        return before.elapsed_time(after), launch, was_late


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else Clock()


def copy_call(nbytes: int, device: torch.device) -> Call:
    """Return a copy that moves ``nbytes`` in total, half read, half written, without allocating."""
    source = torch.ones(max(1, int(nbytes) // 8), dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def read_call(nbytes: int, device: torch.device) -> Call:
    """Return the fastest of PyTorch's reductions that read an array of ``nbytes`` once."""
    array = torch.ones(max(1, int(nbytes) // 4), dtype=torch.float32, device=device)

    def total() -> Tensor:
        return array.sum()

    def largest() -> Tensor:
        return array.amax()

    def squares() -> Tensor:
        return torch.dot(array, array)

    timed = interleaved({f.__name__: f for f in (total, largest, squares)}, 0.2, clock_of(device))
    return {f.__name__: f for f in (total, largest, squares)}[
        min(timed, key=lambda name: timed[name][""].median)
    ]
