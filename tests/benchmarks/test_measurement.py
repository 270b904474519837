import time

import pytest
import torch

from benchmarks import measurement
from benchmarks.measurement import MIN_ROUNDS, Clock, CudaClock, Timing, interleaved, read_call


class FakeClock(Clock):
    def __init__(self):
        self.order = []

    def repeats(self, call):
        return 1

    def sample(self, call, repeats):
        self.order.append(call())
        return {"": float(len(self.order)), "launch": 0.5}


def test_a_timing_is_the_median_and_its_spread():
    timing = Timing.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (timing.median, timing.p20, timing.p80, timing.n) == (3.5, 2.0, 5.0, 6)


def test_everybody_starts_a_round_equally_often():
    clock = FakeClock()
    timed = interleaved({"a": lambda: "a", "b": lambda: "b"}, 0.0, clock)
    assert clock.order[:6] == ["a", "b", "b", "a", "a", "b"]
    assert timed["a"][""].n == timed["b"]["launch"].n == MIN_ROUNDS


def test_the_wall_clock_reports_milliseconds_per_call():
    calls = []
    timed = interleaved({"call": lambda: calls.append(torch.ones(1000).sum())}, 0.02, Clock())
    assert timed["call"][""].n >= MIN_ROUNDS
    assert len(calls) > timed["call"][""].n  # several calls behind one sample
    assert 0 < timed["call"][""].p20 <= timed["call"][""].median <= timed["call"][""].p80 < 100


def test_the_read_floor_reads_every_byte():
    value = read_call(4 * 1000, torch.device("cpu"))()
    assert value.item() in (1000.0, 1.0)  # a sum, or a maximum, of a thousand ones


class MadeUpGpu:
    """A stream that works off what is put on it, in real time: what a clock can see of a GPU."""

    CYCLES_PER_MS = 1e6

    def __init__(self):
        self.idle_at = 0.0

    def run(self, ms):
        self.idle_at = max(time.perf_counter(), self.idle_at) + ms / 1e3

    def _sleep(self, cycles):
        self.run(cycles / self.CYCLES_PER_MS)

    def synchronize(self):
        while time.perf_counter() < self.idle_at:
            pass

    def Event(self, enable_timing):
        return MadeUpEvent(self)


class MadeUpEvent:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.at = max(time.perf_counter(), self.gpu.idle_at)

    def query(self):
        return time.perf_counter() >= self.at

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


def busy(ms):
    until = time.perf_counter() + ms / 1e3
    while time.perf_counter() < until:
        pass


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(measurement, "L2_FLUSH_NBYTES", 1 << 10)
    return MadeUpGpu()


def test_the_gpu_clock_does_not_take_launching_for_kernels(gpu):
    def call():  # two kernels of 0.2 ms, and 3 ms of Python around them
        gpu.run(0.2)
        busy(3.0)
        gpu.run(0.2)

    timed = interleaved({"call": call}, 0.02, CudaClock(torch.device("cpu"), gpu))["call"]
    assert timed[""].p20 == pytest.approx(
        0.4, rel=0.05
    )  # a busy machine may launch some of them late
    assert timed["launch"].median >= 3.0


def test_a_call_that_waits_for_the_gpu_is_timed_as_it_runs(gpu):
    def call():
        gpu.run(0.5)
        gpu.synchronize()
        busy(1.0)

    clock = CudaClock(torch.device("cpu"), gpu)
    timed = interleaved({"call": call}, 0.02, clock)["call"]
    assert clock.holds[call] == 0.0
    assert timed[""].median >= 1.4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: events need one")
def test_the_gpu_clock_separates_launch_from_execution():
    device = torch.device("cuda")
    x = torch.ones(1 << 24, device=device)
    timed = interleaved({"add": lambda: x + 1}, 0.05, CudaClock(device))
    assert timed["add"][""].median > 0
    assert timed["add"]["launch"].median > 0
