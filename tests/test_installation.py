"""What setup.py compiles again, leaves behind, and says where a compiler fails.

A script plays CMake.
"""

import runpy
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from kdistill import _native

ROOT = Path(__file__).parents[1]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

# notes its arguments; compiles _cuda unless CUDA is off, and fails there where NVCC_FAILS is set
CMAKE = f"""#!/bin/bash
echo "$@" >> "$CALLS"
case "$1" in
  -S) [[ "$*" == *KDISTILL_CUDA=off* ]] && rm -f "$4/cuda" || touch "$4/cuda"
      [[ "$*" == *KDISTILL_EMULATION=ON* ]] && touch "$4/emulated"
      [[ "$*" == *KDISTILL_EMULATION=OFF* ]] && rm -f "$4/emulated"; true ;;
  --build) [[ -n "$GCC_FAILS" ]] && echo "a.cpp:1:2: error: no such thing" &&
      echo "ninja: build stopped" && exit 1
      [[ -n "$NVCC_FAILS" && -e "$2/cuda" ]] && echo "nvcc fatal : Unsupported gpu" &&
      echo "ninja: build stopped" && exit 1
      touch "$2/compiled" ;;
  --install) touch "$4/_cpu{SUFFIX}"
      [[ -e "$2/cuda" ]] && touch "$4/_cuda{SUFFIX}"
      [[ -e "$2/emulated" ]] && touch "$4/_cuda_emulated{SUFFIX}"; true ;;
esac
"""


class Installation:
    def __init__(self, folder: Path, monkeypatch):
        self.package, self.build, self.calls = (
            folder / "kdistill",
            folder / "build",
            folder / "calls.txt",
        )
        tools = folder / "tools"
        tools.mkdir()
        for name, text in (("cmake", CMAKE), ("c++", "#!/bin/sh\n")):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.compiler = tools / "c++"
        for name in ("NATIVE", "CUDA", "CUDA_ARCHITECTURES", "EMULATION"):
            monkeypatch.delenv(f"KDISTILL_{name}", raising=False)
        monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
        monkeypatch.setenv("CALLS", str(self.calls))
        monkeypatch.setattr("setuptools.setup", lambda **_: None)
        monkeypatch.setattr(_native, "__file__", str(self.package / "_native.py"))
        monkeypatch.setattr(_native, "_load", lambda module: ImportError("no such file"))
        self.names = runpy.run_path(str(ROOT / "setup.py"))
        self.names["build_native"].__globals__["ROOT"] = folder

    def install(self) -> set[str]:
        """Install, and return the modules that are then in the package."""
        self.names["build_native"](self.package)
        return {path.name.removesuffix(SUFFIX) for path in self.package.glob("*.so")}

    def folder(self) -> Path:
        (found,) = self.build.glob("cmake-*")
        return found


@pytest.fixture
def installation(tmp_path, monkeypatch):
    return Installation(tmp_path, monkeypatch)


def test_what_is_compiled_is_used_again(installation):
    installation.install()
    (installation.folder() / "object").touch()
    installation.install()
    assert (installation.folder() / "object").exists()


@pytest.mark.parametrize("change", ["compiler", "flags", "python"])
def test_another_toolchain_compiles_everything_again(installation, monkeypatch, change):
    installation.install()
    (installation.folder() / "object").touch()
    if change == "compiler":
        time.sleep(0.01)
        installation.compiler.write_text("#!/bin/sh\n# an update in the same place\n")
    elif change == "flags":
        monkeypatch.setenv("CXXFLAGS", "-O1")
    else:
        monkeypatch.setattr(sys, "version", "3.99")
    installation.install()
    assert not (installation.folder() / "object").exists()


def test_no_module_of_an_earlier_install_stays_beside_newer_ones(installation, monkeypatch):
    monkeypatch.setenv("KDISTILL_EMULATION", "on")
    assert installation.install() == {"_cpu", "_cuda", "_cuda_emulated"}
    monkeypatch.delenv("KDISTILL_EMULATION")
    assert installation.install() == {"_cpu", "_cuda", "_cuda_emulated"}
    monkeypatch.setenv("KDISTILL_EMULATION", "off")
    assert installation.install() == {"_cpu", "_cuda"}
    monkeypatch.setenv("KDISTILL_CUDA", "off")
    assert installation.install() == {"_cpu"}
    monkeypatch.setenv("GCC_FAILS", "1")
    assert installation.install() == set()
    assert (
        _native.why_missing("_cpu")
        == "_cpu is not built; the build said: a.cpp:1:2: error: no such thing"
    )
    monkeypatch.delenv("GCC_FAILS")
    installation.install()
    monkeypatch.setenv("KDISTILL_NATIVE", "off")
    assert installation.install() == set()


def test_an_nvcc_that_fails_leaves_the_cpu_kernels(installation, monkeypatch):
    monkeypatch.setenv("NVCC_FAILS", "1")
    assert installation.install() == {"_cpu"}
    assert (
        _native.why_missing("_cuda")
        == "_cuda is not built; the build said: nvcc fatal : Unsupported gpu"
    )
    assert "KDISTILL_EMULATION=on" in _native.why_missing("_cuda_emulated")
    monkeypatch.setenv("KDISTILL_CUDA", "on")
    monkeypatch.setenv("KDISTILL_NATIVE", "on")
    with pytest.raises(Exception, match="returned non-zero exit status 1"):
        installation.install()
    monkeypatch.delenv("NVCC_FAILS")
    assert installation.install() == {"_cpu", "_cuda"}
    assert not list(installation.package.glob("*_failure.txt"))


def test_the_sentence_of_cmake_is_what_a_failed_configuration_says(installation):
    said = [
        "-- ninja",
        "CMake Error at CMakeLists.txt:88 (message):",
        "  KDISTILL_CUDA=on: expected nvcc,",
    ]
    said += ["  found none", "", "", "-- Configuring incomplete, errors occurred!"]
    error = OSError("\n".join(said))
    assert (
        installation.names["reason"](error).splitlines()[-1]
        == "KDISTILL_CUDA=on: expected nvcc, found none"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("KDISTILL_NATIVE", "0"), ("KDISTILL_CUDA", "no"), ("KDISTILL_EMULATION", "1")],
)
def test_a_value_that_a_variable_does_not_have_is_refused(installation, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    expected = (
        f"{name}: expected one of auto, on, off, got '{value}'; docs/guide/environment.md says "
        "what they do"
    )
    with pytest.raises(SystemExit, match=expected):
        installation.install()
