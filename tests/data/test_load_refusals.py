"""Bad input: one clear sentence each, naming what is wrong and what to do."""

import errno
import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from kdistill.data import load_data
from kdistill.errors import ConfigError, DataError, KDistillError

N = 12
X = np.random.default_rng(0).integers(0, 256, (N, 6, 6, 3), dtype=np.uint8)
Y = np.arange(N) % 3
load = partial(load_data, quiet=True)
F = X.transpose(0, 3, 1, 2).astype(np.float32) / 255


def refused(says: str, spec, error: type[KDistillError] = DataError, **options) -> None:
    with pytest.raises(error) as caught:
        load_data(spec, quiet=True, **options)
    message = str(caught.value)
    assert says in message, message
    assert "\n" not in message and "; " in message and ": expected " in message


def poisoned(rows, value=np.nan):
    images = F.copy()
    for row in rows:
        images[row, 1, 2, 3] = value
    return images


ARRAYS = {
    "one class": ((X, np.zeros(N, int)), "at least 2 classes, got 1 ('0')"),
    "NaN": (
        (poisoned([5]), Y),
        "finite pixels, got NaN or infinity in 1 image, first train image 5",
    ),
    "infinity": ((poisoned([7, 9, 11], -np.inf), Y), "in 3 images, first train image 7"),
    "more labels": (
        (X, np.arange(N + 1)),
        "as many labels as images in train, got 13 labels for 12 images",
    ),
    "fewer labels": ((X, Y[:-1]), "got 11 labels for 12 images"),
    "no images": ((X[:0], Y[:0]), "training images, got none"),
    "empty list": (([], []), "images, got none"),
    "normalised": (
        ((F - 0.5) / 0.25, Y),
        "they look normalised: give the images as they were before",
    ),
    "0..16": (
        (F * 16, Y),
        "pixels in 0..1 (or 0..255), got 0..16; divide them by their largest possible value",
    ),
    "beyond 255": ((F * 1000, Y), "divide them by their largest possible value"),
    "negative integers": ((X.astype(int) - 3, Y), "got -3..252"),
    "flat rows": ((X.reshape(N, -1), Y), "reshape each row to [H, W]"),
    "five channels": ((np.zeros((N, 5, 6, 6), np.uint8), Y), "expected 1 or 3 channels"),
    "five dimensions": ((X[None], Y), "got [1, 12, 6, 6, 3]"),
    "not square": (
        (X[:, :4], Y),
        "square images, got 4×6; pass size=32 to resize and centre-crop them",
    ),
    "two sizes": (
        ([*X[:-1], X[0, :4]], Y),
        "6×6 (train image 0) and 4×6 (train image 11); pass size=32",
    ),
    "text for pixels": ((np.array([["a"]]), Y), "to be numbers"),
    "complex": (
        (torch.zeros(N, 1, 6, 6, dtype=torch.complex64), Y),
        "real numbers, got torch.complex64",
    ),
    "fractions": ((X, Y + 0.5), "whole numbers or text in train, got 0.5"),
    "soft labels": ((X, np.full((N, 3), 1 / 3)), "one label per image in train, got [12, 3]"),
    "missing label": ((X, [None, *Y[1:].tolist()]), "whole numbers or text in train, got None"),
    "NaN label": ((X, np.where(Y == 2, np.nan, Y)), "got nan"),
    "ragged labels": ((X, [[0], [1, 2]] * 6), "one label per image"),
    "unknown names": (
        {"a": X, "b": Y},
        "expected 'x_train' and 'y_train', 'train_images' and 'train_labels'",
    ),
    "a number": (3, "expected a name, a path, (X, y) arrays or a data set with a length, got int"),
    "an empty data set": ([], "got an empty list"),
    "items without labels": ([*X], "expected items (image, label), got ndarray at item 0"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(case):
    spec, says = ARRAYS[case]
    refused(says, spec)


def test_labels_out_of_range():
    refused("a label in 0..1, got 2 (train image 2; 4 images in all)", (X, Y), num_classes=2)
    refused("a label in 0..2, got -1 (train image 0; 4 images in all)", (X, Y - 1), num_classes=3)
    refused("a label in 0..1, got 2 (train image 2", (X, Y), classes=["a", "b"])
    refused("training images of every class, got none of '3' and 1 more", (X, Y), num_classes=5)
    refused(
        "one of the class names, got 'c' (train image 2",
        (X, np.array(["a", "b", "c"])[Y]),
        classes=["a", "b"],
    )
    refused(
        "a class of the training images, got 3 (test image 1; 1 image in all)",
        (X, Y),
        test=(X[:2], [0, 3]),
    )
    refused(
        "the labels of test to be of one kind, got text where the training labels are numbers",
        (X, Y),
        test=(X, ["a"] * N),
    )


def test_contradicting_options():
    refused(
        "num_classes: expected 2 as there are class names, got 3",
        (X, Y % 2),
        ConfigError,
        classes=["a", "b"],
        num_classes=3,
    )
    refused("distinct names, got 'a' twice", (X, Y % 2), ConfigError, classes=["a", "a"])
    refused("num_classes: expected at least 2, got 1", (X, Y), ConfigError, num_classes=1)
    refused("did you mean 'standard'", (X, Y), ConfigError, normalisation="standart")
    for size in (0, -3, 2.5, "32", True):
        refused("size: expected a positive whole number", (X, Y), ConfigError, size=size)


def test_splits_of_different_sizes():
    refused("images of one size, got 6×6 in train and 4×4 in test", (X, Y), test=(X[:, :4, :4], Y))
    assert load_data((X, Y), test=(X[:, :4, :4], Y), size=5, quiet=True).size == 5


@pytest.mark.parametrize("spec", ["", " "])
def test_an_empty_path_is_not_the_current_folder(spec, tree, monkeypatch):
    monkeypatch.chdir(tree({"cat": 3, "dog": 3}))
    refused("a name or a path, got '", spec)


@pytest.mark.parametrize(
    "spec", ["no/such/folder", "./nothing", "~/nothing-here", "missing.npz", "images.zip"]
)
def test_missing_path(spec):
    refused(f"an existing file or folder, got {spec}; check the path", spec)


def test_folders(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("one folder per class", tmp_path / "empty")
    root = tree({"cat": 2}, name="one")
    refused("at least 2 classes, got 1 ('cat')", root)
    (root / "dog").mkdir()
    refused(
        "at least 2 classes, got 1 ('cat')", root
    )  # an empty class folder stops nothing by itself
    flat = tree({"": 3}, name="flat")
    refused("expected one folder per class", flat)
    root = tree({"cat": 2, "dog": 2}, name="sizes")
    tree({"dog": 1}, name="sizes", size=(9, 7))
    refused(
        f"8×8 ({root / 'cat' / '000.png'}) and 7×9 ({root / 'dog' / '000.png'}); pass size=32", root
    )
    refused("square images, got 9×5", tree({"cat": 2, "dog": 2}, name="tall", size=(5, 9)))
    root = tree({"train/a": 1, "train/b": 1, "test/a": 1, "test/c": 1}, name="classes")
    refused("one of the class names, got 'c'", root)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("damage", ["truncated", "zeros", "text", "empty"])
def test_damaged_pictures_are_named(suffix, damage, tree):
    root = tree({"cat": 2, "dog": 2}, suffix=suffix, size=(64, 64))
    file = root / "dog" / f"001{suffix}"
    whole = file.read_bytes()
    file.write_bytes(
        {
            "truncated": whole[: len(whole) // 3],
            "zeros": bytes(len(whole)),
            "text": b"<html>",
            "empty": b"",
        }[damage]
    )
    refused(f"a picture that Pillow can read, got {file} (", root)


def test_files(tmp_path):
    (tmp_path / "set.xml").write_text("1,2")
    refused("a folder or a file of a known kind, got set.xml", tmp_path / "set.xml")
    for suffix in (".npz", ".safetensors", ".pt"):
        file = tmp_path / f"set{suffix}"
        for content in (b"", b"rubbish", b"PK\x03\x04rubbish", bytes(100)):
            file.write_bytes(content)
            refused(f"a whole {suffix} file of arrays, got {file}", file)
    np.savez(tmp_path / "set.npz", x=X, y=Y)
    whole = (tmp_path / "set.npz").read_bytes()
    for damaged in (whole[:-30], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]):
        (tmp_path / "set.npz").write_bytes(damaged)
        refused("copy or download it again", tmp_path / "set.npz")
    np.savez(tmp_path / "set.npz", images=X)
    refused("in set.npz, got ['images']; rename the arrays", tmp_path / "set.npz")
    torch.save([torch.zeros(2)], tmp_path / "set.pt")
    refused("a dict or a pair (images, labels) in set.pt, got list", tmp_path / "set.pt")
    with (tmp_path / "set.npz").open("wb") as stream:
        np.save(stream, X)
    refused("a single array", tmp_path / "set.npz")


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_pickles_are_never_executed(tmp_path):
    torch.save({"images": torch.zeros(2, 1, 4, 4), "labels": Trap()}, tmp_path / "set.pt")
    refused("pickled objects are never executed: save plain arrays", tmp_path / "set.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    refused("pickled objects are never executed", tmp_path / "old.pt")
    np.savez(tmp_path / "set.npz", x=np.array([Trap(), None]), y=np.zeros(2))
    refused("pickled objects are never executed", tmp_path / "set.npz")


def test_named_pipes_and_links_to_themselves_end_in_a_sentence(tree, tmp_path):
    for name in ("pipe.csv", "pipe.npz", "pipe"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(
            DataError, match=r"expected a regular file or a folder, got .*pipe.*; check the path"
        ):
            load(tmp_path / name)
    root = tree({"a": 3, "b": 3})
    (root / "round").symlink_to("round")
    (root / "a" / "round").symlink_to("round")
    notes = load(root, test=0).describe()
    assert notes.count("a link that leads nowhere") == 2


def test_a_folder_that_cannot_be_listed_is_named(tree, monkeypatch):
    root, scandir = tree({"a": 3, "b": 3}), os.scandir

    def refuses(folder):
        if Path(folder).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(
        DataError,
        match=r"expected folders that can be listed, got .*/b \(Permission denied\); change its",
    ):
        load(root)
