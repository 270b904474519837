"""Small pictures and folders of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data._sources import SIDE, N


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep the tests out of the user's cache; one folder serves all of them."""
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "kdistill-cache"))


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Return a maker of noise pictures of a mode and size (width, height)."""

    def make(mode: str = "RGB", size: tuple[int, int] = (8, 8), seed: int = 0) -> Image.Image:
        rng = np.random.default_rng(seed)
        if mode == "I;16":
            return Image.fromarray(rng.integers(0, 65536, size[::-1], dtype=np.uint16))
        bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "P": 3, "CMYK": 4, "1": 1}[mode]
        values = rng.integers(0, 256, (*size[::-1], bands), dtype=np.uint8)
        if mode in ("P", "1"):
            return Image.fromarray(values.squeeze()).convert(mode)
        return Image.fromarray(values.squeeze(), mode if mode == "CMYK" else None)

    return make


@pytest.fixture
def tree(tmp_path, picture) -> Callable[..., Path]:
    """Return a maker of folders.

    Called as ``tree({"cat": 3, "dog": 2})`` or ``tree({"train/cat": 3}, mode="L", size=(6, 9))``.
    """

    def make(counts: dict[str, int], name: str = "pets", suffix: str = ".png", **how) -> Path:
        for seed, (folder, count) in enumerate(counts.items()):
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
            for k in range(count):
                picture(seed=100 * seed + k, **how).save(
                    tmp_path / name / folder / f"{k:03d}{suffix}"
                )
        return tmp_path / name

    return make


@pytest.fixture
def colour() -> tuple[np.ndarray, np.ndarray]:
    """Return the small colour images and labels that most tests load."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8), np.arange(N) % 3
