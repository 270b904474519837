"""Recording the kernels of a long computation once and replaying them, as a CUDA graph.

The computation gets its inputs in buffers that never move, so everything that changes from call to
call has to be a tensor among them.  What decides the kernels themselves (shapes, dtypes, options)
is the key of the recording.
"""

import logging
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kdistill.ops._registry import requested_backend

Values = Sequence[Tensor | None]
Function = Callable[..., Values]

WARM_UPS = 2  # calls before a recording: libraries choose their algorithms, Triton compiles
GRAPHS = 4  # recordings that an owner keeps: each holds the memory of one call
# distance of the first replay from the plain call; rounding and flipped kinks stay far below, a
# fault far above
AGREEMENT = 0.05

_log = logging.getLogger("kdistill")


class Graph(Protocol):
    """What a recorder returns beside the outputs."""

    def replay(self) -> None:
        """Run the recorded kernels."""


Recorder = Callable[[Callable[[], Values], torch.device], tuple[Graph, Values]]


@dataclass(frozen=True)
class _Recording:
    graph: Graph
    inputs: Values
    outputs: Values

    def __call__(self, values: Values) -> Values:
        for buffer, value in zip(self.inputs, values, strict=True):
            if buffer is not None and value is not None:
                buffer.copy_(value)
        self.graph.replay()
        return _clones(self.outputs)


_recordings: WeakKeyDictionary[Any, dict[Hashable, _Recording | str]] = WeakKeyDictionary()


def capture(owner: Any, key: Hashable, function: Function, inputs: Values) -> Values:
    """Return ``function(*inputs)``, from recorded kernels where the device can record.

    The first call for a key, shapes and dtypes runs the function plainly, records it, and compares
    a replay with the plain result; later ones copy the inputs into the recording's buffers and
    replay.  Where recording is refused (the function waits for the device, or copies from the host)
    or disagrees, the reason is logged once and the function runs plainly.

    Args:
        owner: Keeps the recordings as long as it lives; the last four of them.
        key: What decides the kernels beside the tensors' shapes and dtypes, and every number that
            the function takes from Python.
        function: Tensors in, tensors out; it changes nothing else and keeps nothing.
        inputs: Tensors on one device, or None.

    Returns:
        The outputs, new tensors.

    Cost: a copy of inputs and outputs beside the kernels; memory of one call for every recording,
        until its owner dies.
    """
    device = next(x.device for x in inputs if x is not None)
    record = RECORDERS.get(device.type)
    if record is None:
        return function(*inputs)
    recordings = _recordings.setdefault(owner, {})
    key = (
        key,
        requested_backend(),
        *(None if x is None else (tuple(x.shape), x.dtype, x.device) for x in inputs),
    )
    if key not in recordings:
        while len(recordings) >= GRAPHS:
            del recordings[next(iter(recordings))]
        recordings[key], outputs = _recorded(record, function, inputs, device)
        return outputs
    recording = recordings[key]
    return function(*inputs) if isinstance(recording, str) else recording(inputs)


def _recorded(
    record: Recorder, function: Function, inputs: Values, device: torch.device
) -> tuple[_Recording | str, Values]:
    """Return the recording, or why it failed, and the outputs of a plain call."""
    buffers = _clones(inputs)
    plain = _clones(function(*buffers))
    try:
        graph, outputs = record(lambda: function(*buffers), device)
        recording = _Recording(graph, buffers, outputs)
        if _agree(recording(inputs), plain):
            return recording, plain
        reason = "a replay differs from the plain call"
    except RuntimeError as error:  # CUDA's refusal is one
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    _log.warning("cuda_graph: every step launches its kernels itself: %s", reason)
    return reason, plain


def _agree(ours: Values, plain: Values) -> bool:
    pairs = [(a, b) for a, b in zip(ours, plain, strict=True) if a is not None and b is not None]
    far = [
        (a - b).double().norm() > AGREEMENT * b.double().norm()
        for a, b in pairs
        if bool(torch.isfinite(b).all())
    ]
    return not any(bool(x) for x in far)


def _clones(values: Values) -> Values:
    return tuple(None if x is None else x.clone() for x in values)


def _record_cuda(function: Callable[[], Values], device: torch.device) -> tuple[Graph, Values]:
    with torch.cuda.device(device):
        # the default stream cannot be recorded
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS - 1):
                function()
            # a recording that meets one is lost, and torch before 2.12 does not recover from it
            # whole
            with _refusing_waits():
                function()
        here.wait_stream(aside)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            # on a stream of this device: torch's own choice belongs to the device of its first
            # recording
            with torch.cuda.graph(
                graph, pool=pool, stream=aside, capture_error_mode="thread_local"
            ):
                outputs = function()
        except BaseException:
            # torch before 2.12 leaves its allocator in the recording, and later ones fail; newer
            # ones say that it has ended
            with suppress(RuntimeError, AttributeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            raise
        finally:
            # a recording that fails leaves its stream behind as the current one
            torch.cuda.set_stream(here)
    return graph, outputs


@contextmanager
def _refusing_waits() -> Iterator[None]:
    """Let what waits for the device raise inside the block."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode says once that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


RECORDERS: dict[str, Recorder] = {"cuda": _record_cuda}
