"""Files of named arrays and folders of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.data._sources import chw, load

NPZ = {
    "keras": ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val"),
    "medmnist": (
        "train_images",
        "train_labels",
        "test_images",
        "test_labels",
        "val_images",
        "val_labels",
    ),
    "upper case": ("X_train", "Y_train", "X_test", "Y_test", "X_val", "Y_val"),
}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("names", NPZ)
def test_files_of_named_arrays(suffix, names, colour, tmp_path):
    x, y = colour
    arrays = dict(zip(NPZ[names], (x, y, x[:9], y[:9], x[:6], y[:6]), strict=True))
    path = tmp_path / f"set{suffix}"
    save(path, arrays)
    data = load(path)
    assert (len(data.train), len(data.test), len(data.validation)) == (24, 9, 6)
    assert (
        torch.equal(data.train.images, torch.from_numpy(chw(x)).float() / 255)
        and data.name == "set"
        and data.source == str(path)
    )


def save(path, arrays):
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


@pytest.mark.parametrize(
    "pair", [("x", "y"), ("X", "y"), ("images", "labels"), ("data", "targets")]
)
def test_files_with_one_plain_pair(pair, colour, tmp_path):
    np.savez(tmp_path / "set.npz", **dict(zip(pair, colour, strict=True)))
    assert torch.equal(load(str(tmp_path / "set.npz")).train.images, load(colour).train.images)


def test_pt_with_a_pair(colour, tmp_path):
    torch.save((torch.from_numpy(colour[0]), torch.from_numpy(colour[1])), tmp_path / "set.pt")
    assert torch.equal(load(tmp_path / "set.pt").train.images, load(colour).train.images)


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("RGB", ".png", 3),
        ("L", ".png", 1),
        ("LA", ".png", 1),
        ("RGBA", ".png", 3),
        ("P", ".png", 3),
        ("1", ".png", 1),
        ("I;16", ".png", 1),
        ("RGB", ".jpg", 3),
        ("CMYK", ".jpg", 3),
        ("RGB", ".bmp", 3),
        ("RGB", ".webp", 3),
        ("P", ".gif", 3),
        ("I;16", ".tif", 1),
        ("L", ".JPEG", 1),
    ],
)
def test_folders_of_every_kind_of_picture(mode, suffix, channels, tree):
    data = load(tree({"cat": 4, "dog": 3}, mode=mode, suffix=suffix))
    assert (data.channels, data.size, data.classes, data.name) == (
        channels,
        8,
        ("cat", "dog"),
        "pets",
    )
    assert (
        len(data.train) + len(data.test) == 7
        and 0 <= data.train.images.min() < 0.5 < data.train.images.max() <= 1
    )


def test_pixels_of_a_folder_are_those_of_its_files(tree):
    root = tree({"train/b": 2, "train/a": 1, "test/a": 1, "test/b": 1})
    data = load(root)
    files = ["a/000.png", "b/000.png", "b/001.png"]
    for image, label, file in zip(data.train.images, data.train.labels, files, strict=True):
        assert np.array_equal(
            (image * 255).round().numpy(),
            np.asarray(Image.open(root / "train" / file)).transpose(2, 0, 1),
        )
        assert data.classes[label] == file[0]
    assert len(data.test) == 2 and "split off" not in data.describe()


def test_sixteen_bits_and_palettes_keep_their_values(tmp_path, picture):
    deep = picture("I;16", seed=5)
    palette = picture("RGB", seed=6).quantize(7)
    see_through = picture("L", seed=7)
    for name, image, extra in (
        ("deep", deep, {}),
        ("palette", palette, {}),
        ("see-through", see_through, {"transparency": 0}),
    ):
        (tmp_path / name / "a").mkdir(parents=True)
        (tmp_path / name / "b").mkdir()
        for folder in "ab":
            image.save(tmp_path / name / folder / "0.png", **extra)
    seen = {
        name: load(tmp_path / name, test=0.5).train.images[0].numpy()
        for name in ("deep", "palette", "see-through")
    }
    assert np.allclose(seen["deep"][0], np.asarray(deep) / 65535, atol=1e-7)
    assert np.allclose(
        seen["palette"] * 255, np.asarray(palette.convert("RGB")).transpose(2, 0, 1), atol=1e-4
    )
    grey = np.asarray(see_through)
    assert seen["see-through"].shape[0] == 1 and np.allclose(
        seen["see-through"][0] * 255, np.where(grey == 0, 255, grey), atol=1e-4
    )


def test_mixed_folder_grey_colour_and_depths(tree):
    root = tree({"a": 2}, mode="L")
    for other in ("RGB", "RGBA", "I;16", "P"):
        tree({f"x/{other.replace(';', '')}": 1}, mode=other)
    (root / "x").rename(root / "b")
    data = load(root)
    assert (
        data.channels == 3
        and len(data.train) + len(data.test) == 6
        and "alpha laid over white" in data.describe()
    )


def test_orientation_of_photographs_is_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    image = Image.new("RGB", (8, 8))
    image.paste("white", (0, 0, 8, 4))
    for folder in "ab":
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / "0.png", exif=exif)
    upright = load(tmp_path, test=0.5).train.images[0, 0]
    assert (upright[:, 4:] == 1).all() and (upright[:, :4] == 0).all()


def test_layout_with_val_only_and_with_all_three(tree):
    data = load(tree({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1}, name="two"))
    assert (
        len(data.test) == 2
        and data.validation is None
        and "the validation images serve as the test images" in data.describe()
    )
    data = load(
        tree(
            {f"{s}/{c}": k for s, k in (("train", 3), ("valid", 2), ("test", 1)) for c in "ab"},
            name="three",
        )
    )
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 4, 2)


def test_a_class_may_be_called_train(tree):
    data = load(tree({"train": 3, "plane": 3}))
    assert data.classes == ("plane", "train")


def test_other_files_hidden_ones_and_subfolders(tree):
    root = tree({"a/deep/er": 2, "b": 3, ".git": 1, "__MACOSX": 1})
    (root / "b" / "notes.txt").write_text("not a picture")
    (root / "b" / ".hidden.png").write_text("not a picture")
    (root / "README").write_text("not a class")
    data = load(root)
    assert (
        data.classes == ("a", "b")
        and len(data.train) + len(data.test) == 5
        and "1 other file in train ignored" in data.describe()
    )


def test_test_images_from_another_folder_are_matched_by_name(tree):
    train, test = tree({"a": 2, "b": 2, "c": 2}, name="one"), tree({"b": 1, "c": 1}, name="two")
    data = load(train, test=test)
    assert [data.classes[k] for k in data.test.labels] == ["b", "c"] and data.source == str(train)


def test_classes_rename_or_reorder_the_names_of_the_source(tree):
    root = tree({"train/a": 2, "train/b": 1, "test/a": 1, "test/b": 1})
    assert load(root, classes=["ant", "bee"]).classes == ("ant", "bee")
    reordered = load(root, classes=["b", "a"])
    assert reordered.classes == ("b", "a") and reordered.train.labels.tolist() == [1, 1, 0]
    assert reordered.test.labels.tolist() == [1, 0]
