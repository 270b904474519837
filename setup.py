"""Build the native modules with CMake + ninja; everything else is in pyproject.toml.

Environment (docs/guide/environment.md): KDISTILL_NATIVE, KDISTILL_CUDA,
KDISTILL_CUDA_ARCHITECTURES, KDISTILL_EMULATION."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MODULES = ("_cpu", "_cuda", "_cuda_emulated")
# kdistill doctor reads them: pip hides what a build prints
FAILURE, CUDA_FAILURE = "_build_failure.txt", "_cuda_build_failure.txt"
TOOL_VARIABLES = (
    *("CXX", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CUDACXX", "CUDAFLAGS", "CUDAHOSTCXX"),
    *("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"),
)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        # an editable install would copy _cpu alone from its build folder: everything is put where
        # it is imported from
        built = Path(self.get_ext_fullpath("kdistill._cpu")).resolve().parent
        build_native(ROOT / "kdistill" if self.editable_mode else built)


def build_native(package: Path) -> None:
    """Put the modules into ``package``; no module of an earlier install stays beside newer ones."""
    package.mkdir(parents=True, exist_ok=True)
    for name in (FAILURE, CUDA_FAILURE):
        (package / name).unlink(missing_ok=True)
    native = setting("KDISTILL_NATIVE", "auto", "on", "off")
    cuda = setting("KDISTILL_CUDA", "auto", "on", "off")
    if native == "off":
        remove_modules(package)
        (package / FAILURE).write_text(
            "the native modules were switched off with KDISTILL_NATIVE=off\n"
        )
        return
    build = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}"
    try:
        try:
            run_cmake(build, package, cuda)
        except subprocess.CalledProcessError as error:
            if cuda != "auto":
                raise
            run_cmake(
                build, package, "off"
            )  # an nvcc that fails does not take the CPU kernels with it
            (package / CUDA_FAILURE).write_text(reason(error))
            print(f"kdistill: no CUDA kernels: {reason(error).splitlines()[-1]}", file=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        if native == "on":
            raise
        # the reference backend serves without a compiler, so installing goes on
        remove_modules(package)
        (package / FAILURE).write_text(reason(error))
        print(f"kdistill: no native kernels: {reason(error).splitlines()[-1]}", file=sys.stderr)


def run_cmake(build: Path, package: Path, cuda: str) -> None:
    """Configure, compile what has changed, and put the modules into ``package``."""
    stamp = build / "toolchain.txt"
    if build.exists() and not (stamp.exists() and stamp.read_text() == toolchain()):
        shutil.rmtree(build)  # CMake would go on with the compilers and flags that it saw first
    architectures = os.environ.get("KDISTILL_CUDA_ARCHITECTURES") or "auto"
    options = {
        "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11_folder(),
        "KDISTILL_CUDA": cuda,
        "KDISTILL_CUDA_ARCHITECTURES": ";".join(re.split("[,; ]+", architectures.strip(",; "))),
    }
    emulation = setting("KDISTILL_EMULATION", "auto", "on", "off")
    if emulation != "auto":  # else it stays as the last install wanted it, and is off at first
        options["KDISTILL_EMULATION"] = emulation.upper()
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    build.mkdir(parents=True, exist_ok=True)
    stamp.write_text(toolchain())
    run(configure)
    run(["cmake", "--build", str(build)])
    remove_modules(package)
    run(["cmake", "--install", str(build), "--prefix", str(package)])


def run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sys.stderr.write(done.stdout)
    done.check_returncode()


def setting(name: str, *values: str) -> str:
    """Return the value of an environment variable that has these, the first where it is not set."""
    value = os.environ.get(name) or values[0]
    if value not in values:
        raise SystemExit(
            f"{name}: expected one of {', '.join(values)}, got '{value}'; "
            "docs/guide/environment.md says what they do"
        )
    return value


def toolchain() -> str:
    """Return what compiled files depend on beside sources and CMake's options."""
    programs = (os.environ.get("CXX") or "c++", os.environ.get("CUDACXX") or "nvcc")
    files = [Path(path).resolve() for name in programs if (path := shutil.which(name.split()[0]))]
    variables = [f"{name}={os.environ.get(name, '')}" for name in TOOL_VARIABLES]
    return "\n".join(
        [
            str(ROOT),
            sys.base_prefix,
            sys.version,
            *(f"{file} {file.stat().st_mtime_ns}" for file in files),
            *variables,
        ]
    )


def remove_modules(package: Path) -> None:
    for name in MODULES:
        (package / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}").unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """Return the end of a build's output, and as its last line the first error in it."""
    log = str(getattr(error, "output", None) or error)
    first = re.search(
        r"CMake Error[^\n]*:\s*\n\s*((?:[^\n]*\S[^\n]*(?:\n|$))+)"
        r"|^([^\n]*\b(?:error|fatal)\s*:[^\n]*)",
        log,
        re.MULTILINE,
    )
    sentence = (
        " ".join((first[1] or first[2]).split()) if first else str(error)
    )  # CMake breaks its lines
    return f"{log[-4000:]}\n{sentence}\n"


def pybind11_folder() -> Path:
    """Return where CMake finds pybind11: a copy, because isolated builds have a new one."""
    import pybind11

    copy = ROOT / "build" / f"pybind11-{pybind11.__version__}"
    if not copy.exists():
        partial = copy.with_name(f"{copy.name}.partial-{os.getpid()}")
        shutil.copytree(Path(pybind11.__file__).parent, partial)
        try:
            partial.rename(copy)
        except OSError:  # another install was faster
            shutil.rmtree(partial)
    return copy / "share" / "cmake" / "pybind11"


setup(
    ext_modules=[Extension("kdistill._cpu", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
