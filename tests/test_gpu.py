"""The real kernels on a real GPU: `pytest -m gpu` on a machine with one and with nvcc."""

import importlib.util
import logging
from collections.abc import Iterator

import pytest
import torch

from kdistill import _native, ops
from kdistill.augment import Augment
from kdistill.engine import build_student, trajectory_match, use_precision
from kdistill.engine.students.convnet.conv_products import convolution_for
from kdistill.keys import generator
from kdistill.testing.backends import has_kernel, running_on
from kdistill.testing.cases import OpCase, all_cases, as_tuple, case, every_case
from kdistill.testing.tolerance import assert_close_enough
from tests.triton_suite.second_order import check_second_order

WHY_NOT = None if torch.cuda.is_available() else f"no CUDA device (torch {torch.__version__})"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    # each says once per process what it will change later, or that torch could be told more; no
    # result depends on it
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:Attempting to run cuBLAS, but there was no current CUDA context:UserWarning"
    ),
    pytest.mark.filterwarnings(
        "ignore:Plan failed with a:UserWarning"
    ),  # cuDNN then takes its next algorithm
]
HUGE_NBYTES = 18 << 30


@pytest.fixture(autouse=True)
def float32_is_float32():
    """Keep cuDNN from rounding the references to TF32: their error is in the tolerance."""
    with use_precision("fp32", "cuda"):
        yield


MISSING = {
    "cuda": _native.why_missing("_cuda"),
    "triton": None if importlib.util.find_spec("triton") else "Triton is not installed",
}


def on_every_backend(cases: list[OpCase], *extra: str) -> pytest.MarkDecorator:
    """Parametrise with every case on every GPU backend that has it; "shape" is one of its sizes."""

    def parameters(of: OpCase, backend: str) -> Iterator[object]:
        skip = pytest.mark.skipif(MISSING[backend] is not None, reason=str(MISSING[backend]))
        for shape in dict.fromkeys(map(str, [*of.shapes, *of.bench_shapes])) if extra else [""]:
            values = (of, backend, shape) if extra else (of, backend)
            yield pytest.param(
                *values, marks=skip, id="-".join([of.name, backend, *([shape] if extra else [])])
            )

    parameters = [
        p
        for of in cases
        for backend in MISSING
        if has_kernel(of.name, backend)
        for p in parameters(of, backend)
    ]
    return pytest.mark.parametrize(("of", "backend", *extra), parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@on_every_backend(every_case(), "shape")
def test_matches_the_float64_reference(of, shape, backend, dtype):
    sizes = next(s for s in [*of.shapes, *of.bench_shapes] if str(s) == shape)
    with running_on(backend):
        of.check(of.inputs(sizes, seed=0, dtype=dtype, device="cuda"), sizes)


@on_every_backend([of for of in all_cases() if of.grad_order == 2])
def test_second_derivatives_match_too(of, backend):
    with running_on(backend):
        check_second_order(
            of, of.inputs(of.shapes[1], seed=0, dtype=torch.float64, device="cuda"), of.shapes[1]
        )


@on_every_backend(every_case())
def test_a_second_run_gives_the_same_bits(of, backend):
    inputs = of.inputs(of.bench_shapes[0], seed=0, device="cuda")
    with running_on(backend):
        first, again = of.results(of.op, inputs), of.results(of.op, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@on_every_backend(all_cases())
def test_the_stream_in_use_is_the_current_one(of, backend):
    inputs = of.inputs(of.shapes[1], seed=0, device="cuda")
    stream = torch.cuda.Stream()
    with running_on(backend):
        expected = of.op(*inputs)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(
                int(1e7)
            )  # what follows on the wrong stream would read inputs too early
            later = [x + 0 if isinstance(x, torch.Tensor) else x for x in inputs]
            got = of.op(*later)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(as_tuple(got), as_tuple(expected), strict=True))


@pytest.fixture
def as_users_run():
    """Leave torch's deterministic mode, whose ``index_add_`` may wait for the device."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before, warn_only=True)


STUDENTS = {}  # graphs belong to a student, and are recorded anew for another augmentation


def match(dtype, step=0, **options):
    if not STUDENTS:
        STUDENTS["convnet"] = build_student(
            "convnet", channels=3, size=16, classes=4, width=16, depth=2
        )
        STUDENTS["dsa"] = Augment("color_crop_cutout", siamese=False, key=1, align_corners=True)
    student, augment = STUDENTS["convnet"], STUDENTS["dsa"]
    start, target = (
        student.init(generator(seed)).to("cuda", dtype, non_blocking=True) for seed in (0, 1)
    )
    images = torch.randn(8, 3, 16, 16, generator=generator(2 + step)).to(
        "cuda", dtype, non_blocking=True
    )
    return trajectory_match(
        student, start, target, images, torch.arange(8, device="cuda") % 4,
        torch.full((), 0.01, dtype=dtype, device="cuda"), batches=[torch.arange(3),
        torch.arange(3, 8)] * 5, augment=augment, first_step=10 * step, **options,
    )  # fmt: skip


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("tf32", 0.05), ("bf16", 0.15)])
def test_the_trajectory_gradient_in_every_precision(precision, bound):
    exact = match(torch.float64).grad_images
    with use_precision(precision, "cuda"):
        ours = match(torch.float32).grad_images.double()
    assert (ours - exact).norm() <= bound * exact.norm()


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("grad_mode", ["adjoint", "tesla"])
def test_one_graph_per_outer_step_gives_what_plain_launches_give(grad_mode, caplog):
    with use_precision("fp32", "cuda"), caplog.at_level(logging.WARNING, logger="kdistill"):
        for step in range(3):
            plain = match(torch.float32, step, grad_mode=grad_mode)
            graphed = match(torch.float32, step, grad_mode=grad_mode, cuda_graph=True)
            for name, value in vars(plain).items():
                if value is not None:
                    assert (
                        getattr(graphed, name) - value
                    ).double().norm() <= 1e-4 * value.double().norm(), name
    assert "cuda_graph" not in caplog.text


@pytest.mark.usefixtures("as_users_run")
def test_an_outer_step_waits_for_nothing():
    match(torch.float32)  # libraries and kernels are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        match(torch.float32, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_convolutions_stay_channels_last():
    x, w = torch.randn(4, 32, 8, 8, device="cuda"), torch.randn(32, 32, 3, 3, device="cuda")
    conv = convolution_for(32, 32, 1, 8, x)
    operand, weight = conv.input(x), conv.weight(w)
    y = conv.output(4, (operand, weight))
    for result in (
        y,
        conv.input_grad(4, (conv.grad(y), weight)),
        conv.weight_grad(None, (operand, conv.grad(y))),
    ):
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.skipif(
    WHY_NOT is None and torch.cuda.get_device_properties(0).total_memory < HUGE_NBYTES,
    reason=f"needs {HUGE_NBYTES >> 30} GiB of GPU memory",
)
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(b, marks=pytest.mark.skipif(why is not None, reason=str(why)))
        for b, why in MISSING.items()
    ],
)
def test_offsets_beyond_31_bits(backend):
    # more than 2^31 elements: the last rows lie where a 32-bit offset would wrap around
    n, f = (1 << 20) + 3, 2049
    real = torch.zeros(n, f, device="cuda")
    real[-3:] = torch.randn(3, f, device="cuda")
    labels = torch.zeros(n, dtype=torch.int64, device="cuda")
    labels[-3:] = 1
    syn, syn_labels = torch.randn(4, f, device="cuda"), torch.tensor([0, 1, 1, 0], device="cuda")
    with running_on(backend):
        got = ops.class_mean_sqdist(real, labels, syn, syn_labels, 2)
    small, small_labels = torch.cat([real[:1], real[-3:]]).cpu(), torch.tensor([0, 1, 1, 1])
    arguments = (small, small_labels, syn.cpu(), syn_labels.cpu(), 2)
    of = case("class_mean_sqdist")
    truth = of.reference(
        *(
            x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for x in arguments
        )
    )
    assert_close_enough(got.cpu(), of.reference(*arguments), truth, 2.0 * f, "class_mean_sqdist")
