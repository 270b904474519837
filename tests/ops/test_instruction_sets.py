"""Every CPU kernel with every instruction set of this machine; the suite's summary names them."""

import pytest
import torch

from kdistill import _native
from kdistill.errors import NativeError
from kdistill.testing.backends import ISAS, instruction_set, isa_refusals, isas, running_on
from kdistill.testing.cases import every_case

CASES = every_case()


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_kernel_matches_the_float64_reference(case, isa, dtype):
    with instruction_set(isa), running_on("cpu"):
        assert _native.function("_cpu", "isa")() == isa
        for shape in case.shapes:
            case.check(case.inputs(shape, seed=2, dtype=dtype), shape)


def test_the_best_instruction_set_is_what_everything_else_runs_on():
    assert _native.function("_cpu", "isa")() == isas()[-1]


def test_an_instruction_set_that_does_not_run_here_has_a_reason(monkeypatch):
    monkeypatch.setattr(_native, "function", lambda module, name: lambda: "avx2")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert isa_refusals() == {
        "generic": None,
        "avx2": None,
        "avx512": "this processor does not offer it",
    }
    monkeypatch.setattr(_native, "function", lambda module, name: lambda: "generic")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert isa_refusals()["avx2"] == "not for arm64"
    monkeypatch.setattr(_native, "why_missing", lambda module: "_cpu is not built; reinstall")
    assert set(isa_refusals().values()) == {"_cpu is not built; reinstall"}
    assert isas() == []


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(NativeError, match="expected generic, avx2 or avx512"):
        _native.function("_cpu", "use_isa")("sse9")
    assert set(isas()) <= set(ISAS)
