"""One outer step under torch's profiler: kernels, how busy the GPU is, changes of layout."""

import re
import sys

import torch

from benchmarks.trajectory import Problem
from kdistill.engine import use_precision
from tests.gpu_suite.report import Report
from tests.gpu_suite.stage import main
from tests.gpu_suite.timing import busy_us, by_name, kernels_of

TURNS = re.compile(r"transpose|nchwtonhwc|nhwctonchw|convertTensor|permute", re.IGNORECASE)
NO_KERNEL = re.compile(r"^Mem(cpy|set)")


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    width, steps, batches = (4, 2, (2,)) if is_tiny else (128, 10, (10, 100))
    for batch in batches:
        problem = Problem(device, torch.float32, steps, width, batch)
        for graph in (False, True):
            what = f"outer step, batch {batch}, {'recorded' if graph else 'plain'}"
            with report.trying(what) as values, use_precision("fp32", device):
                events = kernels_of(lambda p=problem, g=graph: p.ours(cuda_graph=g), device)
                if not events:
                    raise RuntimeError(
                        "expected kernels, got none; the profiler may not be allowed to look at "
                        "this GPU"
                    )
                launched = [k for k in events if not NO_KERNEL.match(k.name)]
                span, busy = max(k.end for k in events) - events[0].start, busy_us(events)
                values.update(
                    kernels=len(launched),
                    copies=len(events) - len(launched),
                    per_step=len(launched) / steps,
                )
                values.update(span_ms=span / 1e3, busy_percent=100 * busy / span)
                values["turns_percent"] = (
                    100 * busy_us([k for k in events if TURNS.search(k.name)]) / busy
                )
                values["longest"] = list(by_name(events))


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
