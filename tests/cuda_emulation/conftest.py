"""The test kernels compiled with g++: plain, under ASan and UBSan, with the portable switch."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RUNTIME = [*sorted((ROOT / "csrc/cuda_emulation").glob("*.cpp")), ROOT / "csrc/common/check.cpp"]
KERNELS = [HERE / "kernels.cu", HERE / "faulty.cu"]
# host code alone, the same in every variant; and the files that depend on how fibers are switched
MAIN = HERE / "main.cpp"
SWITCHING = {"fiber.cpp", "scheduler.cpp", "sync.cpp", "report.cpp", "launch.cpp"}

# --no-warn: g++ 12 gives a .noinit section of a template a type that the assembler does not expect,
# and corrects
FLAGS = [
    "-std=c++17",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wa,--no-warn",
]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def refusal() -> str | None:
    """Why the emulation cannot be built here; None if it can."""
    if not sys.platform.startswith("linux"):
        return f"the emulation needs Linux, this is {sys.platform}"
    if shutil.which("g++") is None:
        return "the emulation needs g++ 11 or newer, there is none"
    version = subprocess.run(
        ["g++", "-dumpversion"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return (
        None
        if int(version.split(".")[0]) >= 11
        else f"the emulation needs g++ 11 or newer, this is {version}"
    )


@dataclass
class Outcome:
    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[float]]:
        assert self.status == 0, self.out + self.err
        return [[float(word) for word in line.split()] for line in self.out.splitlines()]

    @property
    def values(self) -> list[float]:
        return [value for row in self.rows for value in row]

    @property
    def error(self) -> str:
        assert self.status == 3, self.out + self.err
        return self.out


@dataclass
class Variant:
    name: str
    folder: Path
    flags: list[str]
    objects: list[Path] = field(default_factory=list)

    def link(self) -> None:
        """The program, and the shared library of the same objects."""
        sanitize = [flag for flag in self.flags if flag in SANITIZE]
        for extra, name in ([], "emulated"), (["-shared"], "libemulated.so"):
            command = [
                "g++",
                *sanitize,
                *extra,
                *map(str, self.objects),
                "-o",
                str(self.folder / name),
                "-pthread",
            ]
            subprocess.run(command, check=True)

    def run(
        self, command: str, *integers: int, seed: int | str | None = None, program: str = "emulated"
    ) -> Outcome:
        return self.execute([str(self.folder / program), command, *map(str, integers)], seed)

    def run_in_python(self, command: str, *integers: int) -> Outcome:
        """The same from the shared library, loaded into Python as the module of the kernels is."""
        words = ["", command, *map(str, integers)]
        script = (
            f"import ctypes, sys; words = {[w.encode() for w in words]}; library = "
            f"ctypes.CDLL({str(self.folder / 'libemulated.so')!r}); "
            "sys.exit(library.run(len(words), (ctypes.c_char_p * len(words))(*words)))"
        )
        env = {}
        if self.name == "sanitized":
            # the C++ library too: without it ASan does not find what throws
            libraries = [
                subprocess.run(
                    ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
                ).stdout.strip()
                for name in ("libasan.so", "libstdc++.so")
            ]
            env = {
                "LD_PRELOAD": " ".join(libraries),
                "ASAN_OPTIONS": "detect_leaks=0",
            }  # the interpreter's own leaks
        return self.execute([sys.executable, "-S", "-c", script], None, env)

    def execute(
        self, command: list[str], seed: int | str | None, extra: dict[str, str] | None = None
    ) -> Outcome:
        env = {
            key: value for key, value in os.environ.items() if key != "KDISTILL_EMULATION_SEED"
        } | (extra or {})
        if seed is not None:
            env["KDISTILL_EMULATION_SEED"] = str(seed)
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
        return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def variants(tmp_path_factory) -> dict[str, Variant]:
    reason = refusal()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cuda_emulation")
    plain = Variant("plain", folder / "plain", ["-O2"])
    sanitized = Variant("sanitized", folder / "sanitized", ["-O1", *SANITIZE])
    portable = Variant("portable", folder / "portable", ["-O1", "-DKD_EMULATION_UCONTEXT"])

    def compile_one(variant: Variant, source: Path) -> Path:
        target = variant.folder / (source.name + ".o")
        flags = [*FLAGS, *variant.flags, "-DKD_CUDA_EMULATION", f"-I{ROOT / 'csrc'}"]
        subprocess.run(
            ["g++", "-x", "c++", *flags, "-c", str(source), "-o", str(target)], check=True
        )
        return target

    every = [*KERNELS, *RUNTIME]
    switching = [source for source in every if source.name in SWITCHING]
    for variant in plain, sanitized, portable:
        variant.folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        sources = {"sanitized": every, "plain": [MAIN, *every], "portable": switching}
        jobs = [
            (v, pool.submit(compile_one, v, source))
            for v in (sanitized, plain, portable)
            for source in sources[v.name]
        ]
        for variant, job in jobs:
            variant.objects.append(job.result())
    sanitized.objects += [path for path in plain.objects if path.name == "main.cpp.o"]
    portable.objects += [
        path for path in plain.objects if path.name.removesuffix(".o") not in SWITCHING
    ]
    for variant in plain, sanitized, portable:
        variant.link()
    return {variant.name: variant for variant in (plain, sanitized, portable)}


@pytest.fixture(params=["plain", "sanitized", "portable"])
def emulated(request, variants) -> Variant:
    return variants[request.param]


@pytest.fixture
def plain(variants) -> Variant:
    return variants["plain"]


@pytest.fixture
def sanitized(variants) -> Variant:
    return variants["sanitized"]
