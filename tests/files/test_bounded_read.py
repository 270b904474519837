"""A file describes no more than its size allows, or is refused before that is made."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from kdistill.artifacts import import_published
from kdistill.data import load_data
from kdistill.errors import DataError
from kdistill.files.bounded_read import allowed_nbytes, load_tensors, read_npz
from kdistill.transforms import Identity


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(shape, dtype="|u1") -> bytes:
    """Return the beginning of an array file that has no data."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


def archive(path, **members: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def refused(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_data(path, quiet=True, **options)
    return str(caught.value)


LABELS = npy(np.arange(4) % 2)
IMAGES = npy(np.zeros((4, 8, 8), np.uint8))


def test_an_archive_whose_array_is_too_large_is_refused_before_it_is_decoded(tmp_path):
    path = archive(
        tmp_path / "a.npz", x_train=header((4, 100_000, 1000)) + bytes(100), y_train=LABELS
    )
    said = refused(path)
    assert "it describes 401 MB, where a file of " in said and "may describe 33 MB" in said
    assert said.endswith("if that is meant, save it with numpy.savez, which does not compress")


def test_other_members_of_an_archive_are_not_decoded(tmp_path):
    path = archive(
        tmp_path / "a.npz",
        x_train=IMAGES,
        y_train=LABELS,
        extra=header((10**9,)),
        note=b"no array at all",
    )
    assert len(load_data(path, quiet=True).train) > 0
    assert set(read_npz(archive(tmp_path / "b.npz", x=IMAGES), frozenset({"y"}))) == {"x"}
    said = refused(archive(tmp_path / "c.npz", pictures=IMAGES, other=LABELS))
    assert "got ['other', 'pictures']; rename the arrays" in said


@pytest.mark.parametrize("shape", [(-1, 8, 8), (2**62, 8, 8), (4, 8, 9)])
def test_an_array_shorter_than_its_header_says_is_refused(shape, tmp_path):
    path = archive(tmp_path / "a.npz", x_train=header(shape) + bytes(256), y_train=LABELS)
    assert refused(path).startswith("load_data: expected a whole .npz file of arrays, got ")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_tensor_of_stride_0_is_refused(legacy, tmp_path):
    pair = (torch.zeros(1).expand(1000, 3, 100, 100), torch.arange(1000) % 2)
    path = tmp_path / "a.pt"
    torch.save(pair, path, _use_new_zipfile_serialization=not legacy)
    said = refused(path)
    assert "it describes 121 MB, where a file of " in said
    assert said.endswith("if that is meant, pass the tensors themselves, or save contiguous ones")
    torch.save(pair[0], path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        DataError, match="expected tensors in proportion to the file, got more: it describes 120 MB"
    ):
        import_published(path, transform=Identity(), classes=["a", "b"])


def test_a_list_that_holds_one_image_many_times_is_refused(tmp_path):
    image = torch.zeros(3, 64, 64)
    torch.save(([image] * 10_000, list(range(10_000))), tmp_path / "a.pt")
    assert "it describes " in refused(tmp_path / "a.pt")
    nested: object = 0
    for _ in range(20):
        nested = [nested] * 10
    torch.save((torch.zeros(4, 1, 4, 4), nested), tmp_path / "b.pt")
    assert "it describes " in refused(tmp_path / "b.pt")


def test_a_compressed_file_of_tensors_is_refused(tmp_path):
    torch.save((torch.zeros(100, 1, 400, 400), torch.arange(100) % 2), tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in whole.infolist():
            packed.writestr(info.filename, whole.read(info))
    assert "it describes 65 MB" in refused(tmp_path / "a.pt")


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (
            Call(bytearray, 10**10),
            r"it names __builtin__\.bytearray; pickled objects are not loaded",
        ),
        ({1 << 70: 1}, "a dictionary with keys that are neither text nor small whole numbers"),
        ({(1, 2): 1}, "a dictionary with keys that are neither text nor small whole numbers"),
        ({1, 2}, r"it names __builtin__\.set; "),
    ],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_calls_and_keys_that_cost_more_than_they_say_are_refused(value, got, legacy, tmp_path):
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(pickle.UnpicklingError, match=got):
        load_tensors(tmp_path / "a.pt")


def test_what_people_save_is_read(tmp_path):
    content = {
        "x": torch.rand(4, 1, 2, 2).to(torch.bfloat16),
        "y": [1, 2.5, "text", None, (True,)],
        "model": torch.nn.Linear(2, 2).state_dict(),
        0: torch.nn.Parameter(torch.rand(2)),
        "half": torch.rand(3).half(),
    }
    for legacy in (False, True):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        back = load_tensors(tmp_path / "a.pt")
        assert (
            list(back) == list(content)
            and back["y"] == content["y"]
            and torch.equal(back["x"], content["x"])
        )
    assert allowed_nbytes(10**9) > 10**10


def test_a_large_photograph_is_read_where_its_file_is_large_enough(tmp_path, monkeypatch):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.effect_noise((35, 35), 50).save(tmp_path / label / "noise.png")
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 1000
    )  # Pillow warns beyond, and refuses beyond twice as many
    with pytest.warns(Image.DecompressionBombWarning):
        assert len(load_data(tmp_path, test=0, quiet=True).train) == 2
