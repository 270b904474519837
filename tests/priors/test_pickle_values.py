"""Records of a network file are read within limits, and nothing in them is ever called."""

import io
import time

import pytest
import torch

from kdistill.files.inert_pickle import Made, Name, NotReadable, parse
from kdistill.priors.network_files import (
    pickle_values,
)
from kdistill.priors.network_files.pickle_values import NetworkReader


def test_a_setstate_cannot_change_the_reader():
    before = vars(NetworkReader).copy()
    reader = b"ckdistill.priors.network_files.pickle_values\nNetworkReader\n"
    method = b"cbuiltins\ngetattr\n(" + reader + b"S'read'\ntR"
    record = parse(method + b"}S'__code__'\nI1\nsb.").value
    assert isinstance(record, Made)
    assert record.maker == Name("builtins", "getattr")
    assert vars(NetworkReader) == before


def tensor_record(size, stride, storage):
    return Made(Name("torch._utils", "_rebuild_tensor_v2"), (storage, 0, size, stride, False, None))


def storage_record(count):
    stream = io.BytesIO()
    torch.save(torch.zeros(count)._typed_storage(), stream, _use_new_zipfile_serialization=False)
    return Made(Name("torch.storage", "_load_from_bytes"), (stream.getvalue(),))


def test_a_small_file_cannot_fill_the_memory():
    storage = storage_record(4)
    with pytest.raises(NotReadable, match="larger than its storage"):
        NetworkReader(1000).tensor(tensor_record((2, 3), (3, 1), storage))
    with pytest.raises(NotReadable, match="more bytes than the file has"):
        NetworkReader(1000).tensor(tensor_record((1000, 1000), (0, 0), storage))
    with pytest.raises(NotReadable, match="impossible shape"):
        NetworkReader(1000).tensor(tensor_record((-1,), (1,), storage))
    assert NetworkReader(1000).tensor(tensor_record((2, 2), (1, 2), storage)).is_contiguous()


def test_modules_that_share_modules_end():
    twice = Made(Name("torch.nn", "Module"), (), state={})
    for _ in range(12):
        twice = Made(
            Name("torch.nn", "Module"), (), state={"_modules": dict.fromkeys("abcdefgh", twice)}
        )
    with pytest.raises(NotReadable, match="more than"):
        NetworkReader(1000).read(twice)
    loop = Made(Name("torch.nn", "Module"), (), state={"_modules": {}})
    loop.state["_modules"]["a"] = loop
    with pytest.raises(NotReadable, match="nested too deeply"):
        NetworkReader(1000).read(loop)


def test_calls_share_their_arguments_and_need_a_tuple():
    shared = parse(b"((" + b"K\x01" * 1000 + b"tq\x000" + b"cm\nf\nh\x00R" * 1000 + b"l.").value
    assert len(shared) == 1000 and all(made.arguments is shared[0].arguments for made in shared)
    for payload in (b"cm\nf\n]R.", b"cm\nf\nC\x03abcR.", b"cm\nf\nK\x01\x81."):
        with pytest.raises(NotReadable, match="a call whose arguments are no tuple"):
            parse(payload)


def test_storages_are_read_once(monkeypatch):
    storage, reader, read = storage_record(4), NetworkReader(10**6), []
    original = pickle_values.read_storage
    monkeypatch.setattr(
        pickle_values, "read_storage", lambda data: read.append(data) or original(data)
    )
    same_bytes = [Made(storage.maker, storage.arguments) for _ in range(10)]
    assert all(reader.tensor(tensor_record((4,), (1,), each)).shape == (4,) for each in same_bytes)
    assert len(read) == 1


def test_keys_of_one_hash_and_long_names_cost_nothing():
    keys = b"".join(
        b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little", signed=True) + b"N"
        for n in range(20_000)
    )
    started = time.process_time()
    assert len(parse(b"}(" + keys + b"u.").value) == 20_000
    assert time.process_time() - started < 2.0
    with pytest.raises(NotReadable, match="an impossible number of a memo entry"):
        parse(b"Np%d\n." % 2**61)
    with pytest.raises(NotReadable, match="a name of more than 1000 characters"):
        parse(b"c" + b"a" * 1000 + b"\nf\n.")
    long = Made(Name("torch.nn", "Module"), (), state={"_parameters": {"a" * 201: None}})
    with pytest.raises(NotReadable, match="a name of more than 200 characters"):
        NetworkReader(1000).read(long)


def test_a_small_file_cannot_ask_for_many_entries():
    wide = Made(Name("torch.nn", "Module"), (), state={f"a{n}": n for n in range(3000)})
    for _ in range(8):
        wide = Made(Name("torch.nn", "Module"), (), state={"_modules": {"a": wide, "b": wide}})
    with pytest.raises(NotReadable, match="more than 200000"):
        NetworkReader(1000).read(wide)
    array = Made(Name("numpy._core.multiarray", "_reconstruct"), (1,))
    dtype = Made(Name("numpy", "dtype"), ("u1", False, True))
    array.state = (1, (250_000,), dtype, False, b"x" * 250_000)
    with pytest.raises(NotReadable, match="more than 200000"):
        NetworkReader(1000).plain(array)


def test_messages_do_not_write_out_what_is_endless():
    twice: object = ("x",)
    for _ in range(60):
        twice = (twice, twice)
    dtype = Made(Name("numpy", "dtype"), (twice, False, True))
    for value in (
        Made(Made(twice, (twice,)), (twice,)),
        Made(Name("numpy._core.multiarray", "scalar"), (dtype, b"x")),
    ):
        with pytest.raises(NotReadable):
            NetworkReader(1000).plain(value)


def test_keys_that_take_forever_to_hash_are_not_hashed():
    # each line makes a tuple of the one before, twice: 2^60 leaves
    assert parse(b")" + b"2\x86" * 60 + b"q\x00}h\x00K\x01s.").value
