import logging

import pytest
import torch

from kdistill import _native, ops
from kdistill.errors import (
    BackendUnavailableError,
    ConfigError,
    NativeError,
    NotDifferentiableError,
)
from kdistill.ops import _registry

ARGUMENTS = (torch.ones(2, 3), torch.tensor([0, 1]), torch.zeros(2, 3), torch.tensor([0, 1]), 2)


@pytest.fixture(autouse=True)
def fresh_choices():
    _registry.forget_choices()
    yield
    _registry.forget_choices()


def test_an_unknown_backend_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'triton'"), ops.use_backend("trition"):
        pass


def test_a_requested_backend_that_cannot_run_says_why():
    with (
        ops.use_backend("cuda"),
        pytest.raises(BackendUnavailableError, match="the tensors are on cpu") as caught,
    ):
        ops.class_mean_sqdist(*ARGUMENTS)
    assert set(caught.value.refusals) == {"cuda"}


def test_the_environment_asks_too(monkeypatch):
    monkeypatch.setenv("KDISTILL_BACKEND", "cuda")
    with pytest.raises(BackendUnavailableError):
        ops.class_mean_sqdist(*ARGUMENTS)
    with ops.use_backend("reference"):  # the call comes before the environment
        assert ops.class_mean_sqdist(*ARGUMENTS) == 6.0
    monkeypatch.setenv("KDISTILL_BACKEND", "gpu")
    with pytest.raises(ConfigError, match="KDISTILL_BACKEND"):
        ops.class_mean_sqdist(*ARGUMENTS)


def test_the_automatic_choice_steps_down_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(
        _native,
        "why_missing",
        lambda module: f"{module} is not built; reinstall with a C++ compiler on PATH",
    )
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        for _ in range(3):
            assert ops.class_mean_sqdist(*ARGUMENTS) == 6.0
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert "runs on the reference backend: cpu _cpu is not built" in said[0]


def test_half_precision_on_the_cpu_steps_down_to_the_reference(caplog):
    half = (ARGUMENTS[0].half(), ARGUMENTS[1], ARGUMENTS[2].half(), ARGUMENTS[3], 2)
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        assert ops.class_mean_sqdist(*half) == 6.0
    assert "torch.float16 is not compiled" in caplog.text


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_an_op_without_a_kernel_on_a_backend_says_where_to_read_why(backend):
    found = _registry.implementation("winograd_conv", backend, ARGUMENTS)
    assert found == f"not written for {backend}; see docs/ops/winograd_conv.md"


def test_a_plain_op_refuses_inputs_that_require_grad():
    y = torch.ones(3, requires_grad=True)
    with pytest.raises(NotDifferentiableError, match="no_grad"):
        ops.step_with_dots(y, torch.ones(3), torch.tensor(0.1))


def test_the_file_of_an_op_is_found_from_any_of_its_functions():
    for suffix in ("", "_fwd", "_bwd", "_tangent", "_bwd_tangent"):
        assert _registry.op_of(f"norm_act_pool{suffix}") == "norm_act_pool"


def test_measured_kernels_come_first_and_asking_comes_before_them(monkeypatch):
    monkeypatch.setattr(
        _registry,
        "measured",
        lambda: {"some GPU": {"norm_act_pool": "triton", "trajectory_loss": "metal"}},
    )
    monkeypatch.setattr(
        torch.cuda,
        "get_device_name",
        lambda device: "some GPU" if device.index == 0 else "another GPU",
    )
    here, there = torch.device("cuda", 0), torch.device("cuda", 1)
    assert _registry.automatic_order("norm_act_pool_bwd_tangent", here) == (
        "triton",
        "cuda",
        "reference",
    )
    assert _registry.automatic_order("norm_act_pool", there) == ("cuda", "triton", "reference")
    assert _registry.automatic_order("trajectory_loss", here) == (
        "cuda",
        "triton",
        "reference",
    )  # no such backend
    assert _registry.automatic_order("norm_act_pool", torch.device("cpu")) == ("cpu", "reference")
    tried = []
    monkeypatch.setattr(
        _registry, "implementation", lambda name, backend, args: tried.append(backend) or "no"
    )
    with ops.use_backend("cuda"), pytest.raises(BackendUnavailableError):
        _registry._first_that_runs("norm_act_pool", "cuda", here, ())
    assert tried == ["cuda"]


@pytest.mark.skipif(_native.why_missing("_cpu") is not None, reason="_cpu is not built")
def test_a_build_that_is_older_than_the_python_code_says_what_to_do():
    for call in (
        lambda: _native.kernel("_cpu", "of_tomorrow", torch.float32),
        lambda: _native.function("_cpu", "of_tomorrow"),
    ):
        with pytest.raises(
            NativeError, match=r"expected 'of_tomorrow.*run `pip install -e .` again"
        ):
            call()
