"""What every op must do, whatever it computes; what is special about one stands in its own file."""

import pytest
import torch
from torch import Tensor

from kdistill.errors import NotDifferentiableError, ShapeError
from kdistill.ops import _registry
from kdistill.testing.backends import has_kernel, runnable_backends, running_on
from kdistill.testing.cases import Shape, all_cases, as_tuple, case, every_case
from kdistill.testing.tolerance import assert_close_enough, to_float64

# dynamo's own doing
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
)
DIFFERENTIABLE = [c for c in all_cases() if c.grad_order > 0]
# ops of feature maps: the result and the gradient of the first input are channels-last
OF_FEATURE_MAPS = {
    "filtered_lrelu",
    "fir_bias_act",
    "group_norm_silu",
    "norm_act_pool",
    "styled_conv",
    "winograd_conv",
}
SUMS = {"row_cosine_distance": 0, "step_with_dots": 1, "trajectory_loss": 0}  # the float64 result
# of the inputs of ops that take [P] or [G, P], those that all groups share
SHARED = {"row_cosine_distance": {2}, "step_with_dots": set(), "trajectory_loss": set()}
# large enough for several threads and blocks
THREADED = {
    "class_mean_sqdist": [Shape(n=65, m=17, f=1025, k=3)],
    "diff_augment": [Shape(b=17, c=3, h=13, w=11, family="mixed")],
    "filtered_lrelu": [
        Shape(n=2, c=13, h=7, w=5, up=2, down=2, t=12, s=12, low=9, high=8),
        Shape(n=2, c=21, h=5, w=90, up=2, down=2, t=12, s=12, low=9, high=8),
    ],
    "fir_bias_act": [
        Shape(n=3, m=1, c=70, h=18, w=40, fir=1),
        Shape(n=2, m=1, c=64, h=33, w=33, fir=0),
    ],
    "group_norm_silu": [Shape(n=7, c=72, h=9, w=16)],
    "norm_act_pool": [Shape(n=3, c=150, h=9, w=16, g=0)],
    "norm_act_pool_tangent": [Shape(n=3, c=150, h=9, w=16, g=0)],
    "row_cosine_distance": [Shape(g=3, convnet=16)],
    "softmax_scores": [Shape(n=1031, k=33), Shape(n=1031, k=33, soft=True)],
    "step_with_dots": [Shape(g=3, p=70001)],
    "trajectory_loss": [
        Shape(g=3, p=70001),
        Shape(g=3, p=70001, mask="shared"),
        Shape(g=3, p=70001, mask="own"),
    ],
}
REPEATED = {
    "row_cosine_distance": Shape(g=3, r=5, n=700, gap=3, mask="own"),
    "step_with_dots": Shape(g=3, p=8193),
    "trajectory_loss": Shape(g=3, p=8193, mask="own"),
}


def on_backends(cases):
    """Return a parameter for every case and every backend that can run it here."""
    return [
        pytest.param(c, b, id=f"{c.name}-{b}")
        for c in cases
        for b in runnable_backends()
        if has_kernel(c.name, b)
    ]


def of_every_shape():
    """Return a parameter for every case, backend and shape."""
    return [
        pytest.param(*p.values, shape, id=f"{p.id}-{shape}")
        for p in on_backends(every_case())
        for shape in p.values[0].shapes
    ]


def tensors_of(inputs):
    return [(i, x) for i, x in enumerate(inputs) if isinstance(x, Tensor)]


def changed(inputs, position, value):
    return (*inputs[:position], value, *inputs[position + 1 :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("op", "backend", "shape"), of_every_shape())
def test_matches_the_float64_reference(op, backend, shape, dtype):
    inputs = op.inputs(shape, seed=0, dtype=dtype)
    with running_on(backend):
        op.check(inputs, shape)
        if op.name in SUMS:
            assert op.op(*inputs)[SUMS[op.name]].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", case("step_with_dots").shapes, ids=str)
@pytest.mark.parametrize("backend", runnable_backends())
def test_a_result_without_a_sum_has_the_error_of_three_roundings(backend, shape, dtype):
    op = case("step_with_dots")
    inputs = op.inputs(shape, seed=0, dtype=dtype)
    with running_on(backend):
        out, _ = op.op(*inputs)
    eager, truth = op.reference(*inputs)[0], op.reference(*to_float64(inputs))[0]
    assert_close_enough(out, eager, truth, 1.0)


@pytest.mark.parametrize(("op", "backend"), on_backends(every_case()))
def test_inputs_are_not_touched_and_feature_maps_are_channels_last(op, backend):
    inputs = op.inputs(op.shapes[1], seed=9)
    copies = [(i, x.clone()) for i, x in tensors_of(inputs)]
    with running_on(backend):
        results = op.results(op.op, inputs)
    assert all(torch.equal(inputs[i], x) for i, x in copies)
    for result in results[:2] if op.name in OF_FEATURE_MAPS else ():
        assert result.is_contiguous(memory_format=torch.channels_last)
    for result in results[:4] if op.name == "norm_act_pool_tangent" else ():
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "shape"),
    [pytest.param(n, s, id=f"{n}-{s}") for n, shapes in THREADED.items() for s in shapes],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_do_not_depend_on_threads_and_repeat_bit_by_bit(name, shape, dtype):
    (op,) = [c for c in every_case() if c.name == name]
    inputs, results, before = op.inputs(shape, seed=6, dtype=dtype), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            results.append(op.results(op.op, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_every_op_is_run_with_several_threads():
    # in files of their own, where they go through their tiles in more than one way
    elsewhere = {"conv_grad_sqnorm", "styled_conv", "winograd_conv"}
    assert {c.name for c in every_case()} == THREADED.keys() | elsewhere


@pytest.mark.parametrize("name", REPEATED)
@pytest.mark.parametrize("backend", runnable_backends())
def test_a_second_run_gives_the_same_bits(backend, name):
    inputs = case(name).inputs(REPEATED[name], seed=7)
    with running_on(backend):
        first, again = (case(name).op(*inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("row_cosine_distance", Shape(g=3, r=5, n=129, gap=1, mask="own")),
        ("step_with_dots", Shape(g=3, p=1021, steps=1)),
        ("trajectory_loss", Shape(g=3, p=1021, mask="own")),
    ],
)
@pytest.mark.parametrize("backend", runnable_backends())
def test_a_row_does_not_depend_on_its_neighbours(backend, name, shape):
    op, inputs = case(name), case(name).inputs(shape, seed=5)

    def row(g):
        return [x if i in SHARED[name] else x[g] for i, x in enumerate(inputs)]

    with running_on(backend):
        together = op.op(*inputs)
        alone = [op.op(*row(g)) for g in range(3)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.stack(parts))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("row_cosine_distance", Shape(r=7, n=31, gap=3)),
        ("row_cosine_distance", Shape(g=3, r=4, n=27, gap=1, mask="own")),
        ("trajectory_loss", Shape(p=127, mask="shared")),
        ("trajectory_loss", Shape(g=3, p=1021, mask="own")),
    ],
)
@pytest.mark.parametrize("backend", runnable_backends())
def test_a_gradient_that_is_returned_is_that_of_autograd(backend, name, shape):
    first, *others = case(name).inputs(shape, seed=1, dtype=torch.float64)
    leaf = first.clone().requires_grad_()
    (expected,) = torch.autograd.grad(case(name).reference(leaf, *others)[0].sum(), leaf)
    with running_on(backend):
        _, grad = case(name).op(first, *others)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda c: c.name)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_into_one_graph(op, dynamic):
    inputs = op.inputs(op.shapes[1], seed=10, requires_grad=True)
    leaves = [inputs[i] for i in op.differentiable]

    def loss(*values):
        return op.op(*values).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    got, expected = (torch.autograd.grad(f(*inputs), leaves) for f in (compiled, loss))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def registered_calls(op):
    """Return (name, arguments) of the registered functions that an op calls, for two shapes.

    With and without a graph, for every gradient alone, and without any optional tensor.
    """
    calls = []
    choose = _registry.choose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _registry, "choose", lambda name, args: calls.append((name, args)) or choose(name, args)
        )
        for shape in op.shapes[:2]:
            inputs = op.inputs(shape, seed=1)
            for wrt in (op.differentiable, *((i,) for i in op.differentiable)):
                _registry.forget_choices()
                op.with_gradients(op.op, inputs, wrt=wrt)
            op.op(*inputs)
    forward = [args for name, args in calls if name == op.name]
    schema = getattr(torch.ops.kdistill, op.name).default._schema
    optional = {i for i, a in enumerate(schema.arguments) if str(a.type) == "Optional[Tensor]"}
    for args in forward:
        bare = tuple(None if i in optional else a for i, a in enumerate(args))
        calls.append((op.name, bare))
    return [
        (name, tuple(a.detach() if isinstance(a, Tensor) else a for a in args))
        for name, args in calls
        if hasattr(torch.ops.kdistill, name)
    ]


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda c: c.name)
def test_registration(op):
    known, names = set(), set()
    for name, args in registered_calls(op):
        form = (name, *(tuple(a.shape) if isinstance(a, Tensor) else str(a) for a in args))
        if form not in known:
            known.add(form)
            names.add(name)
            torch.library.opcheck(getattr(torch.ops.kdistill, name).default, args)
    assert names == {op.name, f"{op.name}_bwd"}


@pytest.mark.parametrize("op", every_case(), ids=lambda c: c.name)
def test_another_dtype_is_refused(op):
    inputs = op.inputs(op.tiny, seed=0)
    (first, x), *others = [(i, x) for i, x in tensors_of(inputs) if x.dtype == torch.float32]
    for position, other in others:
        with pytest.raises(ShapeError, match=r"; convert with .to\(\w+\)$"):
            op.op(*changed(inputs, position, other.double()))
    with pytest.raises(ShapeError, match=r"expected \w+ of a floating dtype, got torch.int64"):
        op.op(*changed(inputs, first, x.long()))


@pytest.mark.parametrize("op", every_case(), ids=lambda c: c.name)
def test_another_number_of_dimensions_is_refused(op):
    inputs = op.inputs(op.tiny, seed=0)
    for position, x in tensors_of(inputs):
        with pytest.raises(ShapeError, match=r"^\w+: expected .*, got .*; \w+"):
            op.op(*changed(inputs, position, x[None, None, None]))


@pytest.mark.parametrize("op", [c for c in every_case() if not c.grad_order], ids=lambda c: c.name)
def test_an_input_that_requires_grad_is_refused(op):
    inputs = op.inputs(op.tiny, seed=12)
    floating = [(i, x) for i, x in tensors_of(inputs) if x.is_floating_point()]
    for position, x in floating:
        leaf = x.clone().requires_grad_()
        with pytest.raises(NotDifferentiableError, match="expected inputs without requires_grad"):
            op.op(*changed(inputs, position, leaf))
    with torch.no_grad():
        results = as_tuple(op.op(*changed(inputs, *floating[0])))
    assert all(r.grad_fn is None for r in results)
