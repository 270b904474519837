import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdistill import _native, ops
from kdistill.errors import NotDifferentiableError, ShapeError
from kdistill.ops.winograd_conv import (
    winograd_conv_input,
    winograd_conv_input_bwd,
    winograd_conv_output,
    winograd_conv_output_bwd,
    winograd_conv_weight,
    winograd_conv_weight_bwd,
)
from kdistill.testing.backends import instruction_set, isas, running_on
from kdistill.testing.cases import Shape, case
from kdistill.testing.tolerance import error

CASE = case("winograd_conv")
BACKENDS = ["reference", *(["cpu"] if _native.why_missing("_cpu") is None else [])]  # CUDA has cuDNN: see the note
MAPS = {  # name: (map, its transpose), as functions of the shape and one tensor
    "input": (lambda s, x: winograd_conv_input(x, s.p), lambda s, v: winograd_conv_input_bwd(v, s.n, s.h, s.w, s.p)),
    "weight": (lambda s, w: winograd_conv_weight(w), lambda s, u: winograd_conv_weight_bwd(u)),
    "output": (lambda s, m: winograd_conv_output(m, s.n, *out_of(s)), lambda s, y: winograd_conv_output_bwd(y)),
}


def out_of(s):
    return s.h + 2 * s.p - 2, s.w + 2 * s.p - 2


def tiles(s):
    h, w = out_of(s)
    return s.n * -(-h // 4) * -(-w // 4)


def sizes(name, s):
    """Return the shapes of what a map takes and of what it returns."""
    return {
        "input": ((s.n, s.c, s.h, s.w), (36, tiles(s), s.c)),
        "weight": ((s.k, s.c, 3, 3), (36, s.c, s.k)),
        "output": ((36, tiles(s), s.k), (s.n, s.k, *out_of(s))),
    }[name]


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


@pytest.mark.parametrize("shape", CASE.shapes, ids=str)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_map_and_its_transpose_are_the_matrices(backend, name, shape):
    there, back = MAPS[name]
    a, b = (torch.randn(size, dtype=torch.float64) for size in sizes(name, shape))
    if name == "input":
        a = a.contiguous(memory_format=torch.channels_last)
    with running_on("reference"):
        wanted = there(shape, a), back(shape, b)
    with running_on(backend):
        got = there(shape, a), back(shape, b)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close((got[0] * b).sum(), (a * got[1]).sum())  # <Ta, b> = <a, T'b>


@pytest.mark.parametrize("shape", CASE.shapes, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_transposed_maps_make_the_gradients(backend, shape):
    x, weight, padding = CASE.inputs(shape, seed=1, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, weight, padding=padding)
    grad = torch.randn_like(y)
    wanted = torch.autograd.grad(y, (x, weight), grad)
    with running_on(backend), torch.no_grad():
        planes = winograd_conv_output_bwd(grad)
        weights, inputs = winograd_conv_weight(weight), winograd_conv_input(x, padding)
        dx = winograd_conv_input_bwd(planes @ weights.transpose(1, 2), shape.n, shape.h, shape.w, padding)
        dweight = winograd_conv_weight_bwd(inputs.transpose(1, 2) @ planes)
    torch.testing.assert_close(dx, wanted[0])
    torch.testing.assert_close(dweight, wanted[1])


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


@pytest.mark.skipif("cpu" not in BACKENDS, reason="_cpu is not built")
def test_threads_do_not_change_a_bit():
    x, weight, padding = CASE.inputs(Shape(n=5, c=24, k=16, h=20, w=12, p=1), seed=4)
    grad = torch.randn(5, 16, 20, 12)

    def maps():
        planes = winograd_conv_output_bwd(grad)
        back = winograd_conv_input_bwd(torch.randn(36, 75, 24, generator=torch.Generator().manual_seed(0)), 5, 20, 12, 1)
        return winograd_conv_input(x, padding), winograd_conv_weight(weight), planes, back

    one = maps()
    torch.set_num_threads(2)
    try:
        two = maps()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


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
