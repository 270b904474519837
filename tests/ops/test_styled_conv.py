import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill import _native, ops
from kdistill.errors import ConfigError, NotDifferentiableError, ShapeError
from kdistill.testing.backends import instruction_set, isas, running_on
from kdistill.testing.cases import Shape, case
from kdistill.testing.cases.styled_conv import grouped
from tests.ops.moving import LAYOUTS, moved

CASE = case("styled_conv")
BACKENDS = [
    "reference",
    *(["cpu"] if _native.why_missing("_cpu") is None else []),
]  # GPUs: see the note
NAMES = ("value", "x", "weight", "styles", "bias", "noise")
TINY = [CASE.tiny, Shape(**vars(CASE.tiny) | {"fir": 1})]


@given(
    n=st.integers(0, 3), shared=st.booleans(), fir=st.integers(0, 1), k=st.integers(1, 40),
    # of fewer channels the gradient of styles is a small rest of large terms
    c=st.integers(5, 40),
    h=st.integers(1, 9), w=st.integers(1, 18),
    layout=st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_any_shape_stride_and_alignment(n, shared, fir, c, k, h, w, layout):
    shape = Shape(n=n, m=1 if shared else n, c=c, k=k, h=h, w=w, fir=fir)
    x, *others = CASE.inputs(shape, seed=0)
    CASE.check((moved(x, layout), *others), shape)


@pytest.mark.parametrize("shape", [s for s in CASE.shapes if s.n and s.c < 16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weights_of_every_image_give_the_same_function(backend, shape):
    inputs = CASE.inputs(shape, seed=3, dtype=torch.float64)
    with running_on(backend):
        got = CASE.with_gradients(CASE.op, inputs)
    for name, ours, theirs in zip(NAMES, got, CASE.with_gradients(grouped, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize("tiny", TINY, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_first_and_second_order(backend, tiny):
    inputs = CASE.inputs(tiny, seed=4, dtype=torch.float64, requires_grad=True)
    with running_on(backend):
        assert torch.autograd.gradcheck(CASE.op, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(CASE.op, inputs, fast_mode=True)


@pytest.mark.parametrize("tiny", TINY, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_pullback_of_torch_func(backend, tiny):
    x, *others = CASE.inputs(tiny, seed=4, dtype=torch.float64)
    with running_on(backend):
        out, vjp = torch.func.vjp(lambda x: CASE.op(x, *others), x)
        leaf = x.clone().requires_grad_()
        known = torch.autograd.grad(CASE.op(leaf, *others).sum(), leaf)[0]
        torch.testing.assert_close(vjp(torch.ones_like(out))[0], known)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_derivative_at_the_clamp_is_0_in_both_orders(backend):
    x, bias = torch.zeros(2, 3, 4, 4), torch.full((5,), 2.0, requires_grad=True)
    with running_on(backend):
        out = ops.styled_conv(x, torch.ones(5, 3, 3, 3), torch.ones(2, 3), bias, clamp=2.0)
        for create_graph in (False, True):
            assert not torch.autograd.grad(
                out.sum(), bias, retain_graph=True, create_graph=create_graph
            )[0].any()


@pytest.mark.parametrize("tiny", TINY, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_are_made_of_others_count_once(backend, tiny):
    x, weight, _, bias, noise, taps = CASE.inputs(tiny, seed=4, dtype=torch.float64)

    def layer(function, x, weight):
        return function(x, weight, x.mean((2, 3)), bias, noise * weight.mean(), taps)

    leaves = [t.requires_grad_() for t in (x, weight)]
    known = torch.autograd.grad(layer(grouped, *leaves).square().sum(), leaves, create_graph=True)
    known_second = torch.autograd.grad(sum(g.square().sum() for g in known), leaves)
    with running_on(backend):
        first = torch.autograd.grad(layer(CASE.op, *leaves).square().sum(), leaves)
        grads = torch.autograd.grad(
            layer(CASE.op, *leaves).square().sum(), leaves, create_graph=True
        )
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
    for a, b in zip((*first, *grads, *second), (*known, *known, *known_second), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [CASE.shapes[1], CASE.shapes[6]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_wanted_gradients_are_made(backend, shape):
    inputs = CASE.inputs(shape, seed=5, dtype=torch.float64)
    known = CASE.with_gradients(CASE.op, inputs)[1:]
    for position in CASE.differentiable:
        with running_on(backend):
            _, grads = CASE.with_gradients(CASE.op, inputs, wrt=(position,))
        torch.testing.assert_close(grads, known[position])


@pytest.mark.parametrize("fir", [0, 1], ids=["same size", "doubled"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_size_of_a_single_style_does_not_matter(backend, fir):
    inputs = CASE.inputs(Shape(n=3, m=1, c=1, k=4, h=5, w=6, fir=fir), seed=11)
    with running_on(backend):
        value, dx, _, dstyles, *_ = CASE.with_gradients(CASE.op, inputs)
        twice = CASE.op(inputs[0], inputs[1], 2.0 * inputs[2], *inputs[3:])
    torch.testing.assert_close(twice, value)
    assert dstyles.abs().max() < 1e-4 * (dx * inputs[0]).abs().sum()


@pytest.mark.parametrize("shape", [CASE.shapes[4], CASE.shapes[9]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_result_without_a_graph_has_the_same_bits(backend, shape):
    inputs = CASE.inputs(shape, seed=6)
    with running_on(backend):
        with_graph = CASE.op(inputs[0].clone().requires_grad_(), *inputs[1:])
        with torch.no_grad():
            assert torch.equal(CASE.op(*inputs), with_graph)


@pytest.mark.parametrize("fir", [0, 1], ids=["same size", "doubled"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_stays_in_its_image(backend, fir):
    inputs = CASE.inputs(Shape(n=3, m=1, c=5, k=4, h=8, w=8, fir=fir), seed=7)
    inputs[0][1, 2, 3, 3] = math.nan
    with running_on(backend):
        bad = CASE.op(*inputs).isnan().flatten(1).any(1)
    assert bad.tolist() == [False, True, False]


@pytest.mark.parametrize("filters", [0, 1 << 30], ids=["by panels", "by blocks"])
def test_results_do_not_depend_on_threads_and_repeat_bit_by_bit(filters, monkeypatch):
    monkeypatch.setattr("kdistill.backends.cpu.winograd_conv._FILTERS", filters)
    before = torch.get_num_threads()
    try:
        sizes = (
            {"n": 3, "m": 1, "c": 70, "k": 130, "h": 18, "w": 20},
            {"n": 2, "m": 2, "c": 16, "k": 64, "h": 32, "w": 32},
        )
        for shape in (Shape(**size, fir=fir) for size in sizes for fir in (0, 1)):
            inputs, results = CASE.inputs(shape, seed=8), []
            for threads in (1, 2, 5, 2):
                torch.set_num_threads(threads)
                results.append(CASE.with_gradients(CASE.op, inputs))
            for other in results[1:]:
                for name, a, b in zip(NAMES, results[0], other, strict=True):
                    assert torch.equal(a, b), f"{shape}: {name}"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("shape", CASE.shapes, ids=str)
def test_panel_after_panel(shape, isa, monkeypatch):
    monkeypatch.setattr(
        "kdistill.backends.cpu.winograd_conv._FILTERS", 0
    )  # as layers with many filters go
    monkeypatch.setattr("kdistill.backends.cpu.winograd_conv._MOST_TILES_OF_A_PANEL", 5)
    with instruction_set(isa), running_on("cpu"):
        CASE.check(CASE.inputs(shape, seed=10), shape)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.randn(2, 3, 5)}, ShapeError, "expected x .N, C, H, W."),
        ({"weight": torch.randn(4, 3, 1, 1)}, ShapeError, "conv2d for other kernels"),
        (
            {"weight": torch.randn(4, 2, 3, 3)},
            ShapeError,
            r"expected weight .* \[4, 3, 3, 3\] on cpu, got .* \[4, 2, 3, 3\] on cpu",
        ),
        ({"x": torch.randn(2, 3, 0, 5)}, ShapeError, "channels, rows and columns"),
        (
            {"x": torch.ones(2, 3, 5, 5, dtype=torch.int64)},
            ShapeError,
            "expected x of a floating dtype, got torch.int64",
        ),
        (
            {"styles": torch.randn(3)},
            ShapeError,
            r"expected styles .* \[2, 3\] on cpu, got .* \[3\] on cpu; expand it",
        ),
        (
            {"bias": torch.randn(3)},
            ShapeError,
            r"expected bias .* \[4\] on cpu, got .* \[3\] on cpu; expand it",
        ),
        ({"noise": torch.randn(1, 4, 4)}, ShapeError, r"expected noise torch.float32 \[1, 5, 5\]"),
        (
            {"noise": torch.randn(3, 5, 5)},
            ShapeError,
            r"noise \[1, h, w\] or \[2, h, w\], got 3 rows; draw it",
        ),
        (
            {"noise": torch.randn(1, 5, 5), "taps": torch.ones(4)},
            ShapeError,
            r"expected noise torch.float32 \[1, 10, 10\]",
        ),
        (
            {"taps": torch.ones(4, 4)},
            ShapeError,
            r"expected taps .* \[4\] on cpu, got .* \[4, 4\] on cpu; filter after",
        ),
        (
            {"taps": torch.ones(4, requires_grad=True)},
            NotDifferentiableError,
            r"pass taps.detach\(\)",
        ),
        ({"styles": torch.randn(2, 3, dtype=torch.float64)}, ShapeError, r"convert with .to\(x\)"),
        ({"slope": 1.1}, ConfigError, "slope in 0 to 1"),
        ({"gain": 0.0}, ConfigError, "gain > 0"),
        ({"clamp": -1.0}, ConfigError, "clamp > 0 or None"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    tensors = {
        "x": torch.randn(2, 3, 5, 5),
        "weight": torch.randn(4, 3, 3, 3),
        "styles": torch.randn(2, 3),
    }
    arguments = {**tensors, "bias": torch.randn(4), "noise": None, **change}
    with pytest.raises(error, match=message):
        ops.styled_conv(**arguments)
