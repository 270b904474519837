"""A registered op raises or computes what the reference computes, whatever it is called with."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kdistill.errors import KDistillError, ShapeError
from kdistill.ops import _registry
from kdistill.ops.class_mean_sqdist import class_mean_sqdist_and_grad
from kdistill.ops.norm_act_pool import norm_act_pool_bwd, norm_act_pool_fwd
from kdistill.ops.winograd_conv import (
    winograd_conv_input_grad,
    winograd_conv_output,
    winograd_conv_weight_grad,
)
from kdistill.testing.backends import runnable_backends, running_on
from kdistill.testing.cases import case, every_case

OTHER_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@pytest.fixture(scope="module")
def calls() -> dict[str, list[tuple]]:
    """Return the arguments of every guarded op, as its public functions pass them on."""
    recorded: dict[str, list[tuple]] = {name: [] for name in _registry.guarded}
    choose = _registry.choose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _registry,
            "choose",
            lambda name, args: recorded.get(name, []).append(args) or choose(name, args),
        )
        _registry.forget_choices()
        for of in every_case():
            for shape in (of.interpreted or of.shapes[:2])[-2:]:
                of.results(of.op, of.inputs(shape, seed=0))
                of.op(*of.inputs(shape, seed=0))
        class_mean_sqdist_and_grad(
            *case("class_mean_sqdist").inputs(case("class_mean_sqdist").tiny, seed=0)
        )
        x, weight, grad = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3), torch.randn(2, 4, 6, 5)
        for pairs in (1, 2):
            winograd_conv_output(*[(x, weight)] * pairs, padding=1)
            winograd_conv_input_grad(*[(grad, weight)] * pairs, padding=1)
            winograd_conv_weight_grad(*[(x, grad)] * pairs, padding=1)
    return recorded


def wrong_tensors(x: Tensor) -> list[Tensor]:
    changes = [
        x.new_empty(0),
        x[None].clone(),
        x.flatten(),
        x.to("meta"),
        *(x.to(dtype) for dtype in OTHER_DTYPES),
    ]
    for dim in range(x.ndim):
        changes += [
            x.narrow(dim, 0, max(x.shape[dim] - 1, 0)).clone(),
            x.repeat_interleave(2, dim),
            x.narrow(dim, 0, 0).clone(),
        ]
        changes.append(
            torch.stack([x, x], dim + 1)
            .flatten(dim, dim + 1)
            .unflatten(dim, (-1, 2))
            .select(dim + 1, 0)
        )  # strided
        changes.append(x.narrow(dim, 0, 1).expand_as(x) if x.shape[dim] else x)
    if x.ndim > 1:
        changes += [
            x.transpose(-1, -2),
            x.transpose(0, 1).contiguous().transpose(0, 1),
            x.mT.contiguous().mT,
        ]
    if x.ndim == 4:
        changes += [x.contiguous(), x.contiguous(memory_format=torch.channels_last)]
    return changes


def wrong_values(value) -> list:
    if isinstance(value, Tensor):
        return wrong_tensors(value)
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value - 1, value + 1, 0, -value, -7, 2 * value + 1]
    if isinstance(value, list):
        return [
            [],
            value[:-1],
            [*value, 0],
            [v - 3 for v in value],
            [v + 1 for v in value],
            [-90] * 4,
        ]
    return []


def call(name: str, args: tuple):
    if hasattr(torch.ops.kdistill, name):
        return getattr(torch.ops.kdistill, name)(*args)
    return _registry.guarded[name](*args)


@pytest.mark.parametrize("name", sorted(_registry.guarded))
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_wrong_arguments_raise_or_give_the_numbers_of_the_reference(name, calls):
    assert calls[name]
    refused = 0
    for args in calls[name][:3]:
        for position, value in enumerate(args):
            for wrong in wrong_values(value):
                changed = (*args[:position], wrong, *args[position + 1 :])
                try:
                    got = call(name, changed)
                except KDistillError:
                    refused += 1
                    continue
                with running_on("reference"):
                    torch.testing.assert_close(
                        got, call(name, changed), rtol=1e-3, atol=1e-3, equal_nan=True
                    )
    assert refused > 10


@pytest.mark.parametrize("backend", runnable_backends())
def test_a_map_in_another_order_is_refused_with_what_to_call(backend):
    x, row = torch.randn(2, 3, 4, 6), torch.ones(1, 3)
    expected = (
        r"^norm_act_pool: expected x in channels-last memory, "
        r"got \[2, 3, 4, 6\] with strides \[72, 24, 6, 1\]; "
        r"call kdistill.ops.norm_act_pool, which converts its arguments$"
    )
    with running_on(backend), pytest.raises(ShapeError, match=expected):
        torch.ops.kdistill.norm_act_pool(x, row, row, 1e-5)


def test_a_meta_tensor_among_others_is_refused():
    x, row = torch.randn(2, 3, 4, 6).contiguous(memory_format=torch.channels_last), torch.ones(1, 3)
    with pytest.raises(
        ShapeError, match=r"^norm_act_pool: expected tensors on one device, got cpu, meta; call "
    ):
        torch.ops.kdistill.norm_act_pool(
            x, row.to("meta"), row, 1e-5
        )  # else memory that nothing has written comes back


def test_a_tensor_without_memory_is_refused_even_after_an_equal_one_with_memory():
    x, row = torch.randn(2, 3, 4, 6), torch.ones(3)
    norm_act_pool_fwd(x, row, row)
    with (
        FakeTensorMode() as mode,
        pytest.raises(ShapeError, match="memory of its own, got FakeTensor"),
    ):
        norm_act_pool_fwd(*map(mode.from_tensor, (x, row, row)))


def test_a_gradient_of_another_size_is_refused_where_the_engine_calls():
    x, row = torch.randn(2, 3, 4, 6), torch.ones(3)
    _, mean, rstd = norm_act_pool_fwd(x, row, row)
    expected = (
        r"^norm_act_pool_bwd: expected grad torch.float32 \[2, 3, 2, 3\] on cpu, "
        r"got torch.float32 \[2, 3, 1, 1\] on cpu; "
        "pass inputs and results of the forward$"
    )
    with pytest.raises(ShapeError, match=expected):
        norm_act_pool_bwd(torch.randn(2, 3, 1, 1), x, row, row, mean, rstd)


def test_arguments_of_equal_form_are_checked_once(monkeypatch):
    _registry.forget_choices()
    x, row = torch.randn(2, 3, 4, 6), torch.ones(3)
    norm_act_pool_fwd(x, row, row)
    checked = len(_registry._checked)
    norm_act_pool_fwd(x + 1, row, row)
    assert len(_registry._checked) == checked == 1
    monkeypatch.setattr(_registry, "_MOST_CHECKED", 1)
    norm_act_pool_fwd(x[:1], row, row)
    assert len(_registry._checked) == 1  # it does not grow with the number of shapes


@pytest.mark.parametrize("position", [0, 1])
def test_a_required_tensor_that_is_absent_is_refused(position):
    tensors = [torch.ones(1, 2, 3, 3), torch.ones(1, 2)]
    name, tensors[position] = ("x", "scale")[position], None
    with pytest.raises(ShapeError, match=f"fir_bias_act: expected a tensor {name}, got none"):
        _registry.guarded["fir_bias_act"](*tensors, None, None, None, 0.2, 1.0, 256.0)
