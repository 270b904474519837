"""The walks of CONTRIBUTING.md, taken in a copy of the repository as a newcomer would take them."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.documentation.pages import ROOT, WALK

COPIED = ("kdistill", "tests", "docs", "benchmarks", "csrc")


WALK_OF_THE_METHOD = """
import sys

import pytest
from typer.testing import CliRunner

import kdistill
from kdistill.cli import app
from kdistill.evaluation import Protocol

small = "--set iterations=10 --set width=8 --set batch_real=16"
line = f"distill digits --method moments --ipc 1 --out out/moments {small}"
done = CliRunner().invoke(app, line.split())
assert done.exit_code == 0, done.output
tiny = Protocol(name="tiny", width=8, epochs=10, full_epochs=1, nets=1, eight_bit=False)
data = kdistill.load_data("digits", quiet=True)
moments = kdistill.DistilledDataset.from_pretrained("out/moments")
result = kdistill.evaluate(moments, data, protocol=tiny, baselines=("random",), quiet=True)
assert "moments" in str(result)
tests = ["tests/test_moments.py", "tests/cli/test_method_listing.py", "tests/test_layering.py"]
tests += ["tests/documentation/test_names.py"]
sys.exit(pytest.main(["-q", "-k", "moments or readme", *tests]))
"""


def section(title: str) -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository: sources as files, compiled modules as links."""
    for name in COPIED:
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    for module in (ROOT / "kdistill").glob("*.so"):
        (tmp_path / "kdistill" / module.name).symlink_to(module)
    for page in (*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "Makefile"):
        shutil.copy(page, tmp_path)
    return tmp_path


def follow(title: str, copy) -> list[str]:
    """Do what a section says, and return the files that it touched."""
    touched = []
    for block in WALK.finditer(section(title)):
        path = copy / (block["new"] or block["path"])
        if block["new"]:
            assert not path.exists(), f"{block['new']} is there already"
            path.write_text(block["text"])
        else:
            lines = path.read_text().splitlines(keepends=True)
            (row,) = [i for i, line in enumerate(lines) if line.split() == block["line"].split()]
            path.write_text("".join([*lines[: row + 1], block["text"], *lines[row + 1 :]]))
        touched.append(block["new"] or block["path"])
    return touched


def run(copy, *arguments: str) -> str:
    """Run a Python of its own in the copy."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "KDISTILL_CACHE": str(copy / "cache")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_method_of_the_walk_runs_from_one_end_to_the_other(copy):
    touched = follow("How to add a method", copy)
    assert touched == [
        "kdistill/methods/matching/moments.py",
        "kdistill/methods/__init__.py",
        "tests/test_moments.py",
        "README.md",
    ]
    assert len((copy / touched[0]).read_text().splitlines()) <= 110
    (copy / "walk.py").write_text(WALK_OF_THE_METHOD)
    assert " passed" in run(copy, "walk.py")
    assert (copy / "out/moments/preview.png").exists()


def test_the_op_of_the_walk_passes_the_tests_of_every_op(copy):
    touched = follow("How to add an op", copy)
    assert touched == [
        "kdistill/backends/reference/row_sqnorm.py",
        "kdistill/ops/row_sqnorm.py",
        "kdistill/ops/__init__.py",
        "kdistill/ops/__init__.py",
        "kdistill/testing/cases/row_sqnorm.py",
        "tests/ops/test_every_op.py",
        "tests/ops/test_row_sqnorm.py",
        "docs/ops/row_sqnorm.md",
    ]
    tests = ["tests/ops/test_row_sqnorm.py", "tests/ops/test_every_op.py"]
    tests += ["tests/test_inventory.py", "tests/test_second_order.py"]
    chosen = "row_sqnorm or every_op_is_run_with_several_threads or case_of_its_name"
    output = run(copy, "-m", "pytest", "-q", "-k", chosen, *tests)
    assert int(re.search(r"(\d+) passed", output)[1]) > 15
