"""The built-in sets: frozen splits and check values, the cache, and missing packages."""

import hashlib
import importlib.util
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdistill.cache import cache_folder
from kdistill.data import BUILTIN, builtin, load_data, stratified_split
from kdistill.data.builtin import photo_patches, read_builtin
from kdistill.errors import ConfigError, DataError, MissingExtraError


def sha(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().astype("<i8").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("name", "labels", "train", "test", "sizes", "fingerprint"),
    [
        (
            "digits",
            "a3c91c262eddcf7b",
            "8fdd7957badbc09f",
            "a606dd1dc7bf51a9",
            (1437, 360),
            "46de4d06ad641652",
        ),
        (
            "mnist5k",
            "c3556f4a243d7dc7",
            "613301fc4da3ce6e",
            "a15a886e062869ed",
            (4000, 1000),
            "3a1b6cca1151f22a",
        ),
    ],
)
def test_splits_are_frozen(name, labels, train, test, sizes, fingerprint):
    source = torch.from_numpy(read_builtin(name).train.labels)
    kept, held_out = stratified_split(source, 0.2, seed=0, purpose="split test")
    assert (len(kept), len(held_out)) == sizes
    assert (sha(source), sha(kept), sha(held_out)) == (labels, train, test)
    data = load_data(name, quiet=True)
    assert (len(data.train), len(data.test)) == sizes and data.fingerprint.startswith(fingerprint)
    assert torch.equal(data.train.labels, source[kept]) and torch.equal(
        data.test.labels, source[held_out]
    )
    assert (
        data.classes == tuple("0123456789")
        and data.train.images.amin() == 0.0
        and data.train.images.amax() == 1.0
    )


def test_another_seed_splits_otherwise():
    assert (
        load_data("digits", quiet=True, seed=1).fingerprint
        != load_data("digits", quiet=True).fingerprint
    )


def test_photo_patches_has_its_check_values():
    data = load_data("photo-patches", quiet=True)
    assert data.train.labels.tolist() == [k for k in range(10) for _ in range(500)]
    assert data.test.labels.tolist() == [k for k in range(10) for _ in range(200)]
    assert data.classes[2] == "chelsea" and (data.channels, data.size) == (3, 32)
    # three of the photographs are JPEG, and decoders may differ by one level
    level = 1 / 255
    assert data.transform.mean.tolist() == pytest.approx([0.474, 0.371, 0.338], abs=level)
    assert data.transform.std.tolist() == pytest.approx([0.275, 0.224, 0.225], abs=level)
    train, test = (split.images[:, :, ::4, ::4].flatten(1) for split in (data.train, data.test))
    nearest = data.train.labels[torch.cdist(test, train).argmin(1)]
    assert (nearest == data.test.labels).double().mean().item() == pytest.approx(0.666, abs=0.005)
    constant = (data.train.images.std((1, 2, 3)) < 3 / 255).view(10, 500).double().mean(1)
    assert constant[8].item() == pytest.approx(0.17, abs=0.01)  # retina


def test_photo_patches_shares_no_pixel_between_train_and_test(tmp_path):
    from PIL import Image

    rows, columns = np.indices((192, 192)) // builtin.TILE
    board = ((rows + columns) % 2 * 255).astype(np.uint8)  # even tiles black, odd ones white
    Image.fromarray(board).save(tmp_path / "board.png")
    arrays = photo_patches([tmp_path / "board.png"])
    assert arrays["x_train"].shape == (500, 32, 32, 3) and arrays["x_test"].shape == (
        200,
        32,
        32,
        3,
    )
    assert arrays["x_train"].max() == 0 and arrays["x_test"].min() == 255


def test_built_in_sets_can_be_resized_and_carry_their_licence():
    data = load_data("digits", quiet=True, size=12)
    assert data.size == 12 and data.source == data.name == "digits" and "Alpaydin" in data.licence


def test_cache_is_used_and_rebuilt_when_damaged_or_outdated(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "new" / "cache"))
    caplog.set_level(logging.INFO, logger="kdistill")
    first = load_data("digits", quiet=True).fingerprint
    file = cache_folder() / "datasets" / "digits.npz"
    assert [f.name for f in file.parent.iterdir()] == ["digits.npz"] and not caplog.records
    whole = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(builtin, "_parsed", lambda *_: pytest.fail("parsed in spite of the cache"))
        assert load_data("digits", quiet=True).fingerprint == first
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    for damaged in (b"", b"no zip file", whole[: len(whole) // 2], bytes(flipped)):
        caplog.clear()
        file.write_bytes(damaged)
        assert load_data("digits", quiet=True).fingerprint == first
        assert "digits is parsed again" in caplog.text and file.read_bytes() == whole
    monkeypatch.setitem(BUILTIN, "digits", replace(BUILTIN["digits"], recipe=2))
    caplog.clear()
    assert (
        load_data("digits", quiet=True).fingerprint == first
        and "made from other files" in caplog.text
    )


@pytest.mark.parametrize(
    "by", ["shuffled pixels", "others can write the folder", "others can write the file", "a link"]
)
def test_a_cached_copy_that_somebody_changed_is_not_used(by, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))
    first = load_data("digits", quiet=True).fingerprint
    file = cache_folder() / "datasets" / "digits.npz"
    if by == "a link":
        file.rename(tmp_path / "digits.npz")
        file.symlink_to(tmp_path / "digits.npz")
    elif by == "shuffled pixels":
        with np.load(file) as arrays:
            np.savez(file, **{**arrays, "x_train": arrays["x_train"][::-1]})
    else:
        (file.parent if "folder" in by else file).chmod(0o777)
    assert load_data("digits", quiet=True).fingerprint == first
    reason = {"shuffled pixels": "its checksum does not match", "a link": "a symbolic link"}.get(
        by, "got one that others can write"
    )
    assert reason in caplog.text and "again" in caplog.text


def test_a_copy_with_a_checksum_of_its_own_is_not_used_and_other_versions_are_said(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(BUILTIN, "digits", replace(BUILTIN["digits"], digest="0" * 64))
    load_data("digits", quiet=True)
    assert (
        "expected the images that kdistill was measured with, got others from this version of "
        "sklearn" in caplog.text
    )
    assert not [*tmp_path.rglob("*.npz")]


def test_cache_that_cannot_be_written_is_only_logged(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="kdistill")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load_data("digits", quiet=True).train) == 1437
    assert "next time digits is parsed again" in caplog.text
    monkeypatch.delenv("KDISTILL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(builtin.Path, "home", homeless)
    assert len(load_data("digits", quiet=True).train) == 1437 and "no cache folder" in caplog.text


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_missing_package_names_the_extra(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r'pip install "kdistill\[demo\]"'):
        load_data(name, quiet=True)


def test_package_without_the_file_or_with_another_one(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location(
        "sklearn", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        DataError, match=r"expected digits.csv.gz inside the package sklearn, got no such file"
    ):
        load_data("digits", quiet=True)
    (tmp_path / "datasets" / "data").mkdir(parents=True)
    np.savetxt(tmp_path / "datasets" / "data" / "digits.csv.gz", np.zeros((3, 65)), delimiter=",")
    with pytest.raises(DataError, match=r"expected \[1797, 8, 8\] for digits, got \[3, 8, 8\]"):
        load_data("digits", quiet=True)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("minst5k", "mnist5k"), ("photo_patches", "photo-patches"), ("digit", "digits")],
)
def test_unknown_name_suggests_the_nearest(wrong, hint):
    with pytest.raises(ConfigError, match=f"got '{wrong}'; did you mean '{hint}'"):
        load_data(wrong, quiet=True)
