"""The table of environment variables is complete, and nothing in it is dead."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CMAKE_ONLY = {"KDISTILL_SANITIZE"}  # options of the build, not read from the environment


def used() -> set[str]:
    files = [ROOT / "setup.py", ROOT / "CMakeLists.txt"]
    files += [
        p
        for folder in ("kdistill", "csrc", "benchmarks")
        for p in (ROOT / folder).rglob("*")
        if p.suffix in SOURCES
    ]
    return {
        name for path in files for name in re.findall(r"\bKDISTILL_[A-Z_]+\b", path.read_text())
    } - CMAKE_ONLY


SOURCES = {".py", ".cpp", ".hpp", ".cu"}


def test_the_table_of_environment_variables_is_true():
    table = set(
        re.findall(
            r"^\| `(KDISTILL_[A-Z_]+)`",
            (ROOT / "docs/guide/environment.md").read_text(),
            flags=re.M,
        )
    )
    assert used() == table
