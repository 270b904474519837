import warnings
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from kdistill.artifacts import score_pictures
from kdistill.artifacts.score_pictures import extremes, histograms

SCORES = {
    "el2n": torch.linspace(0, 1, 40),
    "forgetting": torch.tensor([0.0, 3.0, 3.0, float("inf")]),
    "margin": torch.full((7,), float("nan")),
}


@pytest.fixture(params=["matplotlib", "pillow"])
def drawn_by(request, monkeypatch):
    if request.param == "matplotlib":
        pytest.importorskip("matplotlib", reason="the extra report is not installed")
    else:
        monkeypatch.setattr(score_pictures.importlib.util, "find_spec", lambda name: None)
    return request.param


def opened(png):
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


def test_histograms_mark_the_median_and_repeat(drawn_by):
    png = histograms(SCORES, "digits: scores of 40 images")
    picture = opened(png)
    assert picture.shape[0] > 400 and picture.shape[1] > 800
    for colour in (score_pictures.BAR, score_pictures.HARD):
        assert (picture == colour).all(-1).any()
    assert png == histograms(SCORES, "digits: scores of 40 images")


def test_a_heading_with_markup_and_unknown_characters_is_drawn(drawn_by):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(histograms(SCORES, "$x^ 漢字 \x1b[2J\nsecond line")).any()


@pytest.mark.parametrize(("shape", "expected"), [((28, 28), (56, 56)), ((16, 8), (64, 32))])
def test_a_sheet_keeps_the_shape_of_images_and_the_order_of_scores(shape, expected):
    images = torch.linspace(0, 1, 6).view(6, 1, 1, 1).expand(6, 1, *shape)
    score = torch.tensor([3.0, 1.0, 2.0, 6.0, 4.0, 5.0])
    labels = torch.zeros(6, dtype=torch.int64)
    page = extremes(images, labels, score, ["only"], "sheet", [""] * 6, each=2)
    picture = np.asarray(page.picture)
    greys = [round(255 * i / 5) for i in range(6)]
    grey = (picture == picture[:, :, :1]).all(-1)
    for i, is_shown in enumerate([False, True, True, True, False, True]):
        rows, columns = ((picture[:, :, 0] == greys[i]) & grey).nonzero()
        if greys[i] == 255:
            continue  # the colour of the paper
        if is_shown:
            assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == expected
    lefts = [((picture[:, :, 0] == greys[i]) & grey).nonzero()[1].min() for i in (1, 2, 3)]
    assert lefts == sorted(lefts)
