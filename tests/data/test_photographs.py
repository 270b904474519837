"""Own pictures: every file is read, named or counted; large ones quickly, and only once."""

import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image, features

from kdistill.cache import folder_nbytes
from kdistill.data import picture_files, picture_reader, picture_sources
from kdistill.data import picture_reader as cache
from kdistill.errors import DataError
from tests.data._sources import load


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Return a folder of six JPEG photographs, 400 by 300 pixels, two of them turned.

    They have a cache of their own.
    """
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH_BYTES", 1)
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    for k in range(6):
        folder = tmp_path / "photos" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        rough = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((400, 300), Image.Resampling.BICUBIC).save(
            folder / f"IMG_{k}.jpg", quality=92, **({"exif": turned} if k < 2 else {})
        )
    return tmp_path / "photos"


def everything(data):
    return torch.cat([data.train.images, data.test.images])


def test_reduced_decoding_stays_close_to_full_decoding(photographs, monkeypatch):
    monkeypatch.setenv("KDISTILL_IMAGE_CACHE", "off")
    for size in (16, 32):
        drafted = everything(load(photographs, size=size))
        with monkeypatch.context() as full:
            full.setattr(picture_files, "DRAFT_FACTOR", 10_000)
            exact = everything(load(photographs, size=size))
        error = (drafted - exact).abs() * 255
        assert 0 < error.mean() < 0.5 and error.max() <= 8, (
            size,
            error.mean(),
            error.max(),
        )  # docs/guide/data.md states it


def test_the_second_time_comes_from_the_cache_with_the_same_bits(photographs, monkeypatch):
    first = load(photographs, size=16)
    assert (
        f"decoded pictures kept in {cache.images_folder()}" in first.describe()
        and "kdistill cache --empty" in first.describe()
    )
    with monkeypatch.context() as broken:
        broken.setattr(picture_files, "decode", None)
        second = load(photographs, size=16)
    assert second.fingerprint == first.fingerprint and "taken from" in second.describe()
    monkeypatch.setenv("KDISTILL_IMAGE_CACHE", "off")
    assert load(photographs, size=16).fingerprint == first.fingerprint


def test_a_changed_or_new_picture_is_decoded_again_and_the_others_are_not(photographs, monkeypatch):
    load(photographs, size=16)
    Image.new("RGB", (40, 40), "red").save(photographs / "b" / "IMG_1.jpg")
    Image.new("L", (40, 40), 7).save(photographs / "b" / "new.png")
    decoded = []
    real = picture_files.decode
    monkeypatch.setattr(
        picture_files,
        "decode",
        lambda path, *rest: (decoded.append(path.name), real(path, *rest))[1],
    )
    changed = load(photographs, size=16)
    assert (
        sorted(decoded) == ["IMG_1.jpg", "new.png"] and len(changed.train) + len(changed.test) == 7
    )


@pytest.mark.parametrize(
    "damage", ["cut off", "another byte", "rubbish", "writable by others", "a link"]
)
def test_a_cache_that_is_damaged_or_not_ours_is_not_used(damage, photographs, caplog, tmp_path):
    first = load(photographs, size=16)
    (file,) = cache.images_folder().iterdir()
    content = file.read_bytes()
    if damage == "writable by others":
        file.chmod(0o666)
    elif damage == "a link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        changed = content[:-1] + bytes([content[-1] ^ 1])
        file.write_bytes(
            {"cut off": content[:-9], "another byte": changed, "rubbish": b"rubbish"}[damage]
        )
    again = load(photographs, size=16)
    assert again.fingerprint == first.fingerprint and "kept in" in again.describe()
    assert "pictures are decoded again" in caplog.text


def test_the_cache_is_bounded_and_can_be_emptied(photographs, monkeypatch):
    load(photographs, size=16)
    (first,) = cache.images_folder().iterdir()
    monkeypatch.setattr(cache, "MAX_BYTES", 3 * first.stat().st_size)
    load(photographs, size=17)
    os.utime(first, (0, 0))
    load(photographs, size=18)
    assert not first.exists() and folder_nbytes(cache.images_folder()) <= cache.MAX_BYTES
    assert cache.empty_images() > 0 and not [*cache.images_folder().iterdir()]


def test_grey_deep_and_transparent_pictures_come_back_from_the_cache(photographs, picture):
    picture("I;16", (20, 20)).save(photographs / "a" / "deep.png")
    picture("L", (20, 20)).save(photographs / "a" / "grey.png")
    picture("RGBA", (20, 20)).save(photographs / "b" / "clear.png")
    first, second = load(photographs, size=16), load(photographs, size=16)
    assert first.fingerprint == second.fingerprint and "taken from" in second.describe()
    assert (
        "alpha laid over white" in first.describe() and "alpha laid over white" in second.describe()
    )


def test_pictures_are_decoded_in_parallel_in_their_order(photographs, monkeypatch):
    monkeypatch.setattr(picture_reader, "available_processors", lambda: 3)
    meeting = threading.Barrier(3, timeout=20)  # breaks unless three threads decode at once
    real = picture_files.decode

    def decode(*arguments):
        meeting.wait()
        return real(*arguments)

    monkeypatch.setattr(picture_files, "decode", decode)
    parallel = load(photographs, size=16)
    monkeypatch.setattr(picture_files, "decode", real)
    monkeypatch.setattr(picture_reader, "available_processors", lambda: 1)
    monkeypatch.setenv("KDISTILL_IMAGE_CACHE", "off")
    assert load(photographs, size=16).fingerprint == parallel.fingerprint


def test_a_long_reading_shows_its_progress(photographs, monkeypatch, capsys):
    from kdistill.data import load_data

    monkeypatch.setattr(picture_reader, "PATIENCE_S", 0.0)
    load_data(photographs, size=16)
    assert "reading photos  6/6 pictures" in capsys.readouterr().err
    load_data(photographs, size=17, quiet=True)
    assert capsys.readouterr().err == ""


def test_avif_is_read(tmp_path, picture):
    assert features.check("avif"), "Pillow 11.3 has it"
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(2):
            picture(size=(32, 32), seed=k).save(tmp_path / name / f"{k}.avif")
    assert len(load(tmp_path, test=0).train) == 4


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path, picture, monkeypatch):
    heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    heif.register_heif_opener()
    for name in "ab":
        (tmp_path / name).mkdir()
        picture(size=(64, 64)).save(tmp_path / name / "0.heic")
        picture(size=(64, 64)).save(tmp_path / name / "1.png")
    assert len(load(tmp_path, test=0).train) == 4
    monkeypatch.setattr(picture_sources, "is_picture", lambda name: name.endswith(".png"))
    without = load(tmp_path, test=0)
    assert len(without.train) == 2
    assert (
        '2 other files in train ignored (2 .heic); .heic needs pip install "kdistill[heif]"'
        in without.describe()
    )


def test_every_ignored_file_is_counted_by_ending_and_files_outside_the_classes_are_named(tree):
    root = tree({"a": 3, "b": 3})
    for name in ("a/one.mov", "a/two.MOV", "b/three.txt", "b/README", "loose.png"):
        (root / name).write_bytes(b"")
    said = load(root).describe()
    assert "4 other files in train ignored (2 .mov, 1 without ending, 1 .txt)" in said
    assert f"1 file directly in {root} belongs to no class and is ignored (loose.png)" in said


def test_all_unreadable_pictures_are_listed_at_once_or_left_out(tree):
    root = tree({"a": 4, "b": 4, "c": 1})
    for name in ("a/001.png", "b/002.png", "c/000.png"):
        (root / name).write_bytes(b"rubbish")
    with pytest.raises(DataError) as caught:
        load(root)
    message = str(caught.value)
    assert message.startswith(
        "load_data: expected pictures that Pillow can read, got 3 that it cannot: "
        f"{root / 'a/001.png'} ("
    )
    assert str(root / "b/002.png") in message and str(root / "c/000.png") in message
    assert message.endswith("remove or replace them, or leave them out with skip_unreadable=True")
    data = load(root, skip_unreadable=True)
    assert len(data.train) + len(data.test) == 6 and data.classes == ("a", "b")
    assert "3 unreadable files left out" in data.describe()


def test_an_empty_class_folder_and_a_dangling_link_stop_nothing(tree):
    root = tree({"a": 3, "b": 3})
    (root / "empty").mkdir()
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    data = load(root)
    assert (
        data.classes == ("a", "b")
        and "class folder without a picture left out (empty)" in data.describe()
    )
    assert f"not read: {root / 'a' / 'gone.png'} (a link that leads nowhere)" in data.describe()


def test_links_in_a_circle_and_special_files_neither_hang_nor_mix_classes(tree):
    root = tree({"a": 3, "b": 3})
    (root / "a" / "loop").symlink_to("..")
    (root / "a" / "other").symlink_to(root / "b")
    (root / "b" / "loop").symlink_to(".")
    (root / "b" / "deep").mkdir()
    (root / "b" / "deep" / "up").symlink_to("..")
    os.mkfifo(root / "b" / "z.png")
    data = load(root, test=0)
    assert torch.bincount(data.train.labels).tolist() == [3, 3]
    assert (
        "a link to a folder that is read already" in data.describe()
        and "z.png (not a regular file)" in data.describe()
    )
