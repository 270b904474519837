import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdistill import _native, ops
from kdistill.errors import NotDifferentiableError, ShapeError
from kdistill.ops.winograd_conv import winograd_conv_input_grad, winograd_conv_output, winograd_conv_weight_grad
from kdistill.testing.backends import instruction_set, isas, running_on
from kdistill.testing.cases import Shape, case
from kdistill.testing.tolerance import error

CASE = case("winograd_conv")
BACKENDS = ["reference", *(["cpu"] if _native.why_missing("_cpu") is None else [])]  # CUDA has cuDNN: see the note


def randn(*shape, seed=0):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.contiguous(memory_format=torch.channels_last)


def two_convolutions(shape):
    """Return inputs, weights and gradients of two convolutions of one shape."""
    h, w = shape.h + 2 * shape.p - 2, shape.w + 2 * shape.p - 2
    sizes = (shape.n, shape.c, shape.h, shape.w), (shape.k, shape.c, 3, 3), (shape.n, shape.k, h, w)
    return [[randn(*size, seed=10 * i + j).contiguous() for j in range(2)] for i, size in enumerate(sizes)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", CASE.shapes, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_the_float64_reference(backend, shape, dtype):
    with running_on(backend):
        CASE.check(CASE.inputs(shape, seed=0, dtype=dtype), shape)


@pytest.mark.parametrize("isa", isas())
def test_every_instruction_set(isa):
    with instruction_set(isa), running_on("cpu"):
        for shape in CASE.shapes:
            CASE.check(CASE.inputs(shape, seed=2), shape)


@pytest.mark.parametrize("panels", [False, True], ids=["by blocks", "by panels"])
@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("shape", CASE.shapes, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_of_convolutions_and_their_gradients(backend, shape, terms, panels, monkeypatch):
    if panels:  # as layers with many filters go
        monkeypatch.setattr("kdistill.backends.cpu.winograd_conv._FILTERS", 0)
        monkeypatch.setattr("kdistill.backends.cpu.winograd_conv._MOST_TILES_OF_A_PANEL", 5)
    xs, weights, grads = (tensors[:terms] for tensors in two_convolutions(shape))
    leaves = [t.requires_grad_() for t in (*xs, *weights)]
    ys = [F.conv2d(x, weight, padding=shape.p) for x, weight in zip(xs, weights, strict=True)]
    known = torch.autograd.grad(ys, leaves, grads)
    with running_on(backend), torch.no_grad():
        y = winograd_conv_output(*zip(xs, weights, strict=True), padding=shape.p)
        dx = winograd_conv_input_grad(*zip(grads, weights, strict=True), padding=shape.p)
        dweight = winograd_conv_weight_grad(*zip(xs, grads, strict=True), padding=shape.p)
    torch.testing.assert_close(y, sum(ys))
    torch.testing.assert_close(dx, sum(known[:terms]))
    torch.testing.assert_close(dweight, sum(known[terms:]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weight_gradient_of_a_scaled_input(backend):
    x, scale, grad = randn(3, 5, 6, 7), torch.randn(3, 5, dtype=torch.float64), randn(3, 4, 6, 7, seed=1)
    with running_on(backend):
        found = winograd_conv_weight_grad((x, grad), padding=1, scale=scale)
        known = winograd_conv_weight_grad((x * scale[:, :, None, None], grad), padding=1)
    torch.testing.assert_close(found, known)


@given(
    n=st.integers(0, 3), c=st.integers(1, 20), k=st.integers(1, 20), h=st.integers(1, 13), w=st.integers(1, 13),
    p=st.integers(1, 3),
    layout=st.sampled_from(["channels_last", "contiguous", "strided", "misaligned"]),
)  # fmt: skip
def test_any_shape_stride_and_alignment(n, c, k, h, w, p, layout):
    shape = Shape(n=n, c=c, k=k, h=h, w=w, p=p)
    x, weight, _ = CASE.inputs(shape, seed=0)
    if layout == "contiguous":
        x = x.contiguous()
    elif layout == "strided":
        x, weight = torch.stack([x, x], -1)[..., 0], weight.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "misaligned":
        x = torch.zeros(x.numel() + 1)[1:].reshape(n, h, w, c).permute(0, 3, 1, 2).copy_(x)
    CASE.check((x, weight, p), shape)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="_cpu is not built")
def test_the_error_stays_within_the_stated_multiple_of_the_plain_sum():
    shape = Shape(n=4, c=128, k=128, h=16, w=16, p=1)
    x, weight, padding = CASE.inputs(shape, seed=3)
    truth = F.conv2d(x.double(), weight.double(), padding=padding)
    ours, plain = ops.winograd_conv(x, weight, padding), F.conv2d(x, weight, padding=padding)
    rms = [float((y.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt()) for y in (ours, plain)]
    assert rms[0] < 3e-6  # NUMERICS.md
    assert error(ours, truth) < 16 * error(plain, truth)


def test_threads_do_not_change_a_bit():
    shape, before = Shape(n=5, c=24, k=70, h=20, w=12, p=1), torch.get_num_threads()
    (x, x1), (weight, weight1), (grad, grad1) = ([t.float() for t in tensors] for tensors in two_convolutions(shape))
    results = []
    try:
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            y = winograd_conv_output((x, weight), (x1, weight1), padding=1)
            dx = winograd_conv_input_grad((grad, weight), padding=1)
            results.append((y, dx, winograd_conv_weight_grad((x, grad), (x1, grad1), padding=1)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("x", "weight", "padding", "words"),
    [
        ((2, 3, 8, 8), (4, 3, 5, 5), 1, "conv2d for other kernels"),
        ((2, 3, 8, 8), (4, 2, 3, 3), 1, r"\[4, 2, 3, 3\]"),
        ((3, 8, 8), (4, 3, 3, 3), 1, r"expected x \[N, C, H, W\]"),
        ((2, 3, 2, 8), (4, 3, 3, 3), 0, "pad more"),
        ((2, 3, 8, 8), (4, 3, 3, 3), -1, "padding >= 0"),
    ],
)
def test_refusals(x, weight, padding, words):
    with pytest.raises(ShapeError, match=words):
        ops.winograd_conv(torch.zeros(x), torch.zeros(weight), padding)


def test_mixed_dtypes_and_gradients_are_refused():
    x, weight = torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 3, 3)
    with pytest.raises(ShapeError, match="convert with"):
        ops.winograd_conv(x, weight.double(), 1)
    with pytest.raises(NotDifferentiableError):
        ops.winograd_conv(x.requires_grad_(), weight, 1)
