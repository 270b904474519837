"""Network files in the original layout convert, and files that mean harm do nothing."""

import io
import os
import pickle
import struct
import sys

import numpy as np
import pytest
import torch

from kdistill.errors import DataError
from kdistill.priors.network_files import (
    convert_network,
    load_generator,
    read_network,
)
from tests.priors import original_files
from tests.priors.original_files import (
    NETWORKS,
    drawn_images,
    tiny_stylegan2,
    tiny_stylegan3,
    write,
)


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
    assert torch.equal(drawn_images(converted), drawn_images(original))
    assert torch.equal(drawn_images(loaded), drawn_images(original))
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
