"""The Triton kernels against the float64 reference, under the interpreter.

Not collected by name: tests/test_triton.py runs this file in a process of its own, because Triton
    reads TRITON_INTERPRET when
a kernel is decorated.
"""

import os

import pytest
import torch

from kdistill.testing.backends import running_on
from kdistill.testing.cases import all_cases, every_case
from tests.triton_suite.second_order import check_second_order

pytestmark = pytest.mark.triton


def test_the_interpreter_is_on():
    assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/test_triton.py, which sets it"


INTERPRETED = [
    pytest.param(case, shape, id=f"{case.name}-{shape}")
    for case in every_case()
    for shape in case.interpreted
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("case", "shape"), INTERPRETED)
def test_matches_the_float64_reference(case, shape, dtype):
    with running_on("triton"):
        case.check(case.inputs(shape, seed=0, dtype=dtype), shape)


@pytest.mark.parametrize(
    "case", [case for case in all_cases() if case.grad_order == 2], ids=lambda c: c.name
)
def test_second_derivatives_match_too(case):
    for shape in case.interpreted:
        with running_on("triton"):
            check_second_order(case, case.inputs(shape, seed=0, dtype=torch.float64), shape)
