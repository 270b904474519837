import json
import logging
import os
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdistill.artifacts import load_checkpoint, save_checkpoint
from kdistill.artifacts.checkpoint import checkpoint_meta
from kdistill.artifacts.tensors import encode
from kdistill.errors import DataError
from tests.prepared_process import run_prepared

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def tensor_dicts(draw):
    tensors = {}
    for name in draw(st.lists(st.text("ab._1", min_size=1, max_size=6), max_size=4, unique=True)):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        values = (
            torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
            * 3
        )
        tensor = values.to(draw(st.sampled_from(DTYPES)))
        tensors[name] = tensor.transpose(0, -1) if tensor.ndim and draw(st.booleans()) else tensor
    return tensors


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(one, other):
    return (
        one.keys() == other.keys()
        and all(one[k].dtype == other[k].dtype and one[k].shape == other[k].shape for k in one)
        and all(torch.equal(bits(one[k]), bits(other[k])) for k in one if one[k].numel())
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    for step in (1, 2):
        save_checkpoint(path, {"x": torch.full((3,), float(step))}, {"step": step})
    return path


@given(tensors=tensor_dicts(), meta=st.dictionaries(st.text(max_size=5), json_values, max_size=3))
def test_round_trip(tmp_path_factory, tensors, meta):
    path = tmp_path_factory.mktemp("c") / "c"
    save_checkpoint(path, tensors, meta)
    loaded, loaded_meta = load_checkpoint(path)
    assert same(tensors, loaded) and loaded_meta == meta
    first = path.read_bytes()
    save_checkpoint(path, tensors, meta)
    assert path.read_bytes() == first


def test_tensors_that_share_memory_or_require_grad(tmp_path):
    x = torch.randn(4, requires_grad=True)
    save_checkpoint(tmp_path / "c", {"a": x, "b": x[1:], "c": x.detach()}, {"t": (1, 2)})
    tensors, meta = load_checkpoint(tmp_path / "c")
    assert (
        torch.equal(tensors["b"], x[1:].detach())
        and not tensors["a"].requires_grad
        and meta == {"t": [1, 2]}
    )
    tensors["a"] += 1  # loaded tensors are the caller's own


@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_found(tmp_path_factory, position, flip):
    path = tmp_path_factory.mktemp("c") / "c"
    tensors, meta = {"x": torch.arange(5.0), "n": torch.tensor(3)}, {"step": 7}
    save_checkpoint(path, tensors, meta)
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= flip
    path.write_bytes(data)
    try:
        loaded, loaded_meta = load_checkpoint(path)
    except DataError as error:
        assert str(path) in str(error)
    else:  # a byte that says nothing, such as a space of the header
        assert same(tensors, loaded) and loaded_meta == meta


@given(position=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_found(tmp_path_factory, position):
    path = tmp_path_factory.mktemp("c") / "c"
    save_checkpoint(path, {"x": torch.arange(5.0)}, {})
    data = path.read_bytes()
    path.write_bytes(data[: int(position * len(data))])
    with pytest.raises(DataError, match=r"damaged or cut off|without its metadata"):
        load_checkpoint(path)


def test_the_previous_checkpoint_serves_and_says_so(saved, caplog):
    assert load_checkpoint(saved)[1] == {"step": 2}
    saved.write_bytes(saved.read_bytes()[:-4])
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        tensors, meta = load_checkpoint(saved)
    assert meta == {"step": 1} and tensors["x"].tolist() == [1.0, 1.0, 1.0]
    assert "damaged or cut off" in caplog.text and "using the previous checkpoint" in caplog.text
    saved.unlink()
    assert load_checkpoint(saved)[1] == {"step": 1}


def test_a_link_is_neither_read_nor_written_through(saved, tmp_path):
    victim = tmp_path / "victim"
    saved.rename(victim)
    before = victim.read_bytes()
    saved.symlink_to(victim)
    (tmp_path / "checkpoint.safetensors.prev").unlink()
    with pytest.raises(
        DataError,
        match="expected a checkpoint, got: a symbolic link, which is not followed; start afresh",
    ):
        load_checkpoint(saved)
    for step in (3, 4):
        save_checkpoint(saved, {"x": torch.zeros(1)}, {"step": step})
    assert (
        victim.read_bytes() == before
        and not saved.is_symlink()
        and load_checkpoint(saved)[1] == {"step": 4}
    )


def test_what_is_recorded_is_read_from_the_head_of_the_file(saved):
    assert checkpoint_meta(saved) == {"step": 2}
    saved.write_bytes(saved.read_bytes()[:50])
    assert checkpoint_meta(saved) == {"step": 1}  # of the one before
    saved.with_name(saved.name + ".prev").write_bytes(b"junk")
    assert checkpoint_meta(saved) is None


def test_both_damaged_or_missing_is_one_clear_error(saved, tmp_path):
    previous = saved.with_name(saved.name + ".prev")
    for path in (saved, previous):
        path.write_bytes(b"junk")
    with pytest.raises(
        DataError, match=r"checkpoint\.safetensors: expected a whole safetensors file, got 4 bytes"
    ):
        load_checkpoint(saved)
    with pytest.raises(DataError, match="expected a checkpoint, got: No such file"):
        load_checkpoint(tmp_path / "other")


def test_a_full_disk_keeps_both(saved, disk_with_room_for):
    before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}
    with disk_with_room_for(1000), pytest.raises(DataError, match="free disk space"):
        save_checkpoint(saved, {"x": torch.zeros(10_000)}, {})
    assert {path.name: path.read_bytes() for path in saved.parent.iterdir()} == before


@pytest.mark.parametrize("renames", [0, 1])
def test_killed_between_any_two_steps_one_is_complete(saved, renames):
    # a process of its own dies in the middle of save_checkpoint, before rename number `renames`
    code = f"""
        import os, torch
        from kdistill.artifacts import save_checkpoint
        rename, left = os.replace, [{renames}]
        def replace(a, b):
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
            rename(a, b)
        os.replace = replace
        save_checkpoint({str(saved)!r}, {{"x": torch.full((3,), 3.0)}}, {{"step": 3}})
    """
    assert run_prepared("-c", textwrap.dedent(code), check=False).returncode == 9
    assert load_checkpoint(saved)[1]["step"] in (2, 3)
    save_checkpoint(
        saved, {"x": torch.zeros(1)}, {"step": 4}
    )  # and clears what the dead process left
    assert sorted(os.listdir(saved.parent)) == [
        "checkpoint.safetensors",
        "checkpoint.safetensors.prev",
    ]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "c"
    path.write_bytes(
        encode({"x": torch.zeros(1)}, {"schema_version": 99, "meta": {}, "sha256": ""})
    )
    with pytest.raises(DataError, match="expected a checkpoint of schema version 1, got 99"):
        load_checkpoint(path)
    path.write_bytes(encode({"x": torch.zeros(1)}, {"schema_version": 1}))
    with pytest.raises(DataError, match="expected a checkpoint of schema version"):
        load_checkpoint(path)
    with pytest.raises(
        DataError, match=r"a\[0\]: expected something that JSON can hold, got a object"
    ):
        save_checkpoint(path, {}, {"a": [object()]})


def test_metadata_is_one_key(saved):
    data = saved.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header["__metadata__"]) == ["kdistill"]
