"""Build the native modules with CMake + ninja; everything else is in pyproject.toml.

Environment (docs/environment.md): KDISTILL_NATIVE, KDISTILL_CUDA, KDISTILL_CUDA_ARCHITECTURES, KDISTILL_EMULATION.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
FAILURE = "_build_failure.txt"  # kdistill doctor reads it: pip hides what a build prints


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        # an editable install would copy _cpu alone from its build folder: everything is put where it is imported from
        built = Path(self.get_ext_fullpath("kdistill._cpu")).resolve().parent
        package = ROOT / "kdistill" if self.editable_mode else built
        package.mkdir(parents=True, exist_ok=True)
        failure = package / FAILURE
        failure.unlink(missing_ok=True)
        native = os.environ.get("KDISTILL_NATIVE", "auto")
        if native == "off":
            failure.write_text("the native modules were switched off with KDISTILL_NATIVE=off\n")
            return
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        try:
            try:
                run_cmake(build, package)
            except subprocess.CalledProcessError:
                if not build.exists():
                    raise
                shutil.rmtree(build)  # what an earlier install left may name compilers that are gone
                run_cmake(build, package)
        except (OSError, subprocess.CalledProcessError) as error:
            if native == "on":
                raise
            # the reference backend serves without a compiler, so installing goes on
            log = getattr(error, "output", None) or str(error)
            failure.write_text(log[-4000:])
            print(f"kdistill: no native kernels: {error}\n{log[-4000:]}", file=sys.stderr)


def run_cmake(build: Path, package: Path) -> None:
    """Configure, compile what has changed since the last time, and put the modules into ``package``."""
    architectures = os.environ.get("KDISTILL_CUDA_ARCHITECTURES") or "auto"
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11_folder()}"),
        f"-DKDISTILL_CUDA={os.environ.get('KDISTILL_CUDA') or 'auto'}",
        f"-DKDISTILL_CUDA_ARCHITECTURES={';'.join(architectures.replace(',', ' ').replace(';', ' ').split())}",
    ]
    emulation = os.environ.get("KDISTILL_EMULATION") or "auto"
    if emulation != "auto":  # else it stays as the last install wanted it, and is off at first
        configure.append(f"-DKDISTILL_EMULATION={'ON' if emulation == 'on' else 'OFF'}")
    for command in (
        configure,
        ["cmake", "--build", str(build)],
        ["cmake", "--install", str(build), "--prefix", str(package)],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        sys.stderr.write(done.stdout)
        done.check_returncode()


def pybind11_folder() -> Path:
    """Return where CMake finds pybind11: a copy, because an isolated build has it in a new place, and so newer, every time."""
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


setup(ext_modules=[Extension("kdistill._cpu", sources=[], optional=True)], cmdclass={"build_ext": CMakeBuild})
