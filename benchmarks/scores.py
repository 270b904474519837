"""`grand`: norms of per-sample gradients, ours beside the packages that make these gradients.

ConvNet-3 of width 128, 64 images of 3x32x32.  Before anything is timed, ours is checked against the
same scores in float64: 1e-5 in norm, 1e-4 for the worst sample.  "forward + backward" is one plain
eager PyTorch pass over the same batch."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.iteration import same_network
from benchmarks.measurement import Call, clock_of, interleaved
from benchmarks.op_runs import Result, tried
from benchmarks.peers import sample_gradients as peer
from kdistill import ops
from kdistill.engine import Student, build_student, sample_scores
from kdistill.keys import generator
from kdistill.ops import AUTOMATIC_ORDER

BATCH, SIZE, CLASSES, WIDTH = 64, 32, 10, 128
IN_NORM, WORST = 1e-5, 1e-4


def ours(backend: str, student: Student, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    with ops.use_backend(backend):
        return sample_scores(student, theta, images, labels, ("grand",))["grand"]


def check(got: Tensor, truth: Tensor) -> str:
    """Return "ok", or by how much the bounds of NUMERICS.md are broken."""
    apart = (got.double() - truth).abs()
    in_norm, worst = float(apart.norm() / truth.norm()), float((apart / truth).max())
    return (
        "ok"
        if in_norm <= IN_NORM and worst <= WORST
        else f"wrong: {in_norm:.1e} in norm, {worst:.1e} for the worst sample"
    )


def run_grand(
    device: torch.device, dtype: torch.dtype, seconds: float, quick: bool, check_only: bool
) -> Iterator[Result]:
    """Yield one result per backend and peer; absent peers are named."""
    drawn = torch.Generator().manual_seed(0)
    student = build_student("convnet", channels=3, size=SIZE, classes=CLASSES, width=WIDTH, depth=3)
    theta = student.init(generator(0)).to(device, dtype)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=drawn, dtype=torch.float64).to(
        device, dtype
    )
    labels = torch.randint(0, CLASSES, (BATCH,), generator=drawn).to(device)
    truth = ours("reference", student, theta.double(), images.double(), labels)
    common = (f"n{BATCH}_3x{SIZE}x{SIZE}_w{WIDTH}", str(dtype).removeprefix("torch."), "grand")
    calls: dict[str, Call] = {}
    for backend in AUTOMATIC_ORDER[device.type]:
        call = partial(ours, backend, student, theta, images, labels)
        status = tried(lambda call=call: check(call(), truth))
        if status == "ok":
            calls[backend] = call
        if status != "ok" or check_only:
            yield Result("grand", backend, *common, status)
    if check_only:
        return
    net = same_network(student, theta, WIDTH).requires_grad_(True)
    others, absent = peer.peers(net, images, labels)
    calls |= {
        "forward + backward": partial(peer.forward_and_backward, net, images, labels),
        **others,
    }
    for name in absent:
        yield Result("grand", name, *common, "absent")
    for name, readings in interleaved(calls, 5 * seconds, clock_of(device)).items():
        for what, timing in readings.items():
            yield Result(
                "grand", name, *common[:2], f"grand_{what}" if what else "grand", "ok", timing
            )
