"""TF32 and bfloat16: distance of the trajectory gradient from float64, and where they apply."""

import pytest
import torch
import torch.nn.functional as functional

from kdistill.engine import build_student, loss_and_grad, trajectory_match, use_precision
from kdistill.engine.precision import asked_precision
from kdistill.engine.students.convnet.conv_products import Convolution, convolution_for
from kdistill.errors import ConfigError, ShapeError
from kdistill.keys import generator

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STUDENT = build_student("convnet", channels=3, size=16, classes=4, width=32, depth=2)
IMAGES, LABELS = torch.randn(8, 3, 16, 16, generator=generator(5)), torch.arange(8) % 4


def matched(dtype=torch.float32, grad_mode="adjoint", student=STUDENT):
    start, target = (student.init(generator(seed)).to(dtype) for seed in (0, 1))
    batches = [torch.arange(8)] * 10
    return trajectory_match(
        student, start, target, IMAGES.to(dtype), LABELS, 0.01, batches=batches, grad_mode=grad_mode
    ).grad_images.double()


def off(a, b):
    return float((a - b).norm() / b.norm())


def ten_bits(x):
    """Return float32 numbers rounded to TF32's 10 bits of mantissa, to nearest, ties to even."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def test_the_error_of_bfloat16_is_within_the_bound_of_numerics():
    exact = matched(torch.float64)
    with use_precision("bf16", CPU):
        ours = matched()
    assert off(ours, exact) < 0.15
    assert functional.cosine_similarity(ours.flatten(), exact.flatten(), 0) > 0.99


def test_the_error_of_emulated_tf32_is_within_the_bound_of_numerics(monkeypatch):
    exact = matched(torch.float64)
    monkeypatch.setattr(Convolution, "_operand", lambda self, x: ten_bits(x))
    monkeypatch.setenv("KDISTILL_CONVOLUTION", "direct")
    assert 1e-6 < off(matched(), exact) < 0.02


@pytest.mark.parametrize(
    "student",
    [STUDENT, build_student("convnet", channels=3, size=8, classes=4, width=8, norm="group")],
)
def test_bfloat16_gives_the_adjoint_what_it_gives_the_unroll(student):
    images, labels = (
        torch.randn(6, 3, student.size, student.size, generator=generator(7)),
        torch.arange(6) % 4,
    )
    theta = student.init(generator(0))
    leaf = theta.clone().requires_grad_()
    with use_precision("bf16", CPU):
        _, ours = loss_and_grad(student, theta, images, labels)
        functional.cross_entropy(student.apply(leaf, images), labels).backward()
    _, plain = loss_and_grad(student, theta, images, labels)
    assert off(ours, leaf.grad) < 0.01  # the same roundings in the same places
    assert off(ours, plain) > 1e-4


@pytest.mark.parametrize("channels", [3, 32])
def test_operands_are_bfloat16_and_sums_are_float32(channels):
    x, w = torch.randn(2, channels, 8, 8), torch.randn(32, channels, 3, 3)
    with use_precision("bf16", CPU):
        conv = convolution_for(channels, 32, 1, 8, x)
    operand, weight = conv.input(x), conv.weight(w)
    got = conv.output(2, (operand, weight), (operand, weight))
    assert (operand.dtype, weight.dtype, got.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )
    truth = 2 * functional.conv2d(x.bfloat16().double(), w.bfloat16().double(), padding=1)
    assert (got - truth).abs().max() <= 2**-8 * truth.abs().max()
    back = conv.input_grad(2, (conv.grad(got), weight))
    total = conv.from_weight(conv.weight_grad(None, (operand, conv.grad(got))))
    assert (back.dtype, total.dtype) == (torch.float32, torch.float32)


def test_direct_convolutions_stay_channels_last(monkeypatch):
    monkeypatch.setenv("KDISTILL_CONVOLUTION", "direct")
    x, w = torch.randn(4, 32, 8, 8), torch.randn(32, 32, 3, 3)
    conv = convolution_for(32, 32, 1, 8, x)
    operand, weight = conv.input(x), conv.weight(w)
    y = conv.output(4, (operand, weight))
    for found in (
        y,
        conv.input_grad(4, (conv.grad(y), weight)),
        conv.weight_grad(None, (operand, conv.grad(y))),
    ):
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_tf32_switches_the_libraries_and_switches_them_back():
    switches = torch.backends.cudnn.conv, torch.backends.cuda.matmul

    def now():
        return [switch.fp32_precision for switch in switches]

    before = now()
    with use_precision("tf32", CUDA):
        assert (asked_precision(), now()) == ("tf32", ["tf32", "tf32"])
        with use_precision(
            "fp32", CUDA
        ):  # torch's default lets cuDNN use TF32; float32 means float32 here
            assert now() == ["ieee", "ieee"]
        assert now() == ["tf32", "tf32"]
    assert (asked_precision(), now()) == ("fp32", before)
    with use_precision("bf16", CPU):
        assert now() == before


def test_what_does_not_apply_is_refused_in_one_sentence():
    with pytest.raises(ConfigError, match="did you mean 'tf32'"), use_precision("tf23", CPU):
        pass
    with (
        pytest.raises(ConfigError, match="expected fp32 or bf16 on the CPU, got tf32"),
        use_precision("tf32", CPU),
    ):
        pass
    mlp = build_student("mlp", channels=3, size=16, classes=4, width=8)
    with use_precision("bf16", CPU):
        with pytest.raises(ConfigError, match="expected student convnet with bf16, got mlp"):
            loss_and_grad(mlp, mlp.init(generator(0)), IMAGES, LABELS)
        with pytest.raises(ShapeError, match="expected float32 tensors under bf16"):
            matched(torch.float64)
