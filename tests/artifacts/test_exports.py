import importlib.util
import io
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.export import WRITERS, class_folders
from kdistill.artifacts.image_grids import to_image
from kdistill.data import load_data
from kdistill.errors import ConfigError, DataError, MissingExtraError
from kdistill.transforms import Standardise, fit


def a_set(ipc=2, k=3, channels=3, size=4, transform=None, **fields):
    images = (
        torch.rand(ipc * k, channels, size, size, generator=torch.Generator().manual_seed(0)) * 1.4
        - 0.2
    )
    labels = torch.arange(k).repeat(ipc)  # interleaved: exports must order by class themselves
    transform = transform or Standardise(torch.full((channels,), 0.4), torch.full((channels,), 0.2))
    return DistilledDataset(
        **{"images": images, "labels": labels, "transform": transform, **fields}
    )


def read_pt(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_imagefolder_holds_the_rounded_pixels(tmp_path, channels):
    small = a_set(channels=channels, classes=["cat", "dog", "owl"])
    small.to_imagefolder(tmp_path / "png")
    assert sorted(os.listdir(tmp_path / "png")) == [".kdistill.json", "cat", "dog", "owl"]
    for label, name in enumerate(small.classes):
        for i, image in enumerate(small.images[small.labels == label]):
            expected = (image.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
            with Image.open(tmp_path / "png" / name / f"{i:05d}.png") as picture:
                pixels = np.asarray(picture).reshape(expected.shape)
            assert np.array_equal(pixels, expected)


def test_eight_bits_are_clipped_and_rounded():
    image = torch.tensor([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0]).view(1, 2, 3)
    assert np.asarray(to_image(image)).ravel().tolist() == [0, 0, 0, 1, 255, 255]


def test_folder_names_keep_the_order_of_the_classes():
    assert class_folders(("cat", "dog")) == ["cat", "dog"]
    assert class_folders(tuple(map(str, range(10)))) == list("0123456789")
    assert class_folders(tuple(map(str, range(11)))) == [f"{i:02d}" for i in range(11)]
    assert class_folders(("dog", "cat")) == ["0_dog", "1_cat"]
    assert class_folders(("a/b", "../c")) == ["a_b", "c"]
    assert class_folders(("Cat", "cat")) == [
        "0_Cat",
        "1_cat",
    ]  # one folder where the file system ignores case
    assert class_folders(("CON", "nul.x", "person")) == [
        "class_CON",
        "class_nul.x",
        "person",
    ]  # devices of Windows
    assert class_folders(("COM3", "class_COM3")) == ["0_class_COM3", "1_class_COM3"]


@given(st.lists(st.text(max_size=90), min_size=1, max_size=12))
def test_any_names_give_safe_distinct_ordered_folders(names):
    folders = class_folders(tuple(names))
    assert folders == sorted(folders) and len(set(folders)) == len(names)
    assert all(
        folder
        and "/" not in folder
        and "\0" not in folder
        and folder[0] != "."
        and len(folder) < 80
        for folder in folders
    )


def test_npz_needs_no_pickle_and_keeps_floats(tmp_path):
    small = a_set(label_logits=torch.randn(6, 3), learned_lr=0.03, classes="xyz")
    assert small.to_npz(tmp_path / "set") == tmp_path / "set.npz"
    with np.load(tmp_path / "set.npz", allow_pickle=False) as file:
        assert (
            np.array_equal(file["x_train"], small.images.numpy())
            and file["x_train"].dtype == np.float32
        )
        assert np.array_equal(file["y_train"], small.labels.numpy())
        assert file["classes"].tolist() == ["x", "y", "z"] and float(file["learned_lr"]) == 0.03
        assert np.array_equal(file["label_logits"], small.label_logits.numpy())
    first = (tmp_path / "set.npz").read_bytes()
    small.to_npz(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == first


def test_load_data_reads_the_npz_back(tmp_path, capsys):
    small = a_set(ipc=4, channels=1, classes="zyx", label_logits=torch.randn(12, 3))
    data = load_data(small.to_npz(tmp_path / "set.npz"), test=(torch.rand(3, 1, 4, 4), [0, 1, 2]))
    assert torch.equal(data.train.images, small.images.clamp(0, 1))
    assert torch.equal(data.train.labels, small.labels)
    assert data.classes == small.classes
    said = capsys.readouterr().err
    assert "pixels -0.198..1.2 clipped" in said and "soft labels left out" in said


def test_ddranking_is_normalised_and_in_class_order(tmp_path):
    small = a_set(label_logits=torch.randn(6, 3), learned_lr=0.03)
    small.export(tmp_path / "dd", to="ddranking")
    order = [0, 3, 1, 4, 2, 5]
    assert torch.equal(
        read_pt(tmp_path / "dd/images.pt"), small.transform.apply(small.images)[order]
    )
    assert torch.equal(read_pt(tmp_path / "dd/labels.pt"), small.label_logits[order])
    assert read_pt(tmp_path / "dd/lr.pt").item() == pytest.approx(0.03)
    a_set(channels=1).export(tmp_path / "grey", to="ddranking")
    assert os.listdir(tmp_path / "grey") == ["images.pt"]
    assert read_pt(tmp_path / "grey/images.pt").shape == (6, 3, 4, 4)


def test_mtt_files_are_as_that_code_names_them(tmp_path):
    a_set().export(tmp_path / "hard", to="mtt")
    assert sorted(os.listdir(tmp_path / "hard")) == ["images_best.pt", "labels_best.pt"]
    assert read_pt(tmp_path / "hard/labels_best.pt").dtype == torch.int64
    zca = fit("zca", torch.rand(30, 3, 4, 4))
    small = a_set(transform=zca, label_logits=torch.randn(6, 3), learned_lr=0.01)
    small.export(tmp_path / "zca", to="mtt")
    assert torch.equal(read_pt(tmp_path / "zca/images_best.pt"), zca.apply(small.images))
    assert torch.equal(read_pt(tmp_path / "zca/images_zca_best.pt"), small.images)
    assert torch.equal(read_pt(tmp_path / "zca/labels_best.pt"), small.label_logits)
    assert read_pt(tmp_path / "zca/lr_best.pt").item() == pytest.approx(0.01)


def test_eccv24_uses_the_constants_of_the_challenge(tmp_path):
    images = torch.rand(1000, 3, 32, 32)
    labels = torch.arange(1000) % 100
    small = DistilledDataset(
        images=images, labels=labels, transform=Standardise(torch.zeros(3), torch.ones(3))
    )
    small.export(tmp_path / "sub", to="eccv24")
    assert os.listdir(tmp_path / "sub") == ["cifar100.pt"]
    loaded = read_pt(tmp_path / "sub/cifar100.pt")
    mean, std = torch.tensor([0.5071, 0.4866, 0.4409]), torch.tensor([0.2673, 0.2564, 0.2762])
    back = loaded * std.view(3, 1, 1) + mean.view(3, 1, 1)
    torch.testing.assert_close(back[:10], images[labels == 0])
    other = a_set(ipc=10)
    assert other.export(tmp_path / "x.pt", to="eccv24") == tmp_path / "x.pt"
    assert torch.equal(
        read_pt(tmp_path / "x.pt")[:10], other.transform.apply(other.images)[other.labels == 0]
    )
    with pytest.raises(DataError, match="eccv24: expected 10 images per class, got 2"):
        a_set().export(tmp_path / "no", to="eccv24")


@pytest.mark.parametrize("to", ["ddranking", "eccv24"])
def test_formats_without_labels_refuse_unequal_classes(tmp_path, to):
    with pytest.raises(
        DataError,
        match=f"export {to}: expected the same number of images in every class, got 1 to 3",
    ):
        a_set(labels=torch.tensor([0, 0, 0, 1, 1, 2])).export(tmp_path / "x", to=to)


def test_hf_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "kdistill\[hub\]"'):
        a_set().export(tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None,
    reason="needs pyarrow (extra hub), which is not installed",
)
def test_hf_writes_parquet_with_the_hub_features(tmp_path):
    import pyarrow.parquet as pq

    small = a_set(classes="xyz", label_logits=torch.randn(6, 3))
    small.export(tmp_path / "hf", to="hf")
    table = pq.read_table(tmp_path / "hf/data/train-00000-of-00001.parquet")
    assert table.column("class_id").to_pylist() == [0, 0, 1, 1, 2, 2]
    with Image.open(io.BytesIO(table.column("image")[0].as_py()["bytes"])) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(to_image(small.images[0])))
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["class_id"] == {"names": ["x", "y", "z"], "_type": "ClassLabel"}
    assert "load_dataset" in (tmp_path / "hf/README.md").read_text()


def test_unknown_formats_and_strange_channels_are_refused(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"export: expected a known format, got 'imagefoldr'; did you mean 'imagefolder'\?",
    ):
        a_set().export(tmp_path / "x", to="imagefoldr")
    with pytest.raises(DataError, match="expected grey or colour images, got 4 channels"):
        a_set(channels=4).to_imagefolder(tmp_path / "x")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("to", sorted(set(WRITERS) - {"npz", "hf"}))
def test_an_occupied_folder_is_left_alone(tmp_path, to):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="expected a new or empty folder"):
        a_set(ipc=10).export(tmp_path, to=to)
    assert os.listdir(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize(("to", "name"), [("npz", "set.npz"), ("npz", "set"), ("eccv24", "set.pt")])
def test_an_occupied_file_is_left_alone_and_an_empty_one_used(tmp_path, to, name):
    file = tmp_path / ("set.npz" if to == "npz" else name)
    file.write_text("mine")
    with pytest.raises(
        DataError, match=f"{file.name}: expected a new or empty file, got one with contents"
    ):
        a_set(ipc=10).export(tmp_path / name, to=to)
    assert file.read_text() == "mine"
    file.write_text("")
    assert a_set(ipc=10).export(tmp_path / name, to=to) == file and file.stat().st_size
    (tmp_path / f"folder{file.suffix}").mkdir()
    with pytest.raises(DataError, match="expected a new or empty file, got a folder"):
        a_set(ipc=10).export(tmp_path / f"folder{file.suffix}", to=to)


@pytest.mark.parametrize("to", sorted(set(WRITERS) - {"hf"}))
def test_a_full_disk_leaves_nothing_behind(tmp_path, disk_with_room_for, to):
    with disk_with_room_for(100), pytest.raises(DataError, match="free disk space"):
        a_set(ipc=10, size=16).export(tmp_path / "x", to=to)
    assert not os.listdir(tmp_path)
