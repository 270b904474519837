import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill import ops
from kdistill.errors import ShapeError
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import Shape, case

CASE = case("softmax_scores")


@given(n=st.integers(0, 9), k=st.integers(2, 70), pad=st.integers(1, 3), soft=st.booleans())
def test_any_shape_stride_and_alignment(n, k, pad, soft):
    logits = torch.randn(n, k + pad)[:, pad:]
    labels = torch.randn(n, k + pad)[:, :k] if soft else torch.randint(0, k, (2 * n,))[::2]
    CASE.check((logits, labels), Shape(n=n, k=k))


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_sure_network_keeps_its_digits(backend):
    gap = 30.0  # softmax rounds to 1 here; what is missing from 1 is e^-30
    logits, labels = torch.tensor([[0.0, gap, -gap], [gap, 0.0, -gap]]), torch.tensor([1, 1])
    with running_on(backend):
        got = ops.softmax_scores(logits, labels)
    small = math.exp(-gap)
    assert got.loss.tolist() == pytest.approx([small, gap], rel=1e-5)
    assert got.el2n.tolist() == pytest.approx([math.sqrt(2) * small, math.sqrt(2)], rel=1e-5)
    assert got.margin.tolist() == pytest.approx([-1.0, 1.0])
    assert got.entropy[0].item() == pytest.approx((1 + gap) * small, rel=1e-5)
    assert got.correct.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("backend", runnable_backends())
def test_extreme_logits(backend):
    huge = 3e38
    logits = torch.tensor([[huge, -huge, 0.0], [-math.inf, 0.0, 0.0], [0.0, -math.inf, -math.inf]])
    with running_on(backend):
        got = ops.softmax_scores(logits, torch.tensor([0, 1, 0]))
    assert got.loss.tolist() == pytest.approx([0.0, math.log(2), 0.0])
    assert got.el2n.tolist() == pytest.approx([0.0, math.sqrt(0.5), 0.0])
    assert got.margin.tolist() == pytest.approx([-1.0, 0.0, -1.0])
    assert got.entropy.tolist() == pytest.approx([0.0, math.log(2), 0.0])


@pytest.mark.parametrize("backend", runnable_backends())
def test_of_equal_logits_the_first_counts(backend):
    logits = torch.tensor([[1.0, 1.0, 0.0]]).expand(2, 3)
    with running_on(backend):
        assert ops.softmax_scores(logits, torch.tensor([0, 1])).correct.tolist() == [1.0, 0.0]
        soft = torch.tensor([[2.0, 2.0, 0.0], [0.0, 2.0, 2.0]])
        assert ops.softmax_scores(logits, soft).correct.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("backend", runnable_backends())
def test_nan_stays_in_its_row_and_is_not_correct(backend):
    logits = torch.tensor([[2.0, math.nan, 0.0], [2.0, 1.0, 0.0], [math.nan, 0.0, 0.0]])
    with running_on(backend):
        got = torch.stack(ops.softmax_scores(logits, torch.zeros(3, dtype=torch.int64)))
    assert bool(got[:4, [0, 2]].isnan().all()) and bool(got[:, 1].isfinite().all())
    assert got[4].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_soft_label_on_one_class_is_a_hard_one(backend):
    logits, labels = CASE.inputs(Shape(n=31, k=10), seed=3, dtype=torch.float64)
    soft = torch.full_like(logits, -800.0).scatter_(1, labels[:, None], 0.0)
    with running_on(backend):
        for hard, same in zip(
            ops.softmax_scores(logits, labels), ops.softmax_scores(logits, soft), strict=True
        ):
            torch.testing.assert_close(hard, same)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (
            torch.zeros(3),
            torch.zeros(3, dtype=torch.int64),
            r"expected logits \[N, K\] with K >= 2, got \[3\]",
        ),
        (
            torch.zeros(3, 1),
            torch.zeros(3, dtype=torch.int64),
            "pass one row of class logits per sample",
        ),
        (
            torch.zeros(3, 2),
            torch.zeros(2, dtype=torch.int64),
            r"expected labels torch.int64 \[3\] .* \[2\] on cpu; pass one class index, or one row",
        ),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.float64), r"convert with .to\(logits\)"),
        (
            torch.zeros(3, 2),
            torch.tensor([0, -1, 1]),
            r"expected labels in 0\.\.1, got -1\.\.1; pass the right number of classes",
        ),
        (torch.zeros(3, 2), torch.tensor([0, 2, 1]), r"expected labels in 0\.\.1, got 0\.\.2"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, dtype=torch.int64, device="meta"),
            r"\[3\] on cpu, got torch.int64 \[3\] on meta; move or convert it",
        ),
    ],
)
def test_wrong_arguments_are_named(logits, labels, message):
    with pytest.raises(ShapeError, match=message):
        ops.softmax_scores(logits, labels)
