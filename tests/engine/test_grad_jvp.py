"""grad_jvp against two oracles: double backward in float64, and torch.func forward over reverse."""

import functools

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp

from kdistill.engine import build_student, grad_jvp, loss_and_grad
from kdistill.engine.students import Student
from kdistill.errors import ConfigError, ShapeError
from kdistill.keys import generator
from kdistill.testing.backends import runnable_backends, running_on

# torch.func forward mode scripts its formulas the first time
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

NAMES = ("loss", "loss_tangent", "grad", "hvp", "images_tangent", "labels_tangent")


def drawn(student, *, soft, batch=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    theta = student.init(generator(1)).to(dtype)
    images = torch.randn(
        batch, student.channels, student.size, student.size, generator=g, dtype=torch.float64
    ).to(dtype)
    labels = torch.randn(batch, student.classes, generator=g, dtype=torch.float64).to(dtype)
    v = torch.randn(student.num_params, generator=g, dtype=torch.float64).to(dtype)
    return theta, images, labels if soft else labels.argmax(1), v


def double_backward(student, theta, images, labels, v):
    return Student._grad_jvp(student, theta, images, labels, v, ("grad", "hvp", "images"))


@pytest.mark.parametrize("way", ["auto", "winograd", "direct"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("channels", "size", "depth"), [(1, 28, 2), (3, 16, 2), (5, 9, 1)])
def test_the_fast_path_is_exact_in_float64(channels, size, depth, soft, way, monkeypatch):
    monkeypatch.setenv("KDISTILL_CONVOLUTION", way)
    student = build_student(
        "convnet", channels=channels, size=size, classes=4, width=18, depth=depth
    )
    inputs = drawn(student, soft=soft)
    ours, truth = grad_jvp(student, *inputs), double_backward(student, *inputs)
    for name in NAMES:
        torch.testing.assert_close(getattr(ours, name), getattr(truth, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", runnable_backends())
def test_backends_agree(backend):
    student = build_student("convnet", channels=3, size=8, classes=3, width=6, depth=1)
    inputs = drawn(student, soft=True)
    with running_on(backend):
        ours = grad_jvp(student, *inputs)
    truth = double_backward(student, *inputs)
    for name in NAMES:
        torch.testing.assert_close(getattr(ours, name), getattr(truth, name), rtol=1e-9, atol=1e-9)


def test_chunks_do_not_change_the_result(monkeypatch):
    from kdistill.engine import layers

    student = build_student("convnet", channels=3, size=16, classes=4, width=16, depth=2)
    inputs = drawn(student, soft=True, batch=11)
    whole = grad_jvp(student, *inputs)
    monkeypatch.setattr(layers, "CHUNK_BYTES", 3 * 2 * 16 * 16 * 16 * 8)
    parts = grad_jvp(student, *inputs)
    for name in NAMES:
        torch.testing.assert_close(
            getattr(parts, name), getattr(whole, name), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "group"},
        {"norm": "batch"},
        {"norm": "none"},
        {"activation": "leaky_relu"},
        {"activation": "silu"},
        {"pooling": "max"},
    ],
    ids=str,
)
def test_other_blocks_agree_with_torch_func(options):
    student = build_student("convnet", channels=2, size=8, classes=3, width=4, depth=2, **options)
    theta, images, z, v = drawn(student, soft=True)

    def loss(t, x, labels):
        return nn.functional.cross_entropy(student.apply(t, x), labels.softmax(1))

    found = grad_jvp(student, theta, images, z, v)
    gradients, tangents = jvp(lambda t: grad(loss, argnums=(0, 1, 2))(t, images, z), (theta,), (v,))
    torch.testing.assert_close(found.grad, gradients[0])
    for ours, truth in zip(
        (found.hvp, found.images_tangent, found.labels_tangent), tangents, strict=True
    ):
        torch.testing.assert_close(ours, truth)


def test_a_user_module_agrees_with_torch_func():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9, 3)
    ).double()
    student = build_student(module, channels=3, size=8, classes=3)
    theta, images, labels, v = drawn(student, soft=False)
    names = [name for name, _ in module.named_parameters()]

    def loss(t):
        values = dict(zip(names, student.unflatten(t), strict=True))
        return nn.functional.cross_entropy(functional_call(module, values, (images,)), labels)

    gradient, hvp = jvp(grad(loss), (theta,), (v,))
    found = grad_jvp(student, theta, images, labels, v)
    torch.testing.assert_close(found.grad, gradient)
    torch.testing.assert_close(found.hvp, hvp)
    torch.testing.assert_close(found.loss_tangent, gradient @ v)


def test_float32_at_a_small_width_keeps_the_bound_of_the_design():
    student = build_student("convnet", channels=3, size=16, classes=10, width=24, depth=2)
    wide = drawn(student, soft=False, batch=10)
    truth = double_backward(student, *wide)
    ours = grad_jvp(student, *[x.float() if x.is_floating_point() else x for x in wide])
    for name in ("grad", "hvp", "images_tangent"):
        true = getattr(truth, name)
        assert float((getattr(ours, name) - true).norm() / true.norm()) < 1e-4, name


def test_gradient_and_loss_are_those_of_the_training_step():
    student = build_student("convnet", channels=3, size=16, classes=4, width=16, depth=2)
    theta, images, labels, v = drawn(student, soft=False)
    found = grad_jvp(student, theta, images, labels, v)
    loss, gradient = loss_and_grad(student, theta, images, labels)
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.grad, gradient)


@pytest.mark.parametrize("shared", [False, True])
def test_a_group_is_its_members(shared):
    student = build_student("convnet", channels=1, size=8, classes=3, width=4, depth=1)
    theta = torch.stack([student.init(generator(seed)) for seed in (1, 2)]).double()
    v = torch.randn_like(theta)
    images, z = (
        torch.randn(2, 4, 1, 8, 8, dtype=torch.float64),
        torch.randn(2, 4, 3, dtype=torch.float64),
    )
    if shared:
        images, z = images[0], z[0]
    found = grad_jvp(student, theta, images, z, v)
    alone = [
        grad_jvp(student, theta[g], images if shared else images[g], z if shared else z[g], v[g])
        for g in (0, 1)
    ]
    torch.testing.assert_close(found.hvp, torch.stack([one.hvp for one in alone]))
    together = torch.stack([one.images_tangent for one in alone])
    torch.testing.assert_close(found.images_tangent, together.sum(0) if shared else together)


def test_only_what_is_wanted_is_computed():
    student = build_student("convnet", channels=1, size=8, classes=3, width=4, depth=1)
    inputs = drawn(student, soft=False)
    whole = grad_jvp(student, *inputs)
    for calls in (student.grad_jvp, functools.partial(Student._grad_jvp, student)):
        for wanted in ("grad", "hvp", "images"):
            found = calls(*inputs, want=(wanted,))
            present = {
                name
                for name in ("grad", "hvp", "images_tangent")
                if getattr(found, name) is not None
            }
            assert present == {{"images": "images_tangent"}.get(wanted, wanted)}
            torch.testing.assert_close(getattr(found, *present), getattr(whole, *present))
            torch.testing.assert_close(found.loss_tangent, whole.loss_tangent)


def test_refusals():
    student = build_student("convnet", channels=1, size=8, classes=3, width=4, depth=1)
    theta, images, labels, v = drawn(student, soft=False)
    with pytest.raises(ShapeError, match="one direction per network"):
        grad_jvp(student, theta, images, labels, v[1:])
    with pytest.raises(ConfigError, match="want among"):
        grad_jvp(student, theta, images, labels, v, want=("Hv",))
    with pytest.raises(ShapeError, match="one label per image"):
        grad_jvp(student, theta, images, labels[1:], v)
