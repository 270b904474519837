"""The compiled modules, the cards that they run on, and the environment that a run records."""

import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kdistill import _native
from kdistill.errors import ConfigError

PACKAGE = Path(_native.__file__).parent
CARD = torch.device("cuda", 0)


@pytest.mark.skipif(_native.why_missing("_cpu") is not None, reason="_cpu is not built")
def test_an_empty_folder_of_native_modules_is_none(tmp_path, monkeypatch):
    (tmp_path / "_cpu.so").write_bytes(b"what stands in the current folder is not loaded")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDISTILL_NATIVE_DIR", "")
    assert _native._import("_cpu").__file__.startswith(str(PACKAGE))


@pytest.mark.parametrize("folder", [".", "build"])
def test_a_relative_folder_of_native_modules_is_refused(monkeypatch, folder):
    monkeypatch.setenv("KDISTILL_NATIVE_DIR", folder)
    expected = (
        f"^KDISTILL_NATIVE_DIR: expected an absolute path, got '{folder}'; code that is loaded "
        "must not depend on the current folder$"
    )
    with pytest.raises(ConfigError, match=expected):
        _native._import("_cpu")


def test_a_module_is_taken_by_its_whole_name(tmp_path, monkeypatch):
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for name in (f"_cuda_emulated{suffix}", "_cuda.cpython-27-other.so"):
        (tmp_path / name).write_bytes(b"another module, or that of another Python")
    monkeypatch.setenv("KDISTILL_NATIVE_DIR", str(tmp_path))
    assert str(_native._import("_cuda")) == f"no _cuda in KDISTILL_NATIVE_DIR={tmp_path}"


def test_variables_that_change_bits_are_recorded_where_they_are_set(monkeypatch):
    for name in _native._OTHER_BITS:
        monkeypatch.delenv(name, raising=False)
    plain = _native.environment()
    assert not set(plain) & set(_native._OTHER_BITS)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert _native.environment() == {**plain, "MKL_CBWR": "COMPATIBLE"}


def on_a_card(
    monkeypatch, *, capability, driver, compiled="80-real 90-real 90-virtual", toolkit=13000
):
    module = ModuleType("_cuda")
    module.architectures, module.toolkit, module.driver = compiled, toolkit, lambda: driver
    monkeypatch.setattr(_native, "_load", lambda name: module)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    _native.card_refusal.cache_clear()
    try:
        return _native.card_refusal(CARD)
    finally:
        _native.card_refusal.cache_clear()


@pytest.mark.parametrize(
    ("capability", "driver"),
    [((8, 0), 13000), ((8, 9), 13020), ((9, 0), 14000), ((10, 0), 13000), ((12, 0), 13000)],
    ids=[
        "its own",
        "code of an older card of the generation",
        "a newer driver",
        "PTX",
        "PTX on a newer card",
    ],
)
def test_cards_that_the_kernels_run_on(monkeypatch, capability, driver):
    assert on_a_card(monkeypatch, capability=capability, driver=driver) is None


def test_a_card_older_than_the_kernels_says_how_to_compile_for_it(monkeypatch):
    assert on_a_card(monkeypatch, capability=(7, 5), driver=13000) == (
        "the card has compute capability 7.5, _cuda was compiled for 80-real 90-real 90-virtual; "
        "install again with KDISTILL_CUDA_ARCHITECTURES=75 and an nvcc that knows it"
    )
    assert "8.0" in on_a_card(
        monkeypatch, capability=(8, 0), driver=13000, compiled="86-real 86-virtual"
    )


def test_a_driver_older_than_the_toolkit_says_which(monkeypatch):
    assert on_a_card(monkeypatch, capability=(8, 0), driver=12080) == (
        "the driver is of CUDA 12.8, _cuda was built with 13.0; update the driver, or install "
        "again with an older nvcc"
    )
    assert on_a_card(monkeypatch, capability=(10, 0), driver=13000, toolkit=13010) == (
        "the driver is of CUDA 13.0, _cuda was built with 13.1; update the driver, or install "
        "again with KDISTILL_CUDA_ARCHITECTURES=100"
    )
