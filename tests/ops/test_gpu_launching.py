"""The GPU and stream that kernels are launched on, with a made-up `torch.cuda`."""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses import FakeTensorMode

from kdistill.backends import triton as triton_backend
from kdistill.ops import _capture, _registry


class Gpus:
    """The calls of ``torch.cuda`` that decide where a launch goes."""

    def __init__(self):
        self.device, self.streams, self.recorded_on = 0, ["default"], []
        self.watching, self.ended = "default", []

    @contextmanager
    def use(self, device):
        before, self.device = self.device, torch.device(device).index
        yield
        self.device = before

    @contextmanager
    def stream(self, stream):
        self.streams.append(stream)
        yield
        self.streams.pop()

    def new_stream(self):
        return Stream(self.device)

    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        return Recording(self, stream)

    def watch(self, mode):
        self.watching = mode


class Stream:
    def __init__(self, device):
        self.device = device

    def wait_stream(self, other):
        """Nothing runs here."""


class Recording:
    """Like torch's: where ending the recording fails, its stream stays the current one."""

    def __init__(self, gpus, stream):
        self.gpus, self.stream = gpus, stream

    def __enter__(self):
        self.gpus.recorded_on.append(self.stream)
        self.gpus.streams.append(self.stream)

    def __exit__(self, kind, *_):
        if kind is not None:
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )
        self.gpus.streams.pop()


@pytest.fixture
def gpus(monkeypatch):
    made = Gpus()
    replaced = {
        "device": made.use, "current_device": lambda: made.device,
        "stream": made.stream, "Stream": made.new_stream,
        "current_stream": lambda: made.streams[-1], "CUDAGraph": object, "graph": made.graph,
        "set_stream": lambda stream: made.streams.append(stream),
        "graph_pool_handle": lambda: (0, 7),
        "get_sync_debug_mode": lambda: made.watching, "set_sync_debug_mode": made.watch,
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(
        torch._C, "_cuda_endAllocateToPool", lambda *pool: made.ended.append(pool), raising=False
    )
    default = Stream(0)
    made.streams = [default]
    return made


def tensor_on(device):
    with FakeTensorMode():
        return torch.empty(2, device=device)


def test_triton_launches_on_the_gpu_of_its_tensors(gpus):
    launch = triton_backend.prepared(lambda *args: gpus.device)
    assert launch(2.0, tensor_on("cuda:1")) == 1
    assert launch(tensor_on("cuda:0")) == 0
    assert launch(torch.empty(2)) == 0
    assert gpus.device == 0


@pytest.fixture
def triton_driver(monkeypatch):
    """Return a stand-in for Triton's driver, and forget what was said of the real one."""
    runtime = pytest.importorskip("triton.runtime")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    made = type(
        "Driver",
        (),
        {"active": type("Active", (), {"get_current_target": staticmethod(lambda: "cuda:90")})},
    )
    monkeypatch.setattr(runtime, "driver", made)
    triton_backend.why_no_launch.cache_clear()
    yield made
    triton_backend.why_no_launch.cache_clear()


def test_triton_is_asked_whether_it_can_launch(triton_driver, monkeypatch):
    assert triton_backend.supports(tensor_on("cuda:0")) is None

    def no_compiler():
        raise RuntimeError(
            "Failed to find C compiler.\nPlease specify via CC environment variable."
        )

    triton_driver.active.get_current_target = no_compiler
    why = triton_backend.supports(tensor_on("cuda:1"))
    assert (
        why == "Triton cannot use its driver: Failed to find C compiler. "
        "Please specify via CC environment variable."
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    why = triton_backend.supports(tensor_on("cuda:2"))
    assert why == "the GPU has compute capability 7.5; Triton needs 8.0 or newer"


def test_the_registry_hands_out_prepared_launches(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    function = _registry.implementation("step_with_dots", "triton", (torch.empty(2),))
    assert function.__wrapped__.__module__ == "kdistill.backends.triton.step_with_dots"


def test_a_graph_is_recorded_on_a_stream_of_its_own_device(gpus):
    _capture._record_cuda(lambda: (), torch.device("cuda:1"))
    (stream,) = gpus.recorded_on
    assert stream is not None and stream.device == 1


def test_the_stream_comes_back_after_a_recording_that_fails(gpus):
    calls = []

    def refuses_to_be_recorded():
        calls.append(None)
        if len(calls) > _capture.WARM_UPS:
            raise RuntimeError("operation not permitted when stream is capturing")
        return ()

    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        _capture._record_cuda(refuses_to_be_recorded, torch.device("cuda:0"))
    assert torch.cuda.current_stream() is before
    assert gpus.ended == [(0, (0, 7))]  # what torch before 2.12 leaves open


def test_what_waits_for_the_gpu_is_found_before_it_spoils_a_recording(gpus):
    def waits():
        if gpus.watching == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return ()

    with pytest.raises(RuntimeError, match="synchronizing"):
        _capture._record_cuda(waits, torch.device("cuda:0"))
    assert (gpus.recorded_on, gpus.watching) == ([], "default")


def test_an_error_without_a_message_is_a_reason_too(monkeypatch):
    def refuses(function, device):
        raise RuntimeError

    x = torch.ones(2)
    recording, outputs = _capture._recorded(refuses, lambda x: (2 * x,), [x], x.device)
    assert recording == "RuntimeError"
    assert torch.equal(outputs[0], 2 * x)
