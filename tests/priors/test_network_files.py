"""Network files in the original layout convert and render the same images; files that mean harm do nothing."""

import io
import math
import os
import pickle
import struct
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdistill.errors import DataError
from kdistill.files.inert_pickle import Made, Name, NotReadable, parse
from kdistill.priors.network_files import (
    convert_network,
    load_generator,
    pickle_values,
    read_network,
    save_generator,
)
from kdistill.priors.network_files.limits import excess
from kdistill.priors.network_files.pickle_values import Reader
from kdistill.priors.stylegan import InputConfig, LayerConfig, StyleGAN3
from tests.priors import original_files
from tests.priors.original_files import tiny_stylegan2, tiny_stylegan3, write

NETWORKS = {
    "stylegan2-ada": lambda: tiny_stylegan2(),
    "stylegan2-unconditional": lambda: tiny_stylegan2(classes=0),
    "stylegan3": lambda: tiny_stylegan3(),
    "stylegan3-radial": lambda: tiny_stylegan3(radial=True),
    "stylegan-xl": lambda: tiny_stylegan3(table=True),
}


def images(generator, count=3):
    z = torch.randn(count, 5, generator=torch.Generator().manual_seed(7))
    return generator.forward(generator.mapping(z, torch.arange(count) % 3, psi=0.7))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "form",
    [{}, {"dill": True, "cuda": True}, {"protocol": 2}],
    ids=["pickle", "dill-cuda", "protocol2"],
)
def test_a_converted_network_renders_the_same_bits(name, form, tmp_path):
    original = NETWORKS[name]()
    before = set(sys.modules)
    converted = convert_network(write(tmp_path / "net.pkl", original, **form), tmp_path / "prior")
    assert not {
        m for m in set(sys.modules) - before if m.startswith(("torch_utils", "dill", "dnnlib"))
    }
    loaded = load_generator(tmp_path / "prior")
    assert torch.equal(images(converted), images(original))
    assert torch.equal(images(loaded), images(original))
    assert loaded.config == original.config
    assert set(loaded.tensors) == set(original.tensors)


def test_later_loads_do_not_look_at_the_pickle(tmp_path):
    file = write(tmp_path / "net.pkl", tiny_stylegan2())
    convert_network(file, tmp_path / "prior")
    file.unlink()
    assert {p.name for p in (tmp_path / "prior").iterdir()} == {
        "generator.safetensors",
        "config.json",
    }
    load_generator(tmp_path / "prior")


class Attack:
    """Pickled as a call that leaves a file behind if anything runs it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def nested_save(flag):
    """Return bytes of a torch.save whose storage is an attack."""
    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {}, Attack(os.system, f"touch {flag}"), []):
        pickle.dump(value, stream, 2)
    return stream.getvalue()


HOSTILE = {
    "os.system": lambda flag: Attack(os.system, f"touch {flag}"),
    "builtins.eval": lambda flag: Attack(eval, f"open({str(flag)!r}, 'w')"),
    "builtins.exec": lambda flag: Attack(exec, f"open({str(flag)!r}, 'w')"),
    "os.open": lambda flag: Attack(os.open, str(flag), os.O_CREAT),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_file_that_asks_for_commands_is_refused_and_nothing_runs(name, protocol, tmp_path):
    flag = tmp_path / "flag"
    file = write(tmp_path / "net.pkl", tiny_stylegan2(), augment_pipe=HOSTILE[name](flag))
    if protocol != 4:
        file.write_bytes(pickle.dumps({"G_ema": HOSTILE[name](flag)}, protocol))
    wanted = name.replace("os.", f"{os.system.__module__}.").replace("builtins", r"\w*builtin\w*")
    with pytest.raises(DataError, match=rf"asks to run {wanted}; nothing of it was run"):
        convert_network(file, tmp_path / "prior")
    assert not flag.exists()
    assert not (tmp_path / "prior").exists()


def test_source_code_in_the_file_is_not_run(tmp_path):
    # the writer puts "raise SystemExit" where the original files have the source of their classes
    read_network(write(tmp_path / "net.pkl", tiny_stylegan2()))


def test_a_hostile_storage_in_a_tensor_is_refused(tmp_path):
    flag, network = tmp_path / "flag", tiny_stylegan2()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.storage.TypedStorage,
            "__reduce__",
            lambda self: (torch.storage._load_from_bytes, (nested_save(flag),)),
        )
        file = write(tmp_path / "net.pkl", network)
    with pytest.raises(DataError, match="got a storage of another format"):
        read_network(file)
    assert not flag.exists()


@pytest.mark.parametrize("function", [getattr, map, type, vars])
def test_other_names_are_inert(function, tmp_path):
    file = write(tmp_path / "net.pkl", tiny_stylegan2(), augment_pipe=Attack(function, 1, 2))
    read_network(file)


def test_a_setstate_cannot_change_the_reader():
    before = vars(Reader).copy()
    payload = b"cbuiltins\ngetattr\n(ckdistill.priors.network_files.pickle_values\nReader\nS'module'\ntR}S'__code__'\nI1\nsb."
    found = parse(payload).value
    assert isinstance(found, Made)
    assert found.maker == Name("builtins", "getattr")
    assert vars(Reader) == before


def number(x: int) -> bytes:
    return b"K" + bytes([x])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not a pickle",
        b"\x80\x04.",
        b"\x80\x04K\x01",
        b"(0.",
        b"R.",
        b"h\x05.",
        b"\x82\x01.",
        b"\x80\x05\x97.",
        b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
        b"K\x01K\x02s.",
        b"((t(tu.",
        b"I" + b"9" * 5000 + b"\n.",
    ],
)
def test_what_is_no_pickle_is_said(payload, tmp_path):
    (tmp_path / "net.pkl").write_bytes(payload)
    with pytest.raises(
        DataError, match=r"expected a network file of StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL, got "
    ):
        read_network(tmp_path / "net.pkl")


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ({"a": 1}, "a dictionary without G_ema"),
        ({"G_ema": 3}, "a module that is something else"),
        ({"G_ema": torch.nn.Linear(2, 2)}, "a Linear without mapping and synthesis"),
        (np.zeros(3), "a module without its state"),
    ],
)
def test_another_pickle_is_no_network(value, got, tmp_path):
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=got):
        read_network(tmp_path / "net.pkl")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_network(tmp_path / "net.pkl")


def test_a_network_without_a_tensor_or_with_a_wrong_shape_is_refused(tmp_path):
    whole = tiny_stylegan3()
    name = f"synthesis.{whole.layer_names[1]}.weight"
    less = type(whole)(whole.config, {k: x for k, x in whole.tensors.items() if k != name})
    with pytest.raises(DataError, match=rf"a generator without '{name}'"):
        read_network(write(tmp_path / "less.pkl", less))
    with pytest.raises(DataError, match="tensors that do not fit together"):
        read_network(
            write(tmp_path / "odd.pkl", whole.with_tensors({name: torch.zeros(5, 7, 3, 3)}))
        )


def test_what_is_not_understood_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(original_files, "ARCHITECTURE", "resnet")
    with pytest.raises(
        DataError, match=r"architecture resnet in synthesis\.b4, where 'skip' is understood"
    ):
        read_network(write(tmp_path / "net.pkl", tiny_stylegan2()))
    monkeypatch.setattr(original_files, "MULTIPLIER", 0.1)
    with pytest.raises(
        DataError, match=r"the learning rate multiplier 0\.1, where 0\.01 is understood"
    ):
        read_network(write(tmp_path / "net.pkl", tiny_stylegan3()))


def test_a_small_file_cannot_ask_for_large_images(tmp_path):
    small = tiny_stylegan3()
    source = replace(small.config.input, size=(1 << 20, 1 << 20))
    large = type(small)(replace(small.config, input=source), small.tensors)
    with pytest.raises(DataError, match="sizes beyond 4096 pixels"):
        read_network(write(tmp_path / "net.pkl", large))


def tensor_record(size, stride, storage):
    return Made(Name("torch._utils", "_rebuild_tensor_v2"), (storage, 0, size, stride, False, None))


def storage_record(count):
    stream = io.BytesIO()
    torch.save(torch.zeros(count)._typed_storage(), stream, _use_new_zipfile_serialization=False)
    return Made(Name("torch.storage", "_load_from_bytes"), (stream.getvalue(),))


def test_a_small_file_cannot_fill_the_memory():
    storage = storage_record(4)
    with pytest.raises(NotReadable, match="larger than its storage"):
        Reader(1000).tensor(tensor_record((2, 3), (3, 1), storage))
    with pytest.raises(NotReadable, match="more bytes than the file has"):
        Reader(1000).tensor(tensor_record((1000, 1000), (0, 0), storage))
    with pytest.raises(NotReadable, match="impossible shape"):
        Reader(1000).tensor(tensor_record((-1,), (1,), storage))
    assert Reader(1000).tensor(tensor_record((2, 2), (1, 2), storage)).is_contiguous()


def test_modules_that_share_modules_end():
    twice = Made(Name("torch.nn", "Module"), (), state={})
    for _ in range(12):
        twice = Made(
            Name("torch.nn", "Module"), (), state={"_modules": dict.fromkeys("abcdefgh", twice)}
        )
    with pytest.raises(NotReadable, match="more than"):
        Reader(1000).network(twice)
    loop = Made(Name("torch.nn", "Module"), (), state={"_modules": {}})
    loop.state["_modules"]["a"] = loop
    with pytest.raises(NotReadable, match="nested too deeply"):
        Reader(1000).network(loop)


def test_calls_share_their_arguments_and_need_a_tuple():
    shared = parse(b"((" + b"K\x01" * 1000 + b"tq\x000" + b"cm\nf\nh\x00R" * 1000 + b"l.").value
    assert len(shared) == 1000 and all(made.arguments is shared[0].arguments for made in shared)
    for payload in (b"cm\nf\n]R.", b"cm\nf\nC\x03abcR.", b"cm\nf\nK\x01\x81."):
        with pytest.raises(NotReadable, match="a call whose arguments are no tuple"):
            parse(payload)


def test_storages_are_read_once(monkeypatch):
    storage, reader, read = storage_record(4), Reader(10**6), []
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
        Reader(1000).network(long)


def test_a_small_file_cannot_ask_for_many_entries():
    wide = Made(Name("torch.nn", "Module"), (), state={f"a{n}": n for n in range(3000)})
    for _ in range(8):
        wide = Made(Name("torch.nn", "Module"), (), state={"_modules": {"a": wide, "b": wide}})
    with pytest.raises(NotReadable, match="more than 200000"):
        Reader(1000).network(wide)
    array = Made(Name("numpy._core.multiarray", "_reconstruct"), (1,))
    dtype = Made(Name("numpy", "dtype"), ("u1", False, True))
    array.state = (1, (250_000,), dtype, False, b"x" * 250_000)
    with pytest.raises(NotReadable, match="more than 200000"):
        Reader(1000).plain(array)


@pytest.mark.parametrize("network", [tiny_stylegan2, tiny_stylegan3])
def test_a_generator_asks_for_no_more_than_its_parameters_allow(network, tmp_path):
    whole = network()
    assert excess(whole) is None
    config = whole.config
    wide = replace(config, mapping=replace(config.mapping, classes=10**9))
    assert excess(type(whole)(wide, whole.tensors)).startswith("sizes of 1000000000 with ")
    save_generator(type(whole)(wide, whole.tensors), tmp_path)
    with pytest.raises(
        DataError,
        match="expected a generator in proportion to its tensors, got sizes of 1000000000",
    ):
        load_generator(tmp_path)


def test_the_published_configuration_of_most_work_for_its_parameters_is_allowed():
    # StyleGAN3-R at 1024 pixels, by the formulas of the paper: channels, sizes and filters of every
    # layer; nothing is made
    count, size = 14, 1024
    steps = [min(n / (count - 2), 1.0) for n in range(count + 1)]
    cutoffs = [2 * (size / 4) ** x for x in steps]
    stops = [2**2.1 * (size / 2 * 2**0.3 / 2**2.1) ** x for x in steps]
    rates = [2 ** math.ceil(math.log2(min(2 * stop, size))) for stop in stops]
    channels = [round(min(32768 / cutoff, 1024)) for cutoff in cutoffs[:-1]] + [3]
    sides = [rate + 20 for rate in rates[:-2]] + [size, size]
    empty = torch.zeros(1)
    tensors, layers = {"synthesis.input.weight": empty.expand(channels[0], channels[0])}, []
    for n, out in enumerate(channels):
        before, name = max(n - 1, 0), f"L{n}"
        raised = max(rates[before], rates[n]) * (1 if n == count else 2)
        up, down = raised // rates[before], raised // rates[n]
        tensors[f"synthesis.{name}.weight"] = empty.expand(out, channels[before], 1, 1)
        tensors[f"synthesis.{name}.affine.weight"] = empty.expand(channels[before], 512)
        if n < count:
            tensors[f"synthesis.{name}.up_filter"] = empty.expand(6 * up)
            tensors[f"synthesis.{name}.down_filter"] = empty.expand(6 * down, 6 * down)
        total = (sides[n] - 1) * down + 1 - sides[before] * up + 6 * (up + down) - 2
        padding = (total // 2, total - total // 2, total // 2, total - total // 2)
        layers.append(
            LayerConfig(
                name=name, is_torgb=n == count, up=up, down=down, padding=padding, clamp=256.0
            )
        )
    config = replace(
        tiny_stylegan3().config,
        size=size,
        input=InputConfig(size=(36, 36), sampling_rate=16.0, bandwidth=2.0),
    )
    assert excess(StyleGAN3(replace(config, layers=tuple(layers)), tensors)) is None


def test_a_large_input_of_a_small_network_is_refused_before_it_is_made(tmp_path):
    small = tiny_stylegan3()
    large = type(small)(
        replace(small.config, input=replace(small.config.input, size=(4096, 4096))), small.tensors
    )
    started = time.process_time()
    with pytest.raises(
        DataError,
        match=r"got feature maps of [\d,]+ numbers with [\d,]+ parameters; fetch it again",
    ):
        read_network(write(tmp_path / "net.pkl", large))
    assert time.process_time() - started < 3.0


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
            Reader(1000).plain(value)


def test_keys_that_take_forever_to_hash_are_not_hashed():
    # each line makes a tuple of the one before, twice: 2^60 leaves
    assert parse(b")" + b"2\x86" * 60 + b"q\x00}h\x00K\x01s.").value


@pytest.mark.parametrize("name", ["stylegan2-ada", "stylegan-xl"])
def test_a_saved_generator_comes_back(name, tmp_path):
    original = NETWORKS[name]()
    save_generator(original, tmp_path)
    assert torch.equal(images(load_generator(tmp_path)), images(original))


def test_a_damaged_folder_is_named(tmp_path):
    with pytest.raises(
        DataError,
        match=r"expected a generator in .*; make one with kdistill prior train, or kdistill prior convert",
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
    assert torch.equal(images(load_generator(folder)), images(tiny_stylegan3()))
