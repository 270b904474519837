"""Every op can be differentiated as often as it declares, and says so when asked for more."""

import pytest
import torch

from kdistill.errors import NotDifferentiableError
from kdistill.testing.backends import has_kernel, runnable_backends, running_on
from kdistill.testing.cases import all_cases

pytestmark = pytest.mark.filterwarnings(
    "ignore:Input #:UserWarning"
)  # gradcheck names the inputs it leaves out


def free_inputs(case):
    """Return the tiny inputs in float64 and the op as a function of the differentiable ones."""
    inputs = list(case.inputs(case.tiny, seed=0, dtype=torch.float64, requires_grad=True))
    free = tuple(inputs[i] for i in case.differentiable)

    def function(*values):
        arguments = list(inputs)
        for position, value in zip(case.differentiable, values, strict=True):
            arguments[position] = value
        return case.op(*arguments)

    return function, free


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(c, b, id=f"{c.name}-{b}")
        for c in all_cases()
        for b in runnable_backends()
        if has_kernel(c.name, b)
    ],
)
def test_declared_order_is_true(case, backend):
    function, free = free_inputs(case)
    with running_on(backend):
        if case.grad_order > 0:
            assert torch.autograd.gradcheck(function, free)
        if case.grad_order == 2:
            assert torch.autograd.gradgradcheck(function, free)
        else:
            with pytest.raises(NotDifferentiableError):
                torch.autograd.grad(function(*free).sum(), free, create_graph=True)


@pytest.mark.parametrize(
    "case", [c for c in all_cases() if c.grad_order == 2], ids=lambda c: c.name
)
def test_torch_func_takes_the_differentiable_formula(case):
    function, free = free_inputs(case)
    values = tuple(v.detach() for v in free)
    expected = torch.autograd.grad(function(*free).square().sum(), free)
    got = torch.func.grad(
        lambda *v: function(*v).square().sum(), argnums=tuple(range(len(values)))
    )(*values)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
