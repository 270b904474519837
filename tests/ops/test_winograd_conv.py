import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdistill import _native, ops
from kdistill.errors import NotDifferentiableError, ShapeError
from kdistill.ops.winograd_conv import (
    winograd_conv_input_grad,
    winograd_conv_output,
    winograd_conv_weight_grad,
)
from kdistill.testing.backends import instruction_set, isas, running_on
from kdistill.testing.cases import Shape, case
from kdistill.testing.tolerance import error
from tests.ops.moving import LAYOUTS, moved

CASE = case("winograd_conv")
BACKENDS = [
    "reference",
    *(["cpu"] if _native.why_missing("_cpu") is None else []),
]  # CUDA has cuDNN: see the note


def randn(*shape, seed=0):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.contiguous(memory_format=torch.channels_last)


def two_convolutions(shape):
    """Return inputs, weights and gradients of two convolutions of one shape."""
    h, w = shape.h + 2 * shape.p - 2, shape.w + 2 * shape.p - 2
    sizes = (shape.n, shape.c, shape.h, shape.w), (shape.k, shape.c, 3, 3), (shape.n, shape.k, h, w)
    return [
        [randn(*size, seed=10 * i + j).contiguous() for j in range(2)]
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("panels", [False, True], ids=["by blocks", "by panels"])
@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("shape", CASE.shapes, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_of_convolutions_and_their_gradients(backend, shape, terms, panels, monkeypatch):
    if panels:  # as layers with many filters go
        monkeypatch.setattr("kdistill.backends.cpu.winograd_conv._FILTERS", 0)
        monkeypatch.setattr("kdistill.backends.cpu.winograd_conv._MOST_TILES_OF_A_PANEL", 5)
    with running_on(backend):
        check_sums(shape, terms)


@pytest.mark.parametrize("panels", [False, True], ids=["by blocks", "by panels"])
@pytest.mark.parametrize("isa", isas())
def test_sums_on_every_instruction_set(isa, panels, monkeypatch):
    if panels:
        monkeypatch.setattr("kdistill.backends.cpu.winograd_conv._FILTERS", 0)
        monkeypatch.setattr("kdistill.backends.cpu.winograd_conv._MOST_TILES_OF_A_PANEL", 5)
    with instruction_set(isa), running_on("cpu"):
        for shape in CASE.shapes:
            check_sums(shape, 2)


def check_sums(shape, terms):
    xs, weights, grads = (tensors[:terms] for tensors in two_convolutions(shape))
    leaves = [t.requires_grad_() for t in (*xs, *weights)]
    ys = [F.conv2d(x, weight, padding=shape.p) for x, weight in zip(xs, weights, strict=True)]
    known = torch.autograd.grad(ys, leaves, grads)
    with torch.no_grad():
        y = winograd_conv_output(*zip(xs, weights, strict=True), padding=shape.p)
        dx = winograd_conv_input_grad(*zip(grads, weights, strict=True), padding=shape.p)
        dweight = winograd_conv_weight_grad(*zip(xs, grads, strict=True), padding=shape.p)
    torch.testing.assert_close(y, sum(ys))
    torch.testing.assert_close(dx, sum(known[:terms]))
    torch.testing.assert_close(dweight, sum(known[terms:]))


@given(
    n=st.integers(0, 3), c=st.integers(1, 20), k=st.integers(1, 20), h=st.integers(1, 13),
    w=st.integers(1, 13), p=st.integers(1, 3), layout=st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_any_shape_stride_and_alignment(n, c, k, h, w, p, layout):
    shape = Shape(n=n, c=c, k=k, h=h, w=w, p=p)
    x, weight, _ = CASE.inputs(shape, seed=0)
    if layout == "strided":
        weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    CASE.check((moved(x, layout), weight, p), shape)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="_cpu is not built")
def test_the_error_stays_within_the_stated_multiple_of_the_plain_sum():
    shape = Shape(n=4, c=128, k=128, h=16, w=16, p=1)
    x, weight, padding = CASE.inputs(shape, seed=3)
    truth = F.conv2d(x.double(), weight.double(), padding=padding)
    ours, plain = ops.winograd_conv(x, weight, padding), F.conv2d(x, weight, padding=padding)
    rms = [
        float((y.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt())
        for y in (ours, plain)
    ]
    assert rms[0] < 3e-6  # NUMERICS.md
    assert error(ours, truth) < 16 * error(plain, truth)


@pytest.mark.parametrize("filters", [0, 1 << 30], ids=["by panels", "by blocks"])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(
            n=5, c=24, k=70, h=20, w=12, p=1
        ),  # few filters: the weight gradient by parts of the tiles
        Shape(n=2, c=70, k=130, h=9, w=13, p=1),  # many: by parts of the channels
        Shape(n=1, c=70, k=130, h=3, w=4, p=2),
    ],
    ids=str,
)
def test_threads_do_not_change_a_bit(shape, filters, monkeypatch):
    monkeypatch.setattr("kdistill.backends.cpu.winograd_conv._FILTERS", filters)
    exact, before = two_convolutions(shape), torch.get_num_threads()
    (x, x1), (weight, weight1), (grad, grad1) = ([t.float() for t in tensors] for tensors in exact)
    results = []
    try:
        for threads in (1, 2, 4, 7, 16, 2):
            torch.set_num_threads(threads)
            y = winograd_conv_output((x, weight), (x1, weight1), padding=shape.p)
            dx = winograd_conv_input_grad((grad, weight), padding=shape.p)
            results.append(
                (y, dx, winograd_conv_weight_grad((x, grad), (x1, grad1), padding=shape.p))
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    (x, x1), _, (grad, grad1) = exact
    known = sum(
        torch.nn.grad.conv2d_weight(a, weight.shape, b, padding=shape.p)
        for a, b in ((x, grad), (x1, grad1))
    )
    torch.testing.assert_close(
        results[0][2].double(), known, rtol=1e-4, atol=1e-4 * float(known.abs().max())
    )


def test_a_default_device_of_torch_changes_nothing(monkeypatch):
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    wanted = ops.winograd_conv(x, weight)
    monkeypatch.setattr(
        "kdistill.backends.cpu._of_thread", threading.local()
    )  # no scratch memory yet
    with torch.device("meta"):
        assert torch.equal(ops.winograd_conv(x, weight), wanted)


@pytest.mark.parametrize(
    ("x", "weight", "padding", "words"),
    [
        ((2, 3, 8, 8), (4, 3, 5, 5), 1, "conv2d for other kernels"),
        ((2, 3, 8, 8), (4, 2, 3, 3), 1, r"\[4, 2, 3, 3\]"),
        ((3, 8, 8), (4, 3, 3, 3), 1, r"expected x \[N, C, H, W\]"),
        ((2, 3, 2, 8), (4, 3, 3, 3), 0, "pad more"),
        ((2, 3, 8, 8), (4, 3, 3, 3), -1, "padding >= 0"),
        ((2, 0, 8, 8), (4, 0, 3, 3), 1, "channels, rows and columns"),
    ],
)
def test_refusals(x, weight, padding, words):
    with pytest.raises(ShapeError, match=words):
        ops.winograd_conv(torch.zeros(x), torch.zeros(weight), padding)


def test_mixed_dtypes_and_gradients_are_refused():
    x, weight = torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 3, 3)
    with pytest.raises(ShapeError, match="convert with"):
        ops.winograd_conv(x, weight.double(), 1)
    with pytest.raises(ShapeError, match=r"expected x of a floating dtype, got torch.int64"):
        ops.winograd_conv(x.long(), weight.long(), 1)
    with pytest.raises(ShapeError, match=r"expected weight1 torch.float32 .* got torch.float64"):
        winograd_conv_output((x, weight), (x, weight.double()), padding=1)
    with pytest.raises(NotDifferentiableError):
        ops.winograd_conv(x.requires_grad_(), weight, 1)
