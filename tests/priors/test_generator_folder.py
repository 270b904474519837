"""Generators in folders come back whole, or are refused with the reason."""

import os
from pathlib import Path

import pytest
import torch

from kdistill.errors import DataError
from kdistill.priors.network_files import (
    convert_network,
    load_generator,
    save_generator,
)
from tests.priors.original_files import (
    NETWORKS,
    drawn_images,
    tiny_stylegan2,
    tiny_stylegan3,
)


@pytest.mark.parametrize("name", ["stylegan2-ada", "stylegan-xl"])
def test_a_saved_generator_comes_back(name, tmp_path):
    original = NETWORKS[name]()
    save_generator(original, tmp_path)
    assert torch.equal(drawn_images(load_generator(tmp_path)), drawn_images(original))


def test_a_damaged_folder_is_named(tmp_path):
    with pytest.raises(
        DataError,
        match=r"generator in .*; make one with kdistill prior train, or kdistill prior convert",
    ):
        load_generator(tmp_path)
    save_generator(tiny_stylegan2(), tmp_path)
    data = bytearray((tmp_path / "generator.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "generator.safetensors").write_bytes(data)
    with pytest.raises(DataError, match=r"expected the contents that config\.json names"):
        load_generator(tmp_path)
    with pytest.raises(
        DataError, match=r"expected a folder, got the file .*kdistill prior convert"
    ):
        load_generator(tmp_path / "config.json")


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"got one with another config.json"):
        save_generator(tiny_stylegan2(), tmp_path)


def test_a_pipe_is_no_network_and_no_generator(tmp_path):
    os.mkfifo(tmp_path / "net.pkl")
    with pytest.raises(
        DataError, match=r"net\.pkl: expected a network file, got: a named pipe; check the path"
    ):
        convert_network(tmp_path / "net.pkl", tmp_path / "prior")
    folder = save_generator(tiny_stylegan2(), tmp_path / "prior")
    for name in ("config.json", "generator.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")
        with pytest.raises(
            DataError,
            match=r"expected a generator in .*, got: a symbolic link, which is not followed",
        ):
            load_generator(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(whole)
    (folder / "generator.safetensors").write_bytes(whole + bytes(1))
    with pytest.raises(
        DataError, match=r"got: [\d,]+ bytes, more than the [\d,]+ that it may have"
    ):
        load_generator(folder)


def test_a_full_disk_leaves_the_earlier_generator(tmp_path, disk_with_room_for):
    folder = save_generator(tiny_stylegan2(), tmp_path / "prior", files={"README.md": b"card"})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for room in (0, 100, len(before["config.json"]) + 1):
        with (
            disk_with_room_for(room),
            pytest.raises(
                DataError, match=r"prior: expected .* of free disk space, got: .*unchanged"
            ),
        ):
            save_generator(tiny_stylegan3(), folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save_generator(tiny_stylegan3(), folder)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "generator.safetensors",
    }  # the card was the other's
    assert torch.equal(drawn_images(load_generator(folder)), drawn_images(tiny_stylegan3()))


def test_a_generator_of_version_0_1_0_loads_with_the_same_values():
    saved, original = load_generator(Path(__file__).parent / "saved_by_0_1"), tiny_stylegan3()
    assert saved.config == original.config
    assert saved.tensors.keys() == original.tensors.keys()
    for name, x in original.tensors.items():
        assert torch.equal(saved.tensors[name], x), name


def test_the_folder_of_a_run_is_called_one(tmp_path):
    (tmp_path / "data.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generator.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="got the result of a run in"):
        load_generator(tmp_path)
