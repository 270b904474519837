"""ImageDataset and its splits: stratified, keyed, described, fingerprinted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill.data import ImageDataset, Split, fingerprint, load_data, stratified_split
from kdistill.errors import ConfigError, DataError, ShapeError
from kdistill.transforms import Identity


def arrays(counts=(30, 20, 10), side=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return rng.integers(0, 256, (len(labels), side, side), dtype=np.uint8), labels


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6), st.floats(0.01, 0.99), st.integers(0, 5)
)
def test_stratified_split_is_a_partition_with_the_same_shares(counts, fraction, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    large, small = stratified_split(labels, fraction, seed=seed, purpose="p")
    assert sorted(torch.cat([large, small]).tolist()) == list(range(len(labels)))
    assert large.tolist() == sorted(large.tolist()) and small.tolist() == sorted(small.tolist())
    taken = torch.bincount(labels[small], minlength=len(counts)).tolist()
    for count, take in zip(counts, taken, strict=True):
        assert abs(take - fraction * count) < 1 or take in (1, count - 1)
        assert take < max(count, 1) and (take >= 1 or count < 2)
    again = stratified_split(labels, fraction, seed=seed, purpose="p")
    assert torch.equal(again[1], small)


def test_stratified_split_depends_on_seed_and_purpose():
    labels = torch.zeros(100, dtype=torch.int64)
    draws = {
        stratified_split(labels, 0.2, seed=s, purpose=p)[1].numpy().tobytes()
        for s in (0, 1)
        for p in ("a", "b")
    }
    assert len(draws) == 4


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_share_must_lie_between_0_and_1(fraction):
    with pytest.raises(ConfigError, match="share between 0 and 1"):
        stratified_split(torch.zeros(4, dtype=torch.int64), fraction, seed=0, purpose="p")


def test_holdout_takes_a_share_and_keeps_the_rest():
    data = load_data(arrays(), quiet=True)
    smaller, validation = data.holdout(0.25, seed=3)
    assert len(smaller.train) + len(validation) == len(data.train) == 48 and len(validation) == 12
    rows = {image.numpy().tobytes() for image in data.train.images}
    parts = [
        {image.numpy().tobytes() for image in split.images} for split in (smaller.train, validation)
    ]
    assert parts[0] | parts[1] == rows and not parts[0] & parts[1]
    assert (
        smaller.test is data.test
        and smaller.transform is data.transform
        and smaller.fingerprint == data.fingerprint
    )
    assert torch.equal(validation.images, data.holdout(0.25, seed=3)[1].images)
    assert not torch.equal(validation.images, data.holdout(0.25, seed=4)[1].images)


def test_a_share_of_0_holds_nothing_out():
    data = load_data(arrays(), quiet=True)
    smaller, validation = data.holdout(0.0)
    assert smaller is data and len(validation) == 0
    assert validation.images.shape[1:] == data.train.images.shape[1:]


def test_holdout_gives_the_validation_split_of_the_source():
    (x, y), (xv, yv) = arrays(), arrays(seed=1)
    data = load_data(
        {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "x_val": xv, "y_val": yv}, quiet=True
    )
    smaller, validation = data.holdout(0.5, seed=9)
    assert (
        validation is data.validation
        and smaller.validation is None
        and len(smaller.train) == len(data.train) == 60
    )
    assert "60 training, 60 validation and 60 test images" in data.describe()


def test_fingerprint_sees_shapes_labels_pixels_and_splits():
    x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
    base = fingerprint(Split(x, y))
    others = [
        fingerprint(Split(x.view(4, 2, 2, 1), y)),
        fingerprint(Split(x, 1 - y)),
        fingerprint(Split(x + 2**-20, y)),
        fingerprint(Split(x[:2], y[:2]), Split(x[2:], y[2:])),
        fingerprint(Split(x, y), Split(x[:0], y[:0])),
    ]
    assert len({base, *others}) == 6 and len(base) == 64
    assert base == fingerprint(Split(x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), y))


def test_describe_is_printed_on_standard_error_unless_quiet(capsys):
    data = load_data(arrays(), name="toy")
    out, err = capsys.readouterr()
    assert out == "" and err == data.describe() + "\n"
    assert data.describe().startswith(
        "toy: 48 training and 12 test images, 1×4×4, 3 classes of 8 to 24 training images; mean 0."
    )
    load_data(arrays(), quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "says"),
    [("standard", "mean"), ("zca", "ZCA fitted, eps 0.1"), ("none", "not normalised")],
)
def test_normalisation_is_fitted_on_the_training_images(kind, says):
    data = load_data(arrays(), normalisation=kind, quiet=True)
    assert data.transform.kind == kind and says in data.describe()
    if kind == "standard":
        assert data.transform.mean.item() == pytest.approx(
            data.train.images.double().mean().item(), rel=1e-12
        )
    moved = data.to("cpu")
    assert torch.equal(
        moved.transform.apply(moved.train.images), data.transform.apply(data.train.images)
    )


def test_images_do_not_alias_the_source():
    x, y = np.random.default_rng(0).random((10, 1, 4, 4), dtype=np.float32), np.arange(10) % 2
    data = load_data((x, y), quiet=True, test=0.5)
    before = data.train.images.clone()
    x[:] = 0.0
    y[:] = 0
    assert torch.equal(data.train.images, before) and data.train.labels.sum() > 0


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda x, y: Split(x[0], y), ShapeError, r"float images \[N, C, H, W\]"),
        (lambda x, y: Split((255 * x).byte(), y), ShapeError, "got uint8"),
        (lambda x, y: Split(x, y[:2]), ShapeError, r"int64 labels \[4\]"),
        (lambda x, y: Split(x, y.float()), ShapeError, "got float32"),
        (
            lambda x, y: ImageDataset(Split(x, y), Split(x, y), ("a",)),
            DataError,
            r"labels 0\.\.0, got 1 at train image 1",
        ),
        (
            lambda x, y: ImageDataset(Split(x, y), Split(x, y - 1), ("a", "b")),
            DataError,
            "got -1 at test image 0",
        ),
        (
            lambda x, y: ImageDataset(Split(x[:0], y[:0]), Split(x, y), ("a", "b")),
            DataError,
            "training images, got none",
        ),
        (
            lambda x, y: ImageDataset(Split(x, y), Split(x[:, :, :1], y), ("a", "b")),
            ShapeError,
            "expected test images",
        ),
    ],
)
def test_refusals(make, error, says):
    with pytest.raises(error, match=says):
        make(torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))


def test_made_by_hand_it_needs_only_splits_and_names():
    split = Split(torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))
    data = ImageDataset(split, split, ("a", "b"))
    assert (data.channels, data.size, data.num_classes) == (1, 2, 2) and isinstance(
        data.transform, Identity
    )
    assert data.fingerprint == fingerprint(split, split)
