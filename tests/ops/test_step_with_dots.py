import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill import ops
from kdistill.errors import ShapeError
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import Shape, case

CASE = case("step_with_dots")


@given(g=st.integers(0, 4), p=st.integers(0, 300), pad=st.integers(1, 3), steps=st.booleans())
def test_any_shape_stride_and_alignment(g, p, pad, steps):
    y, x = (
        torch.randn(g, p + pad)[:, pad:],
        torch.randn(g, p + pad)[:, :p],
    )  # strided; y misaligned as well
    step = torch.randn(1).expand(g) if steps else torch.randn(())
    CASE.check((y, x, step), Shape(g=g, p=p))


@pytest.mark.parametrize("backend", runnable_backends())
@pytest.mark.parametrize("p", [1, 127, 4097])
def test_out_is_a_row_of_a_buffer(backend, p):
    y, x, step = CASE.inputs(Shape(p=p), seed=3)
    buffer = torch.full((3, p), 7.0)  # rows of an odd length: misaligned
    with running_on(backend):
        expected, expected_dots = ops.step_with_dots(y, x, step)
        buffer[0] = y
        version = buffer._version
        out, dots = ops.step_with_dots(buffer[0], x, step, out=buffer[1])
    assert out.data_ptr() == buffer[1].data_ptr()
    assert torch.equal(buffer[1], expected)
    assert torch.equal(dots, expected_dots)
    assert torch.equal(buffer[0], y)
    assert bool((buffer[2] == 7.0).all())  # nothing beyond the row
    assert buffer._version > version  # autograd would notice that a saved tensor changed


@pytest.mark.parametrize("backend", runnable_backends())
@pytest.mark.parametrize("place", ["y", "x"])
@pytest.mark.parametrize("shape", [Shape(p=4097), Shape(g=3, p=1021, steps=1)], ids=str)
def test_out_may_be_an_input(backend, place, shape):
    y, x, step = CASE.inputs(shape, seed=4)
    with running_on(backend):
        expected = ops.step_with_dots(y, x, step)
        got = ops.step_with_dots(
            y, x, step, out=y if place == "y" else x
        )  # the dots are those of before
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_inference_tensors_may_be_written_into():
    with torch.inference_mode():
        out = torch.empty(5)
        ops.step_with_dots(torch.ones(5), torch.ones(5), torch.tensor(0.25), out=out)
        assert out.tolist() == [0.75] * 5


def test_an_output_of_many_pages():
    p = (33 << 20) // 4  # past the size from which memory is fresh and huge pages are asked for
    y, x = torch.arange(p, dtype=torch.float32).remainder_(17), torch.ones(p)
    out, dots = ops.step_with_dots(y, x, torch.tensor(0.5))
    assert torch.equal(out, y - 0.5)
    assert dots.tolist() == [float(y.double().sum()), float(p)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.randn(2, 3, 4)}, r"expected y and x \[P\] or \[G, P\]"),
        ({"x": torch.randn(3, 5)}, "flatten parameters into one vector per row"),
        ({"y": torch.ones(3, 4, dtype=torch.int64)}, "of a floating dtype, got torch.int64"),
        ({"x": torch.randn(3, 4, dtype=torch.float64)}, r"convert with .to\(y\)"),
        (
            {"step": torch.tensor(0.1, dtype=torch.float64)},
            r"expected step torch.float32 \[\] on cpu, got torch.float64",
        ),
        (
            {"step": torch.randn(4)},
            r"expected step .* \[3\] on cpu, got .* \[4\] on cpu; pass one number, or one per row",
        ),
        ({"out": torch.empty(4)}, "pass a row of a buffer"),
        (
            {"out": torch.empty(4, 3).T},
            r"expected out contiguous, got \[3, 4\] with strides \[1, 3\]",
        ),
        (
            {"out": torch.empty(3, 4, dtype=torch.float64)},
            r"expected out torch.float32 \[3, 4\] on cpu, got torch.float64",
        ),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {
        "y": torch.randn(3, 4),
        "x": torch.randn(3, 4),
        "step": torch.tensor(0.1),
        "out": None,
    } | change
    with pytest.raises(ShapeError, match=message):
        ops.step_with_dots(**arguments)


def test_overlapping_memory_is_refused():
    buffer = torch.zeros(12)
    with pytest.raises(
        ShapeError,
        match="expected out to be x itself or apart from it, got memory that begins 4 bytes",
    ):
        ops.step_with_dots(torch.zeros(8), buffer[1:9], torch.tensor(0.1), out=buffer[:8])
