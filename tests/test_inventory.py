"""No op misses a sibling: from its name alone you find reference, kernels, case, test and note."""

from pathlib import Path

import pytest

from kdistill.testing.cases import all_cases

ROOT = Path(__file__).parents[1]
OPS = sorted(p.stem for p in (ROOT / "kdistill/ops").glob("[!_]*.py"))
KERNELS = {
    "cpu": ["kdistill/backends/cpu/{op}.py", "csrc/cpu/{op}.cpp"],
    "cuda": ["kdistill/backends/cuda/{op}.py", "csrc/cuda/{op}.cu"],
    "triton": ["kdistill/backends/triton/{op}.py"],
}
ALWAYS = [
    "kdistill/backends/reference/{op}.py",
    "kdistill/testing/cases/{op}.py",
    "tests/ops/test_{op}.py",
    "docs/ops/{op}.md",
]


@pytest.mark.parametrize("op", OPS)
def test_op_has_every_sibling(op):
    note = (ROOT / f"docs/ops/{op}.md").read_text()
    # "No triton kernel: <measurement or reason>" in the note excuses one
    wanted = ALWAYS + [
        f
        for backend, files in KERNELS.items()
        if f"No {backend} kernel: " not in note
        for f in files
    ]
    missing = [file.format(op=op) for file in wanted if not (ROOT / file.format(op=op)).exists()]
    assert not missing, f"{op}: missing {missing}"


def test_every_op_has_a_case_of_its_name():
    assert [c.name for c in all_cases()] == OPS
