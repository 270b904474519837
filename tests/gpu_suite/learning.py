"""Real runs on real digits: loss curve and accuracy on this device, beside those of the CPU."""

import importlib.util
import sys

import torch

import kdistill
from tests.gpu_suite.report import Report
from tests.gpu_suite.stage import main

CURVE_WITHIN, END_WITHIN = (
    1e-2,
    0.1,
)  # relative distance from the CPU's curve, at its first logged step and at its end
POINTS_WITHIN = 5.0  # of accuracy
SIZES = {"width": 32, "depth": 2, "iterations": 60}
TINY = {"width": 4, "depth": 1, "iterations": 20}
METHODS = {"dm": {}, "dc": {"outer_steps": 2, "inner_epochs": 1, "iterations": 20}}


def curve(
    method: str, options: dict[str, object], device: torch.device
) -> tuple[list[float], float]:
    """Return the loss of every logged step, and the accuracy of networks trained on the result."""
    looks: list[float] = []
    data = kdistill.load_data("digits")
    small = kdistill.distill(
        data, method=method, ipc=1, seed=0, options=options, validation=0.0, device=device,
        callbacks=[lambda progress: looks.append(float(progress.loss))],
    )  # fmt: skip
    result = kdistill.evaluate(small, data, protocol="quick", nets=1, baselines=(), device=device)
    return looks, 100 * next(row.mean for row in result.rows)


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    if importlib.util.find_spec("sklearn") is None:
        report.row("digits", "skipped: scikit-learn is not installed")
        return
    for method, own in METHODS.items():
        with report.trying(f"{method} on digits") as values:
            options = {**SIZES, **own, **(TINY if is_tiny else {})}
            ours, accuracy = curve(method, options, device)
            theirs, expected = curve(method, options, torch.device("cpu"))
            values.update(losses=ours, losses_cpu=theirs, accuracy=accuracy, accuracy_cpu=expected)
            off = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
            if not (
                off[0] <= CURVE_WITHIN
                and off[-1] <= END_WITHIN
                and abs(accuracy - expected) <= POINTS_WITHIN
            ):
                raise AssertionError(
                    f"expected the CPU's curve within {CURVE_WITHIN} to {END_WITHIN}, got {off}"
                )


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
