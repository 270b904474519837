"""``kdistill check`` and the warnings of ``load_data``: duplicates, leakage, unusable files."""

import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kdistill.cli import app
from kdistill.data import check_data, load_data
from tests.data._sources import load


def counts(report):
    return {finding.what: finding.count for finding in report.findings}


def wrong(report):
    return {finding.what for finding in report.findings if finding.is_wrong}


def test_a_clean_folder_is_sound(tree):
    root = tree({"train/a": 2, "train/b": 3, "test/a": 1, "test/b": 1})
    report = check_data(root, quiet=True)
    assert (
        report.is_sound
        and counts(report)["training images of 'b'"] == "3"
        and counts(report)["size 8×8"] == "7"
    )
    result = CliRunner().invoke(app, ["check", str(root)])
    assert result.exit_code == 0 and "nothing wrong" in result.stdout


def test_what_is_wrong_is_found_and_the_status_is_1(tree, monkeypatch):
    root = tree({"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2})
    shutil.copy(root / "train/a/000.png", root / "test/a/again.png")
    shutil.copy(root / "train/a/001.png", root / "train/b/torn.png")
    shutil.copy(root / "train/a/002.png", root / "train/a/twice.png")
    (root / "train/b/002.png").write_bytes(b"rubbish")
    (root / "train/a/film.mov").write_bytes(b"")
    (root / "train/empty").mkdir()
    (root / "train/a/gone.png").symlink_to("nowhere")
    report = check_data(root, quiet=True)
    assert wrong(report) == {
        "duplicates across splits",
        "duplicates across classes",
        "unreadable files",
        "class folders without a picture",
        "links and special files that are not read",
    }
    assert (
        counts(report)["duplicates within a class"] == "1"
        and counts(report)["ignored: .mov"] == "1"
    )
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, ["check", str(root), "--all"])
    assert (
        result.exit_code == 1
        and "something is wrong" in result.stdout
        and max(map(len, result.stdout.splitlines())) <= 80
    )
    assert "002.png (cannot identify image file)" in " ".join(result.stdout.split())


def test_the_same_photograph_saved_again_is_alike(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(4):
        folder = tmp_path / "ab"[k % 2]
        folder.mkdir(exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
            (160, 120), Image.Resampling.BICUBIC
        )
        image.save(folder / f"{k}.jpg", quality=95)
        if k == 0:
            image.resize((80, 60)).save(folder / "smaller.jpg", quality=80)
    report = check_data(tmp_path, quiet=True)
    assert (
        report.is_sound
        and counts(report)["alike within a class"] == "1"
        and "duplicates within a class" not in counts(report)
    )
    assert report.findings[-1].places == (
        f"{tmp_path / 'a' / '0.jpg'} ~ {tmp_path / 'a' / 'smaller.jpg'}",
    )


def test_arrays_are_checked_too():
    x = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    arrays = {"x_train": x, "y_train": np.arange(12) % 2, "x_test": x[:2], "y_test": [0, 1]}
    report = check_data(arrays)
    assert (
        wrong(report) == {"duplicates across splits"}
        and counts(report)["duplicates across splits"] == "2"
    )


def test_images_of_one_colour_are_no_leakage():
    x = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    x[3] = x[11] = 0
    arrays = {"x_train": x[:10], "y_train": np.arange(10) % 2, "x_test": x[10:], "y_test": [0, 1]}
    assert not load(arrays).warnings
    report = check_data(arrays)
    assert report.is_sound and counts(report)["images of one colour all over"] == "2"


def test_load_data_warns_of_leakage_in_one_line(tree, capsys):
    root = tree({"train/a": 3, "train/b": 3, "test/a": 1, "test/b": 1})
    shutil.copy(root / "train/a/000.png", root / "test/a/again.png")
    shutil.copy(root / "train/a/001.png", root / "train/b/torn.png")
    data = load_data(root)
    leaked, torn = data.warnings
    assert leaked == (
        "1 of 3 test images is among the training images, pixel for pixel (first "
        f"{root / 'test/a/again.png'} and {root / 'train/a/000.png'}): accuracy on them says "
        "nothing; kdistill check lists them"
    )
    assert torn.startswith("1 image stands in two classes, pixel for pixel (first ")
    assert f"\nwarning: {leaked}\nwarning: {torn}\n" in capsys.readouterr().err
    assert load_data(root, quiet=True).warnings == data.warnings and capsys.readouterr().err == ""


def test_a_check_without_any_picture_is_one_sentence(tmp_path):
    result = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert result.exit_code == 2 and "expected one folder per class" in result.stderr


def test_the_cache_is_listed_and_emptied(tmp_path, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.pictures").write_bytes(bytes(2_000_000))
    listed = CliRunner().invoke(app, ["cache"])
    assert (
        str(tmp_path) in listed.stdout and "images" in listed.stdout and "2.0 MB" in listed.stdout
    )
    emptied = CliRunner().invoke(app, ["cache", "--empty"])
    assert emptied.stdout == f"freed 2.0 MB of decoded pictures in {tmp_path / 'images'}\n"
    assert not [*(tmp_path / "images").iterdir()]


def test_unreadable_pictures_are_left_out_on_the_command_line(tree, tmp_path):
    root = tree({"a": 12, "b": 12})
    (root / "a" / "000.png").write_bytes(b"rubbish")
    arguments = ["plan", str(root), "--set", "iterations=2", "--ipc", "1"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2 and "--skip-unreadable" in refused.stderr
    passed = CliRunner().invoke(app, [*arguments, "--skip-unreadable"])
    assert passed.exit_code == 0 and "1 unreadable file left out" in passed.stderr


@pytest.mark.parametrize("bits", [10, 12])
def test_dark_sixteen_bit_pictures_are_said(bits):
    x = np.random.default_rng(0).integers(0, 2**bits, (24, 6, 6), dtype=np.uint16)
    (warning,) = load((x, np.arange(24) % 2)).warnings
    assert (
        f"as those of a {bits}-bit camera do" in warning
        and f"multiply them by {2 ** (16 - bits)}" in warning
    )
    assert not load((x << (16 - bits), np.arange(24) % 2)).warnings


def test_duplicates_in_a_class_are_wrong_where_test_images_are_split_off_at_random(tree):
    root = tree({"a": 6, "b": 6})
    for k in range(3):
        shutil.copy(root / f"a/00{k}.png", root / f"a/copy{k}.png")
    assert wrong(check_data(root, quiet=True)) == {"duplicates within a class"}
    (warning,) = [
        line
        for seed in range(9)
        for line in load(root, seed=seed).warnings
        if "among the training images" in line
    ][:1]
    assert f"(first {root}/a/" in warning  # the files, not row numbers of a split that nobody has


def test_sizes_are_counted_and_a_config_json_makes_no_artefact(tmp_path):
    (tmp_path / "a").mkdir()
    for k in range(8):
        Image.new("RGB", (8 + k, 8), (k, k, k)).save(tmp_path / f"a/{k}.png")
    (tmp_path / "config.json").write_text("{}")
    report = check_data(tmp_path, quiet=True)
    assert counts(report)[
        "3 other sizes"
    ] == "3" and "pictures of different sizes: load them with --size" in counts(report)
