import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill import ops
from kdistill.errors import ConfigError, ShapeError
from kdistill.ops.conv_grad_sqnorm import is_gram_cheaper
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import Shape, case

CASE = case("conv_grad_sqnorm")


@given(
    n=st.integers(0, 3), c=st.integers(1, 5), k=st.integers(1, 5), h=st.integers(3, 9),
    w=st.integers(3, 9), p=st.integers(0, 3), gram=st.booleans(), channels_last=st.booleans(),
)  # fmt: skip
def test_any_shape_and_stride(n, c, k, h, w, p, gram, channels_last):
    shape = Shape(n=n, c=c, k=k, h=h, w=w, p=p, form="gram" if gram else "products")
    x, grad, *rest = CASE.inputs(shape, seed=1)
    if channels_last:
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    CASE.check((x, grad, *rest), shape)


@pytest.mark.parametrize("form", ["gram", "products"])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("backend", runnable_backends())
def test_it_is_the_norm_of_autograds_gradient(backend, padding, form):
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 3, 5, 6, dtype=torch.float64)
    out = torch.nn.functional.conv2d(x, weight, padding=padding)
    cotangent = torch.randn_like(out)
    wanted = [
        torch.autograd.grad(out[i], weight, cotangent[i], retain_graph=True)[0].square().sum()
        for i in range(3)
    ]
    with running_on(backend):
        got = ops.conv_grad_sqnorm(x, cotangent, padding, form=form)
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-10, atol=0)


def test_a_map_too_large_for_the_kernels_rows_takes_the_products():
    shape = Shape(n=1, c=1, k=1, h=67, w=66, form="gram")
    CASE.check(CASE.inputs(shape, seed=3), shape)


def test_the_cheaper_form_of_the_students_layers():
    # ConvNet-3, width 128, 32 pixels: few channels by products, the others by inner products; wide
    # images by products again
    assert [
        is_gram_cheaper(c, 128, s**2, s**2) for c, s in ((3, 32), (128, 16), (128, 8), (128, 32))
    ] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("form", ["gram", "products"])
def test_one_thread_and_two_give_the_same_bits(form):
    inputs = CASE.inputs(Shape(n=5, c=8, k=8, h=12, w=12, form=form), seed=4, dtype=torch.float64)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(CASE.op(*inputs))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(
        *results, rtol=1e-14, atol=0
    )  # the library's products promise no more


@pytest.mark.parametrize(
    ("x", "grad", "padding", "message"),
    [
        (
            torch.zeros(2, 3, 4, 4),
            torch.zeros(2, 5, 3, 4),
            1,
            r"expected x \[N, C, H, W\] and grad \[N, K, H \+ 2p - 2, W \+ 2p - 2\]",
        ),
        (
            torch.zeros(2, 3, 4),
            torch.zeros(2, 5, 4, 4),
            1,
            r"got \[2, 3, 4\], \[2, 5, 4, 4\] and padding 1",
        ),
        (
            torch.zeros(2, 3, 1, 4),
            torch.zeros(2, 5, 0, 2),
            0,
            "pass what a 3x3 convolution with stride 1 read",
        ),
        (
            torch.zeros(2, 3, 4, 4),
            torch.zeros(2, 5, 4, 4, dtype=torch.float64),
            1,
            r"convert with .to\(x\)",
        ),
    ],
)
def test_wrong_arguments_are_named(x, grad, padding, message):
    with pytest.raises(ShapeError, match=message):
        ops.conv_grad_sqnorm(x, grad, padding)


def test_an_unknown_form_is_named():
    with pytest.raises(
        ConfigError, match="expected a known form, got 'grams'; did you mean 'gram'"
    ):
        ops.conv_grad_sqnorm(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4), form="grams")
