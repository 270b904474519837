import random

import numpy as np
import pytest
import torch

from kdistill.augment import FAMILIES, Augment, AugmentConstants
from kdistill.errors import ConfigError, ShapeError
from kdistill.ops import diff_augment
from kdistill.ops.diff_augment import AFFINE, COLOR, CROP, CUTOUT, FLIP

ALL = "_".join(FAMILIES)


def augment(strategy=ALL, *, siamese=True, key=5, align_corners=False, **options):
    return Augment(strategy, siamese=siamese, key=key, align_corners=align_corners, **options)


def drawn(strategy, n=4000, size=(32, 32), **options):
    ((params, _),) = augment(strategy, siamese=False, **options).parameters(shape=(n, 3, *size))
    return params


def test_no_global_generator_is_touched():
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    for mode in "SM":
        for siamese in (True, False):
            a = augment(mode=mode, siamese=siamese)
            a.vjp(a(torch.zeros(3, 3, 8, 8), step=2), step=2)
    assert states() == before


def test_the_same_key_gives_the_same_bits_and_another_does_not():
    x = torch.randn(6, 3, 9, 9)
    for siamese in (True, False):
        results = [
            augment("color", siamese=siamese, key=key)(x, step)
            for key, step in ((1, 0), (1, 0), (2, 0), (1, 1))
        ]
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])
        assert not torch.equal(results[0], results[3])


def test_the_stream_of_draws_is_fixed():
    ((params, index),) = augment("color", key=1).parameters(3, shape=(2, 3, 8, 8))
    expected = [[COLOR, -0.48993508411621933, 0.29071994436689064, 1.3171675429496696, 0, 0, 0, 0]]
    torch.testing.assert_close(
        params, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15
    )
    assert index.tolist() == [0, 0]


@pytest.mark.parametrize("mode", ["S", "M"])
def test_a_siamese_pair_gets_the_same_transformation(mode):
    x = torch.randn(5, 3, 12, 10)
    a = augment(mode=mode)
    for step in range(12):
        real, synthetic = a(torch.cat([x, torch.randn(20, 3, 12, 10)]), step), a(x[2:4], step)
        assert torch.equal(real[2:4], synthetic)


def test_siamese_per_class_depends_on_the_class_alone():
    a = augment()
    x = torch.randn(1, 3, 8, 8).expand(8, 3, 8, 8)
    labels = torch.tensor([3, 0, 3, 7, 0, 1, 7, 3])
    out = a(x, 4, labels)
    for i, label in enumerate(labels.tolist()):
        assert torch.equal(out[i], a(x[:1], 4, torch.tensor([label]))[0])
    assert len({out[i].sum().item() for i in range(8)}) > 1
    assert torch.equal(a(x, 4), a(x, 4, torch.zeros(8, dtype=torch.int64)))


def test_not_siamese_shares_the_family_and_nothing_else():
    a = augment(siamese=False)
    groups = torch.arange(3).repeat_interleave(50)
    seen = set()
    for step in range(20):
        ((params, index),) = a.parameters(step, shape=(3, 50, 3, 32, 32), groups=groups.view(3, 50))
        assert index.tolist() == list(range(150))
        for rows in params.view(3, 50, 8):
            assert len(rows[:, 0].unique()) == 1
            assert len(rows.unique(dim=0)) > 1
            seen.add(rows[0, 0].item())
        assert not torch.equal(params[:50], params[50:100])
    assert seen == {COLOR, CROP, CUTOUT, FLIP, AFFINE}


def test_each_family_is_as_likely():
    codes = torch.stack(
        [augment(key=1).parameters(step, shape=(1, 3, 8, 8))[0][0][0] for step in range(3000)]
    )
    counts = [(codes[:, 0] == code).sum().item() for code in (COLOR, CROP, CUTOUT, FLIP)]
    scaled = ((codes[:, 0] == AFFINE) & (codes[:, 2] == 0)).sum().item()
    counts += [scaled, 3000 - sum(counts) - scaled]
    deviation = (3000 / 6 * 5 / 6) ** 0.5
    assert all(abs(count - 500) < 5 * deviation for count in counts)


def assert_uniform(values, low, high):
    n, width = len(values), high - low
    assert values.min() >= low
    assert values.max() <= high
    assert values.min() < low + 10 * width / n
    assert values.max() > high - 10 * width / n
    assert abs(values.mean() - (low + high) / 2) < 5 * width / (12 * n) ** 0.5
    assert abs(values.var() / (width**2 / 12) - 1) < 0.1


def assert_integers(values, low, high):
    counts = {int(v): int((values == v).sum()) for v in values.unique()}
    assert sorted(counts) == list(range(low, high + 1))
    expected = len(values) / (high - low + 1)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_ranges_of_the_published_constants():
    color = drawn("color")
    for column, (low, high) in zip((1, 2, 3), ((-0.5, 0.5), (0, 2), (0.5, 1.5)), strict=True):
        assert_uniform(color[:, column], low, high)
    flip = drawn("flip")[:, 1]
    assert abs(flip.mean() - 0.5) < 5 * 0.5 / len(flip) ** 0.5
    assert set(flip.tolist()) == {0.0, 1.0}
    scale = drawn("scale")
    assert_uniform(scale[:, 1], 1 / 1.2, 1.2)
    assert_uniform(scale[:, 4], 1 / 1.2, 1.2)
    assert abs(torch.corrcoef(scale[:, [1, 4]].T)[0, 1]) < 5 / len(scale) ** 0.5
    rotate = drawn("rotate")
    angle = torch.atan2(rotate[:, 3], rotate[:, 1])
    assert_uniform(torch.rad2deg(angle), -15, 15)
    expected = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
    torch.testing.assert_close(rotate[:, 1:5], expected)


@pytest.mark.parametrize(("size", "shifts", "sides", "centres"), [
    ((32, 32), (4, 4), (16, 16), (32, 32)),
    ((28, 20), (4, 3), (14, 10), (28, 20)),
    ((9, 3), (1, 0), (5, 2), (8, 3)),  # an odd square has one centre less
])  # fmt: skip
def test_crop_and_cutout_follow_each_side(size, shifts, sides, centres):
    crop, cutout = drawn("crop", size=size), drawn("cutout", size=size)
    for axis in (0, 1):
        assert_integers(crop[:, 1 + axis], -shifts[axis], shifts[axis])
        assert_integers(cutout[:, 1 + axis], 0, centres[axis])
        assert set(cutout[:, 3 + axis].tolist()) == {float(sides[axis])}


def test_constants_change_the_ranges():
    constants = AugmentConstants(brightness=0.2, flip=1.0, crop=0.0)
    assert_uniform(drawn("color", constants=constants)[:, 1], -0.1, 0.1)
    assert drawn("flip", constants=constants)[:, 1].min() == 1
    assert drawn("crop", constants=constants)[:, 1:3].abs().max() == 0


def test_mode_m_is_every_family_in_order():
    x = torch.randn(4, 3, 8, 6)
    a = augment("flip_color_rotate", mode="M", siamese=False, align_corners=True)
    chain = a.parameters(2, shape=x.shape)
    assert [params[0, 0].item() for params, _ in chain] == [FLIP, COLOR, AFFINE]
    expected = x
    for params, index in chain:
        expected = diff_augment(expected, params, index, align_corners=True)
    assert torch.equal(a(x, 2), expected)


@pytest.mark.parametrize("mode", ["S", "M"])
def test_pull_back_is_the_gradient(mode):
    x = torch.randn(3, 4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(3, 4, 3, 8, 8, dtype=torch.float64)
    groups = torch.arange(12).view(3, 4) % 5
    a = augment(mode=mode)
    for step in range(8):
        (grad,) = torch.autograd.grad(a(x, step, groups), x, cotangent)
        torch.testing.assert_close(a.vjp(cotangent, step, groups), grad)


def test_drawn_parameters_can_be_used_again():
    x = torch.randn(2, 3, 3, 8, 8)
    a = augment(siamese=False)
    parameters = a.parameters(7, shape=x.shape)
    assert torch.equal(a.apply(x, parameters), a(x, 7))
    assert torch.equal(a.transpose(x, parameters), a.vjp(x, 7))


def test_leading_dimensions_are_one_batch():
    x = torch.randn(2, 5, 3, 8, 8)
    for siamese in (True, False):
        a = augment(siamese=siamese)
        assert torch.equal(a(x, 1), a(x.flatten(0, 1), 1).view_as(x))


@pytest.mark.parametrize("strategy", ["", "none"])
def test_no_family_changes_nothing(strategy):
    x = torch.randn(2, 3, 8, 8)
    a = augment(strategy)
    assert torch.equal(a(x, 3), x)
    assert torch.equal(a.vjp(x, 3), x)
    assert a.parameters(3, shape=x.shape) == []


def test_an_empty_batch_stays_empty():
    for siamese in (True, False):
        assert augment(siamese=siamese)(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augment("color_crops"), "did you mean 'crop'"),
        (lambda: augment("color__crop"), "expected families joined by '_', got ''"),
        (lambda: augment(mode="X"), "mode 'S'"),
        (lambda: AugmentConstants(flip=1.5), "expected flip in 0..1, got 1.5"),
        (lambda: AugmentConstants(scale=0.5), "expected scale in 1..inf"),
        (lambda: AugmentConstants(rotate=float("nan")), "expected rotate"),
    ],
)
def test_wrong_strategies_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_wrong_batches_are_named():
    with pytest.raises(ShapeError, match="add a dimension"):
        augment()(torch.randn(3, 8, 8))
    for groups in (torch.zeros(3, dtype=torch.int64), torch.zeros(2)):
        with pytest.raises(ShapeError, match=r"expected groups int64 \[2\]"):
            augment()(torch.randn(2, 3, 8, 8), 0, groups)
