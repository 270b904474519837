"""The formats of MNIST and CIFAR, written byte by byte."""

import gzip
import struct

import numpy as np
import pytest
import torch

from kdistill.data import data_check
from kdistill.errors import ConfigError, DataError
from tests.data._sources import load

SIDE = 6


def idx(values: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, values.ndim))
        + struct.pack(f">{values.ndim}I", *values.shape)
        + (values.astype(np.uint8).tobytes())
    )


def write_idx(folder, stem, labels, *, dot="-", zipped=False, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), SIDE, SIDE))
    for kind, values in (("images-idx3", images), ("labels-idx1", np.array(labels))):
        name = f"{stem}-{kind.replace('-', dot)}-ubyte"
        content = idx(values)
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return images


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dot", "-.")
def test_a_folder_like_that_of_mnist(tmp_path, dot, zipped):
    train = write_idx(tmp_path, "train", list(range(10)) * 2, dot=dot, zipped=zipped)
    test = write_idx(tmp_path, "t10k", [9, 0, 3], dot=dot, zipped=zipped, seed=1)
    data = load(tmp_path)
    for split, images in ((data.train, train), (data.test, test)):
        assert torch.equal(split.images[:, 0], torch.from_numpy(images).float() / 255)
    assert data.test.labels.tolist() == [9, 0, 3]
    assert data.classes == tuple("0123456789") and not data.mirrors
    assert load(tmp_path, size=3).train.images.shape == (20, 1, 3, 3)


def test_fashion_mnist_is_known_by_its_labels_and_may_be_mirrored(tmp_path):
    write_idx(tmp_path, "train", [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 1, 4, 6, 8])
    write_idx(tmp_path, "t10k", [9, 2])
    data = load(tmp_path)
    assert data.classes[9] == "Ankle boot" and data.classes[0] == "T-shirt/top"
    assert data.test.labels.tolist() == [9, 2] and data.mirrors


def test_emnist_is_turned_upright_and_named_by_its_mapping(tmp_path):
    images = write_idx(tmp_path, "emnist-letters-train", [1, 2, 3, 1])
    write_idx(tmp_path, "emnist-letters-test", [3, 2])
    write_idx(tmp_path, "emnist-digits-train", [0, 1])
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n3 67 99\n")
    with pytest.raises(DataError, match="name the file of its training images instead"):
        load(tmp_path)
    data = load(tmp_path / "emnist-letters-train-images-idx3-ubyte")
    assert data.classes == ("A", "B", "C") and not data.mirrors
    assert data.train.labels.tolist() == [0, 1, 2, 0] and data.test.labels.tolist() == [2, 1]
    upright = torch.from_numpy(images.transpose(0, 2, 1).copy()).float() / 255
    assert torch.equal(data.train.images[:, 0], upright)
    assert any("EMNIST" in note for note in data.notes)


def test_digits_and_letters_together_are_not_mirrored(tmp_path):
    labels = [0, 1, 2, 0]
    write_idx(tmp_path, "train", labels)
    write_idx(tmp_path, "t10k", labels)
    assert load(tmp_path, name="objects").mirrors
    assert not load(tmp_path, name="objects", classes=("0", "A", "b")).mirrors


def break_magic(path):
    path.write_bytes(b"\x00\x00\x0d" + path.read_bytes()[3:])


def break_end(path):
    path.write_bytes(path.read_bytes()[:-1])


def add_byte(path):
    path.write_bytes(path.read_bytes() + b"\x00")


def claim_gigabytes(path):
    path.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", 60_000, 6_000, 6_000) + bytes(100))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            break_magic,
            "expected an IDX file of images as single bytes, got .* begins with 00 00 0d",
        ),
        (break_end, "expected 720 values in train-images-idx3-ubyte, got 719"),
        (add_byte, "expected 720 values in train-images-idx3-ubyte, got more"),
        (
            claim_gigabytes,
            "expected fewer values in train-images-idx3-ubyte, got 2,160,000,000,000",
        ),
        (lambda path: path.write_bytes(b""), "begins with nothing"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, damage, message):
    write_idx(tmp_path, "train", list(range(10)) * 2)
    damage(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_damaged_gzip_file_is_named(tmp_path):
    write_idx(tmp_path, "train", [0, 1], zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"expected a whole IDX file, got .*\.gz"):
        load(tmp_path)


def test_labels_that_do_not_fit_the_images(tmp_path):
    write_idx(tmp_path, "train", [0, 1, 2])
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.array([0, 1])))
    with pytest.raises(DataError, match="expected as many labels as images in train, got 2 labels"):
        load(tmp_path)
    labels.unlink()
    with pytest.raises(
        DataError, match=r"expected train-labels-idx1-ubyte in .*, got no such file"
    ):
        load(tmp_path)


def test_a_label_that_the_mapping_lacks_and_a_broken_mapping(tmp_path):
    write_idx(tmp_path, "emnist-letters-train", [1, 2, 7])
    mapping = tmp_path / "emnist-letters-mapping.txt"
    mapping.write_text("1 65 97\n2 66 98\n")
    with pytest.raises(DataError, match="expected labels of the 2 classes that are named, got 7"):
        load(tmp_path)
    mapping.write_text("1 A\n")
    with pytest.raises(DataError, match="expected a label and a character code per line"):
        load(tmp_path)


def write_cifar(folder, name, labels, seed=0):
    """Write records whose labels are rows of bytes; return the images."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    rows = np.array(labels, dtype=np.uint8).reshape(len(labels), -1)
    np.concatenate([rows, images.reshape(len(labels), -1)], 1).tofile(folder / name)
    return images


@pytest.fixture
def cifar10(tmp_path):
    images = [
        write_cifar(tmp_path, f"data_batch_{k}.bin", [k - 1, k + 4], seed=k) for k in range(1, 6)
    ]
    write_cifar(tmp_path, "test_batch.bin", [3, 1])
    return tmp_path, np.concatenate(images)


def test_cifar_10(cifar10):
    folder, images = cifar10
    data = load(folder)
    assert torch.equal(data.train.images, torch.from_numpy(images).float() / 255)
    assert data.train.labels.tolist() == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    assert data.test.labels.tolist() == [3, 1] and data.mirrors
    names = tuple(f"kind {k}" for k in range(10))
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    assert load(folder).classes == names
    assert data_check.check_data(folder, quiet=True).findings
    with pytest.raises(ConfigError, match=r"label_column: expected labels of .*, got 'fine'"):
        load(folder, label_column="fine")
    with pytest.raises(ConfigError, match="stream: expected pictures in files"):
        load(folder, stream=True)


def test_cifar_100_has_fine_and_coarse_labels(tmp_path):
    labels = [[k % 20, k] for k in range(100)]
    write_cifar(tmp_path, "train.bin", labels)
    write_cifar(tmp_path, "test.bin", labels[:7])
    (tmp_path / "coarse_label_names.txt").write_text("\n".join(f"group {k}" for k in range(20)))
    fine, coarse = load(tmp_path), load(tmp_path, label_column="coarse")
    assert fine.train.labels.tolist() == list(range(100)) and len(fine.classes) == 100
    assert coarse.classes[3] == "group 3" and coarse.test.labels.tolist() == list(range(7))
    (tmp_path / "coarse_label_names.txt").write_text("one\ntwo")
    with pytest.raises(DataError, match="expected 20 names in coarse_label_names"):
        load(tmp_path, label_column="coarse")


def test_damaged_cifar_files_are_named(cifar10):
    folder, _ = cifar10
    batch = folder / "data_batch_2.bin"
    whole = batch.read_bytes()
    break_end(batch)
    with pytest.raises(DataError, match="expected whole records of 3,073 bytes in data_batch_2"):
        load(folder)
    batch.write_bytes(bytes([77]) + whole[1:])
    with pytest.raises(DataError, match=r"expected labels 0 to 9 in .*, got 77 \(image 2\)"):
        load(folder)
    batch.unlink()
    with pytest.raises(DataError, match=r"expected data_batch_2.bin in .*, got no such file"):
        load(folder)


@pytest.mark.parametrize("files", [("data_batch_1", "batches.meta"), ("train", "meta")])
def test_the_pickled_form_of_cifar_is_refused(tmp_path, files):
    for name in files:
        (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match="take the binary version of the set"):
        load(tmp_path)
