"""Normalisation and ZCA: exact maps, exact inverses, exact records."""

import math

import numpy as np
import pytest
import torch

from kdistill import transforms
from kdistill.errors import ConfigError, DataError, ShapeError
from kdistill.transforms import ZCA_EPS, Identity, Standardise, Zca, fit, from_state

KINDS = sorted(transforms.KINDS)


def pixels(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_invert_undoes_apply(kind, dtype):
    images = pixels(40, 3, 5, 5, dtype=dtype)
    transform = fit(kind, images)
    back = transform.invert(transform.apply(images))
    assert back.dtype == dtype and back.shape == images.shape
    # ZCA's two matrices are kept in float32, so that is its precision in any dtype; |z| reaches
    # sqrt(1 / eps) times |x|
    precision = torch.finfo(torch.float32 if kind == "zca" else dtype).eps
    assert (back - images).abs().max() <= precision * images[0].numel()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lead", [(), (0,), (1,), (2, 3)])
def test_any_leading_dimensions(kind, lead):
    transform = fit(kind, pixels(9, 2, 4, 4))
    images = pixels(*lead, 2, 4, 4)
    assert transform.apply(images).shape == images.shape
    one_by_one = [transform.apply(image) for image in images.reshape(-1, 2, 4, 4)]
    for whole, single in zip(transform.apply(images).reshape(-1, 2, 4, 4), one_by_one, strict=True):
        assert torch.allclose(whole, single, atol=torch.finfo(torch.float32).eps * 64)


@pytest.mark.parametrize("kind", KINDS)
def test_state_round_trip_is_exact(kind):
    images = pixels(20, 1, 6, 6)
    transform = fit(kind, images)
    again = from_state(transform.kind, transform.state())
    assert type(again) is type(transform) and again.state().keys() == transform.state().keys()
    assert all(torch.equal(x, again.state()[name]) for name, x in transform.state().items())
    assert torch.equal(again.apply(images), transform.apply(images))
    assert torch.equal(transform.to("cpu").apply(images), transform.apply(images))


def test_standard_is_fitted_in_float64_over_all_chunks(monkeypatch):
    monkeypatch.setattr(transforms, "CHUNK", 7)
    images = pixels(50, 3, 4, 4)
    truth = images.double().numpy()
    transform = fit("standard", images)
    np.testing.assert_allclose(transform.mean.numpy(), truth.mean((0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(transform.std.numpy(), truth.std((0, 2, 3)), rtol=1e-13)
    seen = transform.apply(images.double())
    assert (
        seen.mean((0, 2, 3)).abs().max() < 1e-13
        and (seen.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-13
    )


def test_standard_keeps_a_large_mean_apart_from_a_small_spread():
    images = (0.9 + 1e-3 * (pixels(2000, 1, 8, 8, dtype=torch.float64) - 0.5)).float()
    transform = fit("standard", images)
    assert transform.std.item() == pytest.approx(
        images.double().std(correction=0).item(), rel=1e-12
    )


def test_constant_channels_survive():
    images = pixels(30, 3, 4, 4)
    images[:, 1] = 0.3
    transform = fit("standard", images)
    assert transform.std[1] == 1.0
    seen = transform.apply(images)
    assert seen.isfinite().all() and seen[:, 1].abs().max() < 1e-6
    assert torch.allclose(transform.invert(seen), images)
    flat = fit("zca", torch.full((5, 1, 3, 3), 0.5))
    assert flat.apply(torch.full((2, 1, 3, 3), 0.5)).abs().max() < 1e-6
    assert torch.allclose(flat.matrix, torch.eye(9) / math.sqrt(ZCA_EPS))


def test_zca_follows_its_formula(monkeypatch):
    monkeypatch.setattr(transforms, "CHUNK", 7)
    images = pixels(60, 1, 3, 4)
    x = images.double().numpy().reshape(60, -1)
    covariance = np.cov(x, rowvar=False)  # divides by n - 1
    s, u = np.linalg.eigh(covariance)
    transform = fit("zca", images)
    np.testing.assert_allclose(transform.matrix.numpy(), (u / np.sqrt(s + 0.1)) @ u.T, atol=1e-6)
    np.testing.assert_allclose(transform.inverse.numpy(), (u * np.sqrt(s + 0.1)) @ u.T, atol=1e-6)
    whitened = np.cov(transform.apply(images.double()).numpy().reshape(60, -1), rowvar=False)
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvalsh(whitened)), np.sort(s / (s + 0.1)), atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_differentiable_twice_in_the_images(kind):
    transform = fit(kind, pixels(12, 1, 2, 2, dtype=torch.float64))
    images = pixels(2, 1, 2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(transform.apply, images) and torch.autograd.gradgradcheck(
        transform.apply, images
    )
    assert torch.autograd.gradcheck(transform.invert, images)


def test_identity_changes_nothing():
    images = pixels(2, 1, 3, 3)
    assert (
        Identity().apply(images) is images
        and Identity().invert(images) is images
        and Identity().state() == {}
    )


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: fit("standart", pixels(2, 1, 2, 2)), ConfigError, "did you mean 'standard'"),
        (lambda: from_state("zac", {}), ConfigError, "did you mean 'zca'"),
        (lambda: fit("standard", pixels(2, 4)), ShapeError, r"expected images \[N, C, H, W\]"),
        (lambda: fit("standard", pixels(0, 1, 2, 2)), ShapeError, "at least one image"),
        (lambda: fit("zca", pixels(1, 1, 2, 2)), DataError, "at least 2 images"),
        (
            lambda: from_state("standard", {"mean": torch.zeros(1)}),
            DataError,
            "the record is damaged",
        ),
        (lambda: from_state("none", {"mean": torch.zeros(1)}), DataError, "the record is damaged"),
        (
            lambda: Standardise(torch.zeros(3), torch.ones(1)),
            ShapeError,
            r"mean \[C\] and std \[C\]",
        ),
        (lambda: Standardise(torch.zeros(1), torch.zeros(1)), DataError, "std > 0"),
        (lambda: Standardise(torch.zeros(1), torch.full((1,), math.nan)), DataError, "finite"),
        (lambda: Zca(torch.zeros(4), torch.eye(3), torch.eye(4)), ShapeError, r"matrix \[D, D\]"),
        (
            lambda: fit("standard", pixels(2, 1, 2, 2)).apply(pixels(2, 3, 2, 2)),
            ShapeError,
            r"\[..., 1, H, W\]",
        ),
        (lambda: fit("zca", pixels(2, 1, 2, 2)).apply(pixels(2, 1, 3, 3)), ShapeError, "C·H·W = 4"),
        (lambda: fit("zca", pixels(2, 1, 2, 2)).invert(pixels(4)), ShapeError, "C·H·W = 4"),
        (
            lambda: fit("standard", pixels(2, 1, 2, 2)).apply(
                torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
            ),
            ShapeError,
            "float",
        ),
    ],
)
def test_refusals(make, error, says):
    with pytest.raises(error, match=says):
        make()
