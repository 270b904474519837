"""Every Triton kernel compiled with the oldest Triton allowed: `python -m tests.triton_floor`.

That Triton goes into a folder of its own, beside the torch of this environment, and no GPU is
needed.  Kernels are compiled as they are launched on the shapes of the tests, in both dtypes, with
what Triton compiles in at run time (numbers that are 1, multiples of 16).  Exit status 1 with the
list of those that do not compile."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]


def oldest_triton() -> str:
    """Return the version behind ``triton>=`` in pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    minimum = next(m for line in extras["test"] if (m := re.match(r"triton>=([\d.]+)", line)))
    return minimum[1] if minimum[1].count(".") == 2 else f"{minimum[1]}.0"


def installed(version: str, folder: Path) -> Path:
    """Return a folder whose ``triton`` has this version, after downloading it if need be."""
    if not list(folder.glob(f"triton-{version}*.dist-info")):
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "-q",
            "--no-deps",
        ]
        subprocess.run([*command, "--target", str(folder), f"triton=={version}"], check=True)
    return folder


def compile_part(architecture: int, part: int, parts: int, first: int) -> None:
    """Compile every ``parts``-th launch, with a line around each, as a crash ends the process."""
    import triton

    from tests.triton_suite.launches import recorded_launches

    launches = recorded_launches(lambda case: [*case.interpreted, *case.shapes], specialised=True)
    names = [launch.name for launch in launches[part::parts]]
    print(json.dumps({"triton": triton.__version__, "names": names}), flush=True)
    for number, launch in enumerate(launches[part::parts]):
        if number < first:
            continue
        print(json.dumps({"number": number}), flush=True)
        try:
            said = (
                ""
                if launch.compiled(architecture)["cubin"][:4] == b"\x7fELF"
                else "no cubin came out"
            )
        except Exception as error:  # whatever a compiler raises is what this script reports
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(json.dumps({"number": number, "said": said}), flush=True)


def part_results(command: list[str], environment: dict[str, str], version: str) -> dict[str, str]:
    """Return, per launch of a part, "" or why it does not compile, by a crash for instance."""
    results: dict[str, str] = {}
    first, names = 0, [""]
    while first < len(names):
        done = subprocess.run(
            [*command, str(first)], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines:
            said = done.stderr[-2000:]
            raise SystemExit(
                "triton_floor: expected a list of launches, got exit status "
                f"{done.returncode}:\n{said}"
            )
        if lines[0]["triton"] != version:
            got = lines[0]["triton"]
            raise SystemExit(
                f"triton_floor: expected Triton {version}, got {got}; remove its folder and run "
                "again"
            )
        names = lines[0]["names"]
        results |= {
            f"{names[line['number']]} #{line['number']}": line["said"]
            for line in lines
            if "said" in line
        }
        if done.returncode == 0:
            return results
        ended_at = lines[-1].get("number", first)
        results[f"{names[ended_at]} #{ended_at}"] = (
            f"the compiler ended with status {done.returncode}"
        )
        first = ended_at + 1
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.triton_floor", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--architecture", type=int, default=90, help="compute capability times ten (90)"
    )
    parser.add_argument(
        "--processes", type=int, default=min(2, os.cpu_count() or 1), help="compilers at once"
    )
    parser.add_argument(
        "--folder", type=Path, help="where that Triton is, or is put (beside this environment)"
    )
    parser.add_argument(
        "--part", type=int, nargs=3, metavar=("PART", "PARTS", "FIRST"), help=argparse.SUPPRESS
    )
    options = parser.parse_args(argv)
    if options.part:
        compile_part(options.architecture, *options.part)
        return 0
    began, version = time.monotonic(), oldest_triton()
    folder = installed(version, options.folder or Path(sys.prefix) / f"triton-{version}")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_INTERPRET")}
    path = os.pathsep.join([str(folder), str(ROOT)])  # before the Triton of this environment
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(options.processes) as pool:
        environment = {
            **clean,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "TRITON_CACHE_DIR": cache,
        }
        base = [
            sys.executable,
            "-m",
            "tests.triton_floor",
            "--architecture",
            str(options.architecture),
            "--part",
        ]
        commands = [[*base, str(part), str(options.processes)] for part in range(options.processes)]
        results = list(
            pool.map(lambda command: part_results(command, environment, version), commands)
        )
    bad = {name: said for part in results for name, said in part.items() if said}
    total, architecture = sum(map(len, results)), f"sm_{options.architecture}"
    for name, said in bad.items():
        print(f"{name}: {said}")
    print(
        f"Triton {version}, {architecture}: {total - len(bad)} of {total} launches compile "
        f"({time.monotonic() - began:.0f} s)",
        file=sys.stderr if bad else sys.stdout,
    )
    return 1 if bad or not total else 0


if __name__ == "__main__":
    sys.exit(main())
