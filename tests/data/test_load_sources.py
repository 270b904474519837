"""Every kind of source in the process gives the same images, labels and names."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from kdistill.errors import ConfigError, DataError
from tests.data._sources import (
    SIDE,
    ClassLabel,
    HFImage,
    HuggingFace,
    Items,
    N,
    Value,
    chw,
    items,
    load,
)

FORMS = {
    "uint8 NHWC": lambda x, y: (x, y),
    "uint8 NCHW": lambda x, y: (chw(x), y),
    "float NCHW": lambda x, y: ((chw(x) / np.float32(255)), y),
    "float NHWC": lambda x, y: (x / np.float32(255), y),
    "float64": lambda x, y: (chw(x) / 255, y.astype(float)),
    "0..255 floats": lambda x, y: (chw(x).astype(np.float32), y),
    "int64": lambda x, y: (x.astype(np.int64), y[:, None]),
    "uint16": lambda x, y: (x.astype(np.uint16) * 257, np.eye(3, dtype=int)[y]),
    "tensors": lambda x, y: (torch.from_numpy(x), torch.from_numpy(y)),
    "float tensors": lambda x, y: (torch.from_numpy(chw(x)) / 255, torch.from_numpy(y)),
    "lists": lambda x, y: ([*x], y.tolist()),
    "list of two arrays": lambda x, y: [x, y],
    "object array": lambda x, y: (np.array([*x, None], dtype=object)[:-1], y),
    "pictures": lambda x, y: ([Image.fromarray(image) for image in x], y.tolist()),
    "dict": lambda x, y: {"images": x, "labels": y},
    "read-only": lambda x, y: (np.frombuffer(x.tobytes(), np.uint8).reshape(x.shape), y),
    "strided": lambda x, y: (np.repeat(x, 2, axis=2)[:, :, ::2], y),
    "big-endian": lambda x, y: (x.astype(np.uint8), y.astype(">i4")),
    "TensorDataset": lambda x, y: TensorDataset(torch.from_numpy(chw(x)), torch.from_numpy(y)),
    "dataset of pictures": lambda x, y: Items(
        [(Image.fromarray(a), int(b)) for a, b in zip(x, y, strict=True)]
    ),
    "dataset of floats": lambda x, y: Items(
        [(torch.from_numpy(a / np.float32(255)), b) for a, b in zip(chw(x), y, strict=True)]
    ),
    "dataset of dicts": lambda x, y: Items(
        [{"image": a, "label": b} for a, b in zip(x, y, strict=True)]
    ),
    "dataset of datasets": lambda x, y: ConcatDataset([items(x[:9], y[:9]), items(x[9:], y[9:])]),
    "plain list of pairs": lambda x, y: [*zip(x, y, strict=True)],
    "Hugging Face": lambda x, y: HuggingFace(
        {"id": range(N), "picture": [Image.fromarray(a) for a in x], "digit": y.tolist()},
        {"id": Value(), "picture": HFImage(), "digit": ClassLabel(["0", "1", "2"])},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_data_set(form, colour):
    truth, data = load(colour), load(FORMS[form](*colour))
    assert data.train.images.dtype == torch.float32 and data.train.images.is_contiguous()
    assert data.train.images.min() >= 0 and data.train.images.max() <= 1
    assert torch.allclose(data.train.images, truth.train.images, rtol=0, atol=1e-6)
    assert torch.equal(data.train.labels, truth.train.labels) and data.classes == ("0", "1", "2")
    assert torch.equal(data.test.labels, truth.test.labels) and len(data.test) == 5


def test_values_are_those_of_the_source(colour):
    x, y = colour
    data = load(colour, test=(x[:6], y[:6]))
    assert torch.equal(data.train.images, torch.from_numpy(chw(x)).float() / 255)
    assert data.train.labels.tolist() == y.tolist() and torch.equal(
        data.test.images, data.train.images[:6]
    )


def test_grey_arrays_get_one_channel(colour):
    x, y = colour[0][..., 0], colour[1]
    shapes = [x, x[:, None], x[..., None], torch.from_numpy(x), [*x]]
    images = [load((form, y)).train.images for form in shapes]
    assert all(torch.equal(image, images[0]) for image in images) and images[0].shape[1:] == (
        1,
        SIDE,
        SIDE,
    )
    booleans = load((x > 127, y)).train.images
    assert set(booleans.unique().tolist()) == {0.0, 1.0}


def test_alpha_lies_over_white(colour):
    x, y = colour
    alpha = np.full((N, SIDE, SIDE, 1), 255, np.uint8)
    alpha[:, :3] = 0
    seen = load((np.concatenate([x, alpha], 3), y), test=(x, y))
    assert (seen.train.images[:, :, :3] == 1).all() and "alpha laid over white" in seen.describe()
    assert torch.allclose(seen.train.images[:, :, 3:], seen.test.images[:, :, 3:], atol=1e-6)
    floats = load((np.concatenate([x, alpha], 3) / 255, y)).train.images
    grey = load((np.concatenate([x[..., :1], alpha], 3), y)).train.images
    assert torch.allclose(floats, load((np.concatenate([x, alpha], 3), y)).train.images, atol=1e-6)
    assert grey.shape[1] == 1 and (grey[:, :, :3] == 1).all()


def test_grey_joins_colour(colour):
    x, y = colour
    data = load((x, y), test=(x[..., :1], y))
    assert data.channels == 3 and torch.equal(data.test.images[:, 0], data.test.images[:, 2])
    mixed = load(([x[0, ..., 0], *x[1:]], y))
    assert mixed.channels == 3


def test_slight_overshoot_is_clipped_and_said(colour):
    x = np.clip(chw(colour[0]) / 255 * 1.01 - 0.005, -0.005, 1.005)
    data = load((x.astype(np.float32), colour[1]))
    assert (
        data.train.images.min() >= 0
        and data.train.images.max() <= 1
        and "clipped to 0..1" in data.describe()
    )
    assert (
        "taken as 0..255 and divided by 255"
        in load((chw(colour[0]).astype(float), colour[1])).describe()
    )


def test_range_is_settled_over_all_splits_together(colour):
    x, y = chw(colour[0]).astype(np.float32), colour[1]
    dark = load((x, y), test=(np.minimum(x, 1.0), y))
    assert dark.test.images.max() <= 1 / 255 + 1e-7


@pytest.mark.parametrize("size", [3, 6, 9])
def test_size_scales_the_short_side_and_crops_the_middle(size):
    wide = np.zeros((8, 6, 18), np.uint8)
    wide[:, :, 6:12] = 200  # the middle third
    data = load((wide, np.arange(8) % 2), size=size)
    assert data.size == size and torch.allclose(
        data.train.images[..., 1:-1], torch.tensor(200 / 255), atol=0.2
    )
    tall = load((wide.transpose(0, 2, 1).copy(), np.arange(8) % 2), size=size)
    assert torch.allclose(tall.train.images.transpose(2, 3), data.train.images, atol=1e-6)


def test_resizing_agrees_with_pillow_and_stays_in_range(colour):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (4, 40, 40), dtype=np.uint8)
    data = load((x, [0, 1, 0, 1]), size=13, test=(x, [0, 1, 0, 1]))
    pillow = np.stack(
        [
            np.asarray(Image.fromarray(image).resize((13, 13), Image.Resampling.BICUBIC))
            for image in x
        ]
    )
    assert np.abs((data.train.images[:, 0].numpy() * 255).round() - pillow).max() <= 1
    floats = load(((x / 255).astype(np.float32), [0, 1, 0, 1]), size=13, test=(x, [0, 1, 0, 1]))
    assert (
        floats.train.images - data.train.images
    ).abs().max() <= 1.5 / 255  # Pillow rounds to 8 bits between its two passes
    sharp = load(
        (
            np.kron(np.eye(8, dtype=np.uint8) * 255, np.ones((5, 5), np.uint8))[None].repeat(4, 0),
            [0, 1, 0, 1],
        ),
        size=16,
    )
    assert sharp.train.images.min() >= 0 and sharp.train.images.max() <= 1


def test_pictures_of_several_sizes_fit_with_size():
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 256, (8 + k, 16 - k, 3), dtype=np.uint8) for k in range(8)]
    data = load((x, [0, 1] * 4), size=8)
    assert data.train.images.shape[1:] == (3, 8, 8)


def test_labels_of_any_kind(colour):
    x, y = colour
    ids = load((x, y * 10 - 10))
    assert ids.classes == ("-10", "0", "10")
    names = np.array(["zebra", "ant", "cat"])
    for labels in (names[y], names[y].tolist(), names[y].astype(object), np.char.encode(names[y])):
        data = load((x, labels))
        assert data.classes == ("ant", "cat", "zebra")
        whole = load((x, labels), test=(x, labels)).train.labels
        assert [data.classes[k] for k in whole] == names[y].tolist()
    assert load((x, y), classes=["a", "b", "c"]).classes == ("a", "b", "c")
    assert load((x, y), num_classes=3).classes == ("0", "1", "2")
    assert load((x, y > 0)).classes == ("0", "1")
    ordered = load((x, names[y]), classes=names.tolist())
    assert ordered.classes == tuple(names) and torch.equal(
        ordered.train.labels, load((x, y)).train.labels
    )


def test_unequal_classes_and_a_class_of_one():
    y = np.array([0] * 20 + [1] * 3 + [2])
    data = load((np.zeros((24, 4, 4), np.uint8) + y.astype(np.uint8)[:, None, None], y))
    assert torch.bincount(data.train.labels).tolist() == [16, 2, 1] and torch.bincount(
        data.test.labels
    ).tolist() == [4, 1]
    assert "3 classes of 1 to 16 training images" in data.describe()


def test_share_of_test_images(colour):
    data = load(colour, test=0.5)
    assert len(data.test) == 12 and "50% of the images split off" in data.describe()
    with pytest.raises(ConfigError, match="test: expected no share"):
        load(
            {"x_train": colour[0], "y_train": colour[1], "x_test": colour[0], "y_test": colour[1]},
            test=0.5,
        )
    with pytest.raises(ConfigError, match="share between 0 and 1"):
        load(colour, test=1.5)


def test_no_test_images_are_not_announced_as_split_off(colour):
    data = load((colour[0][:3], colour[1][:3]))
    assert len(data.test) == 0
    assert "no image split off for testing" in data.describe() and "20%" not in data.describe()


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_bytes_and_floats_in_one_source_get_one_scale(colour, scale):
    x, y = colour
    mixed = [
        image if row % 2 else image.astype(np.float32) * np.float32(scale)
        for row, image in enumerate(x)
    ]
    torch.testing.assert_close(load((mixed, y)).train.images, load(colour).train.images)
    torch.testing.assert_close(load(items(mixed, y)).train.images, load(colour).train.images)


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_sixteen_bits_beside_bytes_and_floats_are_divided_once(colour, scale):
    x, y = colour
    forms = (
        lambda image: image.astype(np.uint16) * 257,  # 255 becomes 65535
        lambda image: image.astype(np.float32) * np.float32(scale),
        lambda image: image,
        lambda image: np.concatenate(
            [image, np.full_like(image[..., :1], 255)], 2
        ),  # bytes with alpha
    )
    mixed = [forms[row % 4](image) for row, image in enumerate(x)]
    torch.testing.assert_close(load(items(mixed, y)).train.images, load(colour).train.images)
    for size in (None, 4):  # another split, another type
        data = load(
            {"x_train": forms[0](x), "y_train": y, "x_test": forms[1](x), "y_test": y}, size=size
        )
        torch.testing.assert_close(
            data.train.images, data.test.images, atol=2e-3 if size else 1e-6, rtol=0
        )


def test_dataset_names_and_subsets(colour):
    named = items(*colour, classes=["x", "y", "z"])
    assert load(named).classes == ("x", "y", "z") and load(named).name == "items"
    rows = [row for row in range(N) if colour[1][row] != 1]
    subset = load(Subset(Subset(named, range(N)), rows))
    assert subset.classes == ("x", "z") and sorted(set(subset.train.labels.tolist())) == [0, 1]
    tested = load(Subset(named, rows), test=Subset(named, rows[:4]))
    assert [tested.classes[k] for k in tested.test.labels] == [
        "xyz"[colour[1][row]] for row in rows[:4]
    ]


def hf(colour, **columns):
    x, y = colour
    made = {"image": [Image.fromarray(a) for a in x], "label": y.tolist()}
    return HuggingFace(
        {**made, **columns},
        {
            "image": HFImage(),
            "label": ClassLabel(["p", "q", "r"]),
            **dict.fromkeys(columns, Value()),
        },
    )


def test_hugging_face_splits_and_encoded_images(colour):
    def png(image):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    encoded = hf(colour)
    encoded.columns["image"] = [png(a) for a in colour[0]]
    data = load({"train": hf(colour), "test": encoded, "validation": encoded})
    assert (
        data.classes == ("p", "q", "r")
        and torch.equal(data.train.images, data.test.images)
        and len(data.validation) == N
    )
    assert load(hf(colour)).source == "Hugging Face data set"


def test_hugging_face_columns(colour):
    several = hf(colour)
    several.columns["thumb"] = several.columns["image"]
    several.features["thumb"], several.column_names = HFImage(), [*several.column_names, "thumb"]
    assert load(several).size == SIDE  # 'image' is the usual name
    assert load(several, image_column="thumb", label_column="label").size == SIDE
    with pytest.raises(
        ConfigError,
        match="image_column: expected a column of the data set, got 'thum'; did you mean 'thumb'",
    ):
        load(several, image_column="thum")
    unusual = HuggingFace({"a": [0], "b": [0]}, {"a": HFImage(), "b": HFImage()})
    with pytest.raises(ConfigError, match=r"image_column: expected one column, got \['a', 'b'\]"):
        load(unusual)
    with pytest.raises(
        DataError,
        match=r"expected a column of labels in the data set, got the columns \['a'\]; name it with "
        "label_column=",
    ):
        load(HuggingFace({"a": [0]}, {"a": HFImage()}))
    with pytest.raises(DataError, match="expected a split 'train', got \\['test'\\]"):
        load({"test": hf(colour)})
    with pytest.raises(DataError, match="got a stream"):
        load(
            HuggingFace(
                {"image": [0], "label": [0]}, {"image": HFImage(), "label": Value()}, streamed=True
            )
        )
    with pytest.raises(
        ConfigError,
        match="image_column: expected a Hugging Face data set, a data frame or a CSV file, got arr",
    ):
        load(colour, image_column="image")
