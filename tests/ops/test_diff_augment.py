import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdistill.errors import NotDifferentiableError, ShapeError
from kdistill.ops import diff_augment
from kdistill.ops.diff_augment import (
    AFFINE,
    COLOR,
    CROP,
    CUTOUT,
    FLIP,
    IDENTITY,
    diff_augment_transpose,
)
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import Shape, case

CASE = case("diff_augment")


def table(*rows):
    out = torch.zeros(len(rows), 8, dtype=torch.float64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return out


@given(
    b=st.integers(0, 9), c=st.integers(1, 6), h=st.integers(1, 20), w=st.integers(1, 20),
    pad=st.integers(1, 3), align=st.integers(0, 1),
    family=st.sampled_from(["mixed", "wild_singular_far_outside"]),
)  # fmt: skip
def test_any_shape_stride_and_alignment(b, c, h, w, pad, align, family):
    shape = Shape(b=b, c=c, h=h, w=w, family=family, align=align)
    _, *rest = CASE.inputs(shape, seed=b + 10 * h)
    CASE.check((torch.randn(b, c, h, w + pad)[..., pad:], *rest), shape)  # strided
    CASE.check(
        (torch.randn(b * c * h * w + pad)[pad:].view(b, c, h, w), *rest), shape
    )  # misaligned


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("backend", runnable_backends())
def test_affine_is_affine_grid_and_grid_sample(backend, align_corners):
    x = torch.randn(40, 2, 11, 7, dtype=torch.float64)
    theta = torch.randn(40, 2, 2, dtype=torch.float64)
    params = torch.cat(
        [torch.full((40, 1), float(AFFINE)), theta.flatten(1), torch.zeros(40, 3)], 1
    ).double()
    grid = F.affine_grid(F.pad(theta, (0, 1)), list(x.shape), align_corners=align_corners)
    with running_on(backend):
        got = diff_augment(x, params, torch.arange(40), align_corners=align_corners)
    torch.testing.assert_close(got, F.grid_sample(x, grid, align_corners=align_corners))


def test_align_corners_matters_only_where_the_image_is_not_square():
    params, index = table([AFFINE, 0.9, -0.3, 0.3, 0.9]), torch.zeros(1, dtype=torch.int64)
    for size, same in (((1, 1, 9, 9), True), ((1, 1, 9, 5), False)):
        x = torch.randn(size, dtype=torch.float64)
        results = [diff_augment(x, params, index, align_corners=align) for align in (False, True)]
        assert torch.allclose(*results) is same


@pytest.mark.parametrize("backend", runnable_backends())
def test_the_other_families_by_plain_slicing(backend):
    x = torch.randn(7, 3, 8, 6, dtype=torch.float64)
    params = table(
        [CROP, 1, -2],
        [CROP, -3, 2],
        [CUTOUT, 0, 6, 4, 3],
        [CUTOUT, 5, 2, 3, 2],
        [FLIP, 1],
        [FLIP, 0],
        [IDENTITY],
    )
    expected = x.clone()
    expected[0], expected[1] = 0, 0
    expected[0, :, :7, 2:] = x[0, :, 1:, :4]
    expected[1, :, 3:, :4] = x[1, :, :5, 2:]
    expected[2, :, :2, 5:] = 0  # rows -2..1, columns 5..7
    expected[3, :, 4:7, 1:3] = 0
    expected[4] = x[4, :, :, torch.arange(5, -1, -1)]
    with running_on(backend):
        got = diff_augment(x, params, torch.arange(7), align_corners=False)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("backend", runnable_backends())
def test_color_is_brightness_then_saturation_then_contrast(backend):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    y = x + 0.3
    y = (y - y.mean(1, keepdim=True)) * 1.7 + y.mean(1, keepdim=True)
    y = (y - y.mean((1, 2, 3), keepdim=True)) * 0.6 + y.mean((1, 2, 3), keepdim=True)
    with running_on(backend):
        got = diff_augment(
            x, table([COLOR, 0.3, 1.7, 0.6]), torch.zeros(2, dtype=torch.int64), align_corners=False
        )
    torch.testing.assert_close(got, y)


def test_one_row_for_all_is_that_row_for_each():
    images, params, _, _ = CASE.inputs(CASE.shapes[1], seed=4)
    shared = diff_augment(images, params, torch.full((17,), 5), align_corners=False)
    own = diff_augment(images, params[5].expand(17, 8), torch.arange(17), align_corners=False)
    assert torch.equal(shared, own)


def test_transpose_is_the_gradient_without_a_forward():
    images, params, index, align = CASE.inputs(CASE.shapes[1], seed=5, requires_grad=True)
    cotangent = torch.randn_like(images)
    (grad,) = torch.autograd.grad(
        diff_augment(images, params, index, align_corners=align), images, cotangent
    )
    assert torch.equal(diff_augment_transpose(cotangent, params, index, align_corners=align), grad)


def test_channels_last_images_and_no_alias():
    images, params, index, align = CASE.inputs(CASE.shapes[1], seed=6)
    before = images.clone()
    expected = diff_augment(images, params, index, align_corners=align)
    got = diff_augment(
        images.to(memory_format=torch.channels_last), params, index, align_corners=align
    )
    assert torch.equal(got, expected)
    assert torch.equal(images, before)
    assert (
        diff_augment(images[:1], table([IDENTITY]), index[:1] * 0, align_corners=align).data_ptr()
        != images.data_ptr()
    )


def test_vmap_over_images_and_tables():
    images, params, index, align = CASE.inputs(CASE.shapes[1], seed=7, dtype=torch.float64)
    stacked, tables = torch.stack([images, 2 * images]), torch.stack([params, params.flip(0)])

    def value(x, p):
        return diff_augment(x, p, index, align_corners=align)

    expected = torch.stack([value(*pair) for pair in zip(stacked, tables, strict=True)])
    assert torch.equal(torch.func.vmap(value)(stacked, tables), expected)
    by_table = torch.func.vmap(value, in_dims=(None, 0))(images, tables)
    assert torch.equal(by_table, torch.stack([value(images, p) for p in tables]))
    grads = torch.func.vmap(
        torch.func.grad(lambda x, p: value(x, p).square().sum()), in_dims=(0, 0)
    )(stacked, tables)
    for got, x, p in zip(grads, stacked, tables, strict=True):
        torch.testing.assert_close(
            got, diff_augment_transpose(2 * value(x, p), p, index, align_corners=align)
        )


def test_values_that_no_row_should_hold_stay_inside_memory():
    nan, huge = float("nan"), 1e300
    rows = [
        [code, *[value] * 4]
        for code in (COLOR, CROP, CUTOUT, FLIP, AFFINE)
        for value in (nan, huge, -huge)
    ]
    images = torch.randn(len(rows), 2, 5, 6)
    for backend in runnable_backends():
        if backend == "reference":
            continue  # PyTorch leaves the conversion of NaN to an integer undefined
        with running_on(backend):
            out = diff_augment(images, table(*rows), torch.arange(len(rows)), align_corners=False)
            back = diff_augment_transpose(
                images, table(*rows), torch.arange(len(rows)), align_corners=False
            )
        assert out[3:].isfinite().all()
        assert back[3:].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.randn(3, 4, 4)}, r"flatten leading dimensions"),
        (
            {"images": torch.zeros(3, 1, 4, 4, dtype=torch.uint8)},
            r"expected (images|grad) of a floating dtype, got torch.uint8",
        ),
        (
            {"params": torch.zeros(2, 7, dtype=torch.float64)},
            r"\[2, 8\] on cpu, got torch.float64 \[2, 7\] .* one row per parameter set",
        ),
        (
            {"params": torch.zeros(2, 8)},
            r"expected params torch.float64 \[2, 8\] on cpu, got torch.float32",
        ),
        ({"params": torch.zeros(0, 8, dtype=torch.float64)}, "at least one row of params"),
        (
            {"index": torch.tensor([0, 1])},
            r"expected index torch.int64 \[3\] .* pass one row of params per image",
        ),
        ({"index": torch.tensor([0, 1, 2], dtype=torch.int32)}, "torch.int32"),
        ({"index": torch.tensor([0, 1, 2])}, r"expected index in 0\.\.1, got 0\.\.2"),
        ({"index": torch.tensor([0, -1, 0])}, r"expected index in 0\.\.1, got -1\.\.0"),
        ({"params": table([6], [0])}, r"expected family codes 0\.\.5"),
        ({"params": table([0.5], [0])}, r"expected family codes 0\.\.5"),
    ],
)
@pytest.mark.parametrize("op", [diff_augment, diff_augment_transpose])
def test_wrong_arguments_are_named(op, change, message):
    arguments = {
        "images": torch.randn(3, 1, 4, 4),
        "params": table([FLIP, 1], [0]),
        "index": torch.tensor([0, 1, 1]),
    } | change
    with pytest.raises(ShapeError, match=message):
        op(*arguments.values(), align_corners=False)


def test_params_are_constants():
    images, params, index, align = CASE.inputs(CASE.shapes[1], seed=0)
    with pytest.raises(NotDifferentiableError, match="detach"):
        diff_augment(images, params.requires_grad_(), index, align_corners=align)
