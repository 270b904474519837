"""The most memory that tensors need at one time, as torch's profiler counts it."""

from collections.abc import Callable

import torch


def peak_tensor_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes that torch held on the CPU within ``work``, beyond those before it.

    The number does not depend on the machine or its load.  ``work`` is called twice: the first call
    brings what is made once.
    """
    work()
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        work()
    held = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
