"""Build the native modules with CMake + ninja; everything else is in pyproject.toml.

Environment: KDISTILL_CUDA=auto|on|off, KDISTILL_EMULATION=auto|on|off (auto: in editable installs), KDISTILL_NATIVE=auto|on|off.
"""

import os
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
        try:
            self.run_cmake(package)
        except (OSError, subprocess.CalledProcessError) as error:
            if native == "on":
                raise
            # the reference backend serves without a compiler, so installing goes on
            log = getattr(error, "output", None) or str(error)
            failure.write_text(log[-4000:])
            print(f"kdistill: no native kernels: {error}\n{log[-4000:]}", file=sys.stderr)

    def run_cmake(self, package: Path) -> None:
        import pybind11

        emulation = os.environ.get("KDISTILL_EMULATION", "auto")
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"),
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DKDISTILL_CUDA={os.environ.get('KDISTILL_CUDA', 'auto')}",
            f"-DKDISTILL_EMULATION={self.editable_mode if emulation == 'auto' else emulation == 'on'}",
        ]
        for command in (
            [*configure, "--fresh"],  # an isolated build has new paths to pybind11 and ninja every time
            ["cmake", "--build", str(build)],
            ["cmake", "--install", str(build), "--prefix", str(package)],
        ):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            sys.stderr.write(done.stdout)
            done.check_returncode()


setup(ext_modules=[Extension("kdistill._cpu", sources=[], optional=True)], cmdclass={"build_ext": CMakeBuild})
