"""Build sdist and wheel, install the wheel elsewhere, and use it (``make package``)."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
USE = """
import kdistill, kdistill._native as native, pathlib, sys
assert pathlib.Path(kdistill.__file__).is_relative_to(sys.argv[1]), kdistill.__file__
assert native.why_missing("_cpu") is None, native.why_missing("_cpu")
options = {"iterations": 10, "batch_real": 12, "width": 8}
small = kdistill.distill("digits", ipc=1, options=options, out="run")
print("1 passed, 0 failed: the wheel made", len(small.images), "images")
"""


def main(folder: Path) -> int:
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-c", USE, str(site)], cwd=folder, env=environment
    ).returncode


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(main(Path(folder).resolve()))
