import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageDraw

from kdistill.artifacts import DistilledDataset
from kdistill.artifacts import image_grids as module
from kdistill.artifacts.image_grids import font, shortened, to_image


def a_set(ipc, k, channels=1, size=8, height=None, **fields):
    images = torch.rand(
        ipc * k, channels, height or size, size, generator=torch.Generator().manual_seed(0)
    )
    return DistilledDataset(images=images, labels=torch.arange(k).repeat_interleave(ipc), **fields)


@pytest.mark.parametrize(
    ("ipc", "k", "channels", "size"),
    [(1, 10, 1, 28), (10, 10, 3, 32), (50, 10, 1, 28), (1, 100, 3, 32), (2, 3, 3, 64)],
)
def test_images_are_enlarged_without_smoothing(ipc, k, channels, size):
    small = a_set(ipc, k, channels, size)
    picture = np.asarray(small.preview())
    layout = module._layout((size, size), k, ipc, 0)
    factor = layout.tile[0] // size
    assert factor >= 1 and picture.shape[1] <= module.PAGE[0]
    tile = np.asarray(to_image(small.images[len(small) // 2]).convert("RGB"))
    line = np.repeat(tile[size // 2], factor, axis=0)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (1, len(line), 3))[:, :, 0, 0]
    candidates = windows[(windows[:, :, 0] == line[0]).all(-1)]
    assert (candidates == line).all((1, 2)).any()  # a whole line of an image, without smoothing


@given(
    ipc=st.integers(1, 60),
    k=st.integers(1, 120),
    size=st.sampled_from([8, 28, 32, 64, 128]),
    label=st.integers(5, 150),
)
def test_layouts_hold_every_class_and_image(ipc, k, size, label):
    layout = module._layout((size, size), k, ipc, label)
    assert layout.columns * layout.rows >= k > (layout.columns - 1) * layout.rows
    assert layout.per_line * layout.lines == ipc
    assert layout.tile[0] == layout.tile[1] and (layout.tile[0] % size == 0 or size > module.TILE)


def test_large_sets_are_cut_and_say_so(monkeypatch):
    monkeypatch.setattr(module, "MAX_CLASSES", 5)
    monkeypatch.setattr(module, "MAX_TILES", 15)
    drawn = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, what, *a, **k: drawn.append(what) or text(self, at, what, *a, **k),
    )
    a_set(4, 6).preview()
    assert "shown: the first 5 of 6 classes, the first 3 of 4 images of each class" in drawn


@pytest.mark.parametrize(
    "fields",
    [{"channels": 2}, {"channels": 5}, {"size": 7, "height": 13}, {"size": 300}, {"size": 1}],
)
def test_unusual_images(fields):
    assert a_set(2, 3, **fields).preview().mode == "RGB"


def test_long_and_strange_names_and_a_class_without_images():
    names = ["x" * 500, "line\nbreak", "", "漢字 é", "empty"]
    small = DistilledDataset(
        images=torch.rand(4, 3, 8, 8),
        labels=torch.arange(4),
        classes=names,
        config={"source": {"name": "n" * 300}},
    )
    assert small.preview().width >= 300
    name = shortened("x" * 500, font(14))
    assert name.endswith("…") and len(name) < 60


def test_pixels_outside_the_range_are_clipped_and_the_picture_repeats():
    small = DistilledDataset(
        images=torch.tensor([[-5.0, 5.0]]).view(1, 1, 1, 2).expand(1, 1, 2, 2),
        labels=torch.tensor([0]),
    )
    picture = np.asarray(small.preview())
    assert (picture == 0).all(-1).any() and np.array_equal(picture, np.asarray(small.preview()))
