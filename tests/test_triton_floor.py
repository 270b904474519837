"""The script that compiles with the oldest Triton, and what a crash of the compiler leads to."""

import json
import sys

import pytest

from tests import triton_floor

CHILD = """
import json, os, sys
first = int(sys.argv[1])
print(json.dumps({"triton": "3.6.0", "names": ["a", "b", "c"]}))
for number in range(first, 3):
    print(json.dumps({"number": number}), flush=True)
    if number == 1:
        os._exit(9)
    print(json.dumps({"number": number, "said": ""}), flush=True)
"""


def test_the_version_is_the_one_of_pyproject():
    assert triton_floor.oldest_triton() == "3.6.0"


def test_a_compiler_that_ends_the_process_is_a_line_and_the_others_go_on():
    results = triton_floor.part_results([sys.executable, "-c", CHILD], {}, "3.6.0")
    assert results == {"a #0": "", "b #1": "the compiler ended with status 9", "c #2": ""}


def test_another_triton_is_refused():
    child = f"print({json.dumps(json.dumps({'triton': '3.9.0', 'names': ['a']}))})"
    with pytest.raises(SystemExit, match=r"expected Triton 3\.6\.0, got 3\.9\.0"):
        triton_floor.part_results([sys.executable, "-c", child], {}, "3.6.0")


def test_failures_are_listed_and_are_the_exit_status(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(triton_floor, "installed", lambda version, folder: folder)
    results = {
        "_some_kernel-float64-16 #3": "RuntimeError: PassManager::run failed",
        "_other_kernel-float32-16 #4": "",
    }
    monkeypatch.setattr(triton_floor, "part_results", lambda *_: results)
    assert triton_floor.main(["--processes", "1", "--folder", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == "_some_kernel-float64-16 #3: RuntimeError: PassManager::run failed\n"
    assert "1 of 2 launches compile" in said.err
    results.clear()
    assert triton_floor.main(["--processes", "1", "--folder", str(tmp_path)]) == 1, (
        "nothing compiled is no success"
    )
