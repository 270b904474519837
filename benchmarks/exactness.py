"""How exact the trajectory gradient is in float32 at the width that is timed, beside eager PyTorch.

    python -m benchmarks.exactness                # 20 seeds, 10 steps; a few minutes
    python -m benchmarks.exactness --seeds 3 --steps 30

ConvNet-3 of width 128 on 10 images of 3x32x32.  Truth is the published unroll in float64.  At this
width masks of the ReLU flip between two roundings, so errors of both vary over orders of magnitude:
median and 90th percentile over seeds, and the smallest cosine."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import trajectory_matching as peer
from benchmarks.peers.distribution_matching import ConvNet
from benchmarks.trajectory import BATCH, LR, WIDTH
from kdistill.engine import build_student, trajectory_match
from kdistill.keys import generator


def gradients(seed: int, steps: int, width: int) -> dict[str, Tensor]:
    """Return the image gradients of the truth, of eager PyTorch and of ours, for one draw."""
    student = build_student("convnet", channels=3, size=32, classes=10, width=width, depth=3)
    start, target = (student.init(generator(2 * seed + k)) for k in (0, 1))
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(BATCH) % 10
    net = ConvNet(width=width)
    batches = [torch.arange(BATCH)] * steps
    wide = (net.double(), start.double(), target.double(), images.double())
    truth = peer.unroll(*wide, labels, LR, steps)[1]
    eager = peer.unroll(net.float(), start, target, images, labels, LR, steps)[1]
    ours = trajectory_match(student, start, target, images, labels, LR, batches=batches).grad_images
    return {"truth": truth, "eager": eager.double(), "ours": ours.double()}


def summary(seeds: int, steps: int, width: int) -> dict[str, tuple[float, float, float]]:
    """Return median and 90th percentile of the relative error, and the smallest cosine."""
    errors: dict[str, list[tuple[float, float]]] = {"eager": [], "ours": []}
    for seed in range(seeds):
        found = gradients(seed, steps, width)
        truth = found["truth"]
        for name, kept in errors.items():
            relative = float((found[name] - truth).norm() / truth.norm())
            kept.append(
                (relative, float(F.cosine_similarity(found[name].flatten(), truth.flatten(), 0)))
            )
    quantiles = torch.tensor([0.5, 0.9], dtype=torch.float64)
    rows = {}
    for name, kept in errors.items():
        median, high = (
            torch.tensor([e for e, _ in kept], dtype=torch.float64).quantile(quantiles).tolist()
        )
        rows[name] = (median, high, min(cosine for _, cosine in kept))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Errors of the float32 trajectory gradient.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--width", type=int, default=WIDTH)
    given = parser.parse_args()
    print(
        f"width {given.width}, {given.steps} steps, {given.seeds} seeds: relative error of the "
        "image gradient"
    )
    for name, (median, high, cosine) in summary(given.seeds, given.steps, given.width).items():
        print(f"{name:<6} median {median:.1e}  p90 {high:.1e}  smallest cosine {cosine:.6f}")
