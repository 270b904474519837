"""Scores of streamed images: those of the same images in memory, bit for bit."""

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

import kdistill
from kdistill.api.experts import train_experts
from kdistill.api.plan import plan
from kdistill.api.score import load_scores_of
from kdistill.data import fingerprint
from kdistill.errors import ConfigError, DataError

SMALL = {
    "runs": 1,
    "epochs": 2,
    "width": 4,
    "batch_size": 8,
    "lr": 0.05,
    "metrics": "el2n, grand,forgetting",
}


def drawn(count=30, channels=3, side=12):
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 3
    return generator.integers(0, 256, (count, side, side, channels), dtype=np.uint8), labels


class Pictures(Dataset):
    classes = ("a", "b", "c")

    def __init__(self, images, labels):
        self.images, self.labels, self.reads = images, labels, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        self.reads += 1
        return Image.fromarray(self.images[row]), int(self.labels[row])


def as_folder(root):
    images, labels = drawn()
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / "abc"[label]).mkdir(parents=True, exist_ok=True)
        picture = (
            Image.fromarray(image) if row else Image.fromarray(image[..., 0])
        )  # one in grey among colour
        picture.save(root / "abc"[label] / f"{row:02d}.png")
    return root


def as_list(root):
    return sorted(as_folder(root).glob("*/*.png"))


def as_file(root):
    np.save(root / "x.npy", drawn()[0])
    return np.load(root / "x.npy", mmap_mode="r"), drawn()[1]


def as_dataset(root):
    return Pictures(*drawn())


@pytest.mark.parametrize("source", [as_folder, as_list, as_file, as_dataset])
@pytest.mark.parametrize("normalisation", ["standard", "zca"])
def test_a_streamed_set_has_the_scores_of_the_same_set_in_memory(tmp_path, source, normalisation):
    spec = source(tmp_path)
    whole, streamed = (
        kdistill.load_data(spec, size=8, normalisation=normalisation, quiet=True, stream=stream)
        for stream in (False, True)
    )
    assert streamed.is_streamed and streamed.classes == whole.classes and streamed.channels == 3
    assert fingerprint(streamed.train) == fingerprint(whole.train)
    for data, folder in ((whole, "whole"), (streamed, "streamed")):
        kdistill.score(data, options=SMALL, out=tmp_path / folder)
    for name in ("scores.csv", "histogram.png", "extremes.png"):
        assert (tmp_path / "streamed" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()
    load_scores_of(whole.holdout(0.1)[0], tmp_path / "streamed/scores.csv")


def test_images_are_read_in_batches_and_not_kept(monkeypatch):
    data = kdistill.load_data(Pictures(*drawn(60)), quiet=True, stream=True)
    most, read = [], data.train.images.read
    object.__setattr__(data.train.images, "read", lambda rows: most.append(len(rows)) or read(rows))
    kdistill.score(data, options=SMALL | {"metrics": ("grand",)}, validation=0.0)
    assert (
        max(most[:-3]) == 8 and sum(most) >= 3 * 48
    )  # training by 8, then scores and the fingerprint


def test_only_scores_are_made_of_streamed_data():
    data = kdistill.load_data(Pictures(*drawn()), quiet=True, stream=True)
    for use in (kdistill.distill, train_experts, plan):
        with pytest.raises(
            ConfigError,
            match=r"expected images in memory, got streamed ones \(for score alone\); leave "
            "stream out",
        ):
            use(data)


def test_what_cannot_be_streamed_is_named(tmp_path):
    images, labels = drawn(side=8)
    np.savez(tmp_path / "x.npz", x=images, y=labels)
    for spec in ("mnist5k", tmp_path / "x.npz", {"x": images, "y": labels}):
        with pytest.raises(
            ConfigError,
            match=r"stream: expected pictures in files, \(X, y\) arrays or a torch Dataset, got",
        ):
            kdistill.load_data(spec, stream=True, quiet=True)
    with pytest.raises(
        DataError, match=r"expected pixels in 0\.\.1, got -?[\d.]+\.\.[\d.e+]+ at train image"
    ):
        kdistill.load_data(
            (images.transpose(0, 3, 1, 2).astype(np.float32), labels), stream=True, quiet=True
        )
    with pytest.raises(
        DataError,
        match=r"expected square images of one size, got 8 \(train image 0\) and 9×9 "
        r"\(train image 3\)",
    ):
        odd = [*images[:3], np.zeros((9, 9, 3), np.uint8)]
        kdistill.load_data(Pictures(odd, labels), stream=True, quiet=True)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("kdistill.api.score.difficulty", None)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="expected a folder that can be written"):
        kdistill.score(drawn(side=8), options=SMALL, out=tmp_path / "file" / "scores")
