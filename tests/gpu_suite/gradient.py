"""The exact trajectory gradient against autograd in float64, and by precision against float64."""

import sys
from typing import Any

import torch
from torch import Tensor

from kdistill.augment import Augment
from kdistill.engine import build_student, trajectory_match, use_precision
from kdistill.engine.precision import PRECISIONS
from kdistill.engine.trajectory_gradient import TrajectoryMatch
from kdistill.keys import generator
from tests.gpu_suite.report import Report
from tests.gpu_suite.stage import main

EXACT = 1e-9  # of the norm, in float64
BOUNDS = {"fp32": 1e-4, "tf32": 0.05, "bf16": 0.15}  # of the norm; NUMERICS.md
DSA = Augment("color_crop_cutout_flip_scale_rotate", siamese=False, key=1, align_corners=True)


class Problem:
    """One small trajectory, drawn on the host, so that it is the same on every device."""

    def __init__(
        self, device: torch.device, is_tiny: bool, *, is_soft: bool = False, groups: int = 0
    ):
        width, size = (4, 8) if is_tiny else (24, 32)
        self.device = device
        self.student = build_student(
            "convnet", channels=3, size=size, classes=4, width=width, depth=2
        )
        rows = [self.student.init(generator(seed)) for seed in range(2 * max(groups, 1))]
        self.start, self.target = (
            torch.stack(x) if groups else x[0] for x in (rows[::2], rows[1::2])
        )
        self.images = torch.randn(8, 3, size, size, generator=generator(20))
        self.labels = torch.randn(8, 4, generator=generator(21)) if is_soft else torch.arange(8) % 4
        self.mask = (torch.rand(self.student.num_params, generator=generator(22)) > 0.3).float()

    def match(self, dtype: torch.dtype, step: int = 0, **options: Any) -> TrajectoryMatch:
        """Return what is matched; another ``step`` draws other augmentations."""

        def there(x: Tensor) -> Tensor:
            return x.to(self.device, dtype if x.is_floating_point() else None)

        batches = [torch.arange(3, device=self.device), torch.arange(3, 8, device=self.device)] * 2
        if options.pop("masked", False):
            options["mask"] = there(self.mask)
        tensors = (there(x) for x in (self.start, self.target, self.images, self.labels))
        lr = torch.full((), 0.02, dtype=dtype, device=self.device)
        return trajectory_match(
            self.student,
            *tensors,
            lr,
            batches=batches,
            augment=DSA,
            first_step=step * len(batches),
            **options,
        )


def distance(ours: Tensor, truth: Tensor) -> float:
    """Return the norm of the difference over that of the truth."""
    return float((ours.double() - truth.double()).norm() / truth.double().norm())


def apart(ours: TrajectoryMatch, truth: TrajectoryMatch) -> dict[str, float]:
    """Return the relative distance of every part that both have."""
    pairs = {
        name: (getattr(ours, name), value)
        for name, value in truth._asdict().items()
        if value is not None
    }
    return {name: distance(mine, true) for name, (mine, true) in pairs.items()}


def stage(report: Report, device: torch.device, is_tiny: bool) -> None:
    cases = {
        "hard labels": (Problem(device, is_tiny), {}),
        "soft labels, a mask, checkpoints": (
            Problem(device, is_tiny, is_soft=True),
            {"masked": True, "checkpoint_every": 2},
        ),
        "two trajectories": (Problem(device, is_tiny, groups=2), {}),
    }
    for name, (problem, options) in cases.items():
        with report.trying(f"float64, {name}") as values:
            unrolled = {key: value for key, value in options.items() if key != "checkpoint_every"}
            truth = problem.match(torch.float64, grad_mode="unroll", **unrolled)
            errors = apart(problem.match(torch.float64, **options), truth)
            values["error"] = max(errors.values())
            if not values["error"] <= EXACT:
                raise AssertionError(
                    f"expected the gradient of autograd within {EXACT}, got {errors}"
                )
    problem, room = cases["hard labels"][0], 2.0 if is_tiny else 1.0  # four channels average little
    exact = problem.match(torch.float64)
    for precision in PRECISIONS:
        if precision == "tf32" and device.type != "cuda":
            report.row("float32 in tf32", "skipped: TF32 is a format of NVIDIA GPUs")
            continue
        with report.trying(f"float32 in {precision}") as values, use_precision(precision, device):
            values["error"] = distance(problem.match(torch.float32).grad_images, exact.grad_images)
            if not values["error"] <= room * BOUNDS[precision]:
                raise AssertionError(
                    f"expected the image gradient within {room * BOUNDS[precision]}"
                )


if __name__ == "__main__":
    sys.exit(main(__file__, stage))
