"""Graph-free passes against autograd, and differentiable ones against finite differences."""

from itertools import product

import pytest
import torch
from torch import nn

from kdistill.engine import (
    STUDENTS,
    build_student,
    embed,
    embed_with_vjp,
    layers,
    loss_and_grad,
)
from kdistill.engine.students.convnet import conv_products
from kdistill.errors import ConfigError, ShapeError
from kdistill.keys import generator
from kdistill.testing.tolerance import assert_close_enough
from tests.engine.test_students import NARROW, narrow

SMALL = {"convnet": 8, "mlp": 8, "lenet": 16, "alexnet": 8, "vgg11": 8, "resnet18": 8, "vit": 8}


class Plain(nn.Module):
    """ConvNet-D in plain PyTorch, with the parameters in the order of theta."""

    def __init__(self, channels, size, classes, width, depth, padding):
        super().__init__()
        parts, side = [], size
        for level in range(depth):
            pad = padding if level == 0 else 1
            conv = nn.Conv2d(width if level else channels, width, 3, padding=pad)
            parts += [conv, nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
            side = (side + 2 * pad - 2) // 2
        self.body, self.classifier = (
            nn.Sequential(*parts, nn.Flatten()),
            nn.Linear(width * side * side, classes),
        )

    def forward(self, images):
        return self.classifier(self.body(images))


def plain_grads(plain, theta, images, loss_of):
    """Return (out, dtheta, dimages) by autograd through the module."""
    plain = plain.to(theta)
    nn.utils.vector_to_parameters(theta.clone(), plain.parameters())
    images = images.clone().requires_grad_()
    out = plain(images)
    grads = torch.autograd.grad(loss_of(out), [*plain.parameters(), images])
    return out.detach(), torch.cat([g.flatten() for g in grads[:-1]]), grads[-1]


def random_theta(student, dtype=torch.float64, seed=0):
    """Return parameters with no constant among them: gamma and beta are random too."""
    drawn = student.init(generator(seed)).to(dtype)
    return drawn + 0.1 * torch.randn(
        drawn.shape, generator=generator(seed + 1), dtype=torch.float64
    ).to(dtype)


def chunked(monkeypatch, rows, width, side, itemsize):
    monkeypatch.setattr(
        layers, "CHUNK_BYTES", rows * width * side**2 * itemsize // torch.get_num_threads()
    )


@pytest.mark.parametrize("rows", [100, 2])
@pytest.mark.parametrize(
    ("channels", "size", "depth"), [(1, 28, 3), (3, 16, 2), (3, 13, 2), (6, 8, 1), (3, 8, 3)]
)
def test_fast_pair_equals_autograd_in_float64(monkeypatch, channels, size, depth, rows):
    chunked(monkeypatch, rows, 5, size + 4 * (size == 28), 8)
    student = build_student(
        "convnet", channels=channels, size=size, classes=4, width=5, depth=depth
    )
    theta, images = random_theta(student), torch.randn(5, channels, size, size, dtype=torch.float64)
    cotangent = torch.randn(5, 4, dtype=torch.float64)
    plain = Plain(channels, size, 4, 5, depth, 3 if size == 28 else 1)
    out, grad_theta, grad_images = plain_grads(
        plain, theta, images, lambda out: (out * cotangent).sum()
    )
    ours, saved = student.forward(theta, images)
    torch.testing.assert_close(ours, out)
    got = student.backward(saved, cotangent)
    torch.testing.assert_close(got[0], grad_theta)
    torch.testing.assert_close(got[1], grad_images)
    assert torch.equal(student.backward(saved, cotangent, want=("theta",))[0], got[0])
    assert torch.equal(student.backward(saved, cotangent, want=("images",))[1], got[1])
    assert student.backward(saved, cotangent, want=()) == (None, None)


@pytest.mark.parametrize("rows", [100, 3])
@pytest.mark.parametrize("soft", [False, True])
def test_fast_path_is_no_worse_than_eager_in_float32(monkeypatch, soft, rows):
    chunked(monkeypatch, rows, 16, 16, 4)
    student = build_student("convnet", channels=3, size=16, classes=7, width=16)
    theta, images = random_theta(student, torch.float32), torch.randn(8, 3, 16, 16)
    labels = torch.randn(8, 7) if soft else torch.arange(8) % 7
    plain, found = Plain(3, 16, 7, 16, 2, 1), {}
    for dtype in (torch.float32, torch.float64):
        target = labels.to(dtype).softmax(1) if soft else labels
        call = plain_grads(
            plain,
            theta.to(dtype),
            images.to(dtype),
            lambda out, t=target: nn.functional.cross_entropy(out, t),
        )
        found[dtype] = call
    loss, grad = loss_and_grad(student, theta, images, labels)
    eager, truth = found[torch.float32], found[torch.float64]
    depth = 9 * 16 + 16 * 16 + student.feature_dim
    assert_close_enough(grad, eager[1], truth[1], depth, "dL/dtheta")
    target = labels.softmax(1) if soft else labels
    eager_loss, truth_loss = (
        nn.functional.cross_entropy(x[0], target.to(x[0]) if soft else target)
        for x in (eager, truth)
    )
    assert_close_enough(loss, eager_loss, truth_loss, depth, "loss")
    logits, saved = student.forward(theta, images)
    assert_close_enough(logits, eager[0], truth[0], depth, "logits")
    _, grad_logits = layers.softmax_cross_entropy(logits, labels)
    assert_close_enough(
        student.backward(saved, grad_logits)[1], eager[2], truth[2], depth, "dL/dimages"
    )


@pytest.mark.parametrize("to", ["logits", "features"])
@pytest.mark.parametrize("name", STUDENTS)
def test_pair_equals_autograd_for_every_student(name, to):
    student = narrow(name, SMALL[name])
    theta = random_theta(student).requires_grad_()
    images = torch.randn(2, 3, SMALL[name], SMALL[name], dtype=torch.float64, requires_grad=True)
    out = student.apply(theta, images) if to == "logits" else student.features(theta, images)
    cotangent = torch.randn_like(out)
    wanted = torch.autograd.grad(out, (theta, images), cotangent, materialize_grads=True)
    ours, saved = student.forward(theta.detach(), images.detach(), to=to)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, out.detach())
    torch.testing.assert_close(student.infer(theta.detach(), images.detach(), to=to), out.detach())
    for got, grad in zip(student.backward(saved, cotangent), wanted, strict=True):
        torch.testing.assert_close(got, grad)


@pytest.mark.parametrize(
    "options",
    [{"norm": n} for n in ("group", "batch", "none")]
    + [{"activation": a} for a in ("leaky_relu", "silu")]
    + [{"pooling": p} for p in ("max", "none")],
    ids=str,
)
def test_pair_equals_autograd_for_every_block(options):
    student = narrow("convnet", 8, depth=2, **options)
    theta, images = (
        random_theta(student).requires_grad_(),
        torch.randn(3, 3, 8, 8, dtype=torch.float64),
    )
    labels = torch.tensor([0, 4, 2])
    wanted = torch.autograd.grad(
        nn.functional.cross_entropy(student.apply(theta, images), labels), theta
    )[0]
    logits, saved = student.forward(theta, images)
    loss, grad = loss_and_grad(student, theta, images, labels)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels))
    torch.testing.assert_close(grad, wanted)
    torch.testing.assert_close(
        student.backward(saved, layers.softmax_cross_entropy(logits, labels)[1])[0], wanted
    )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_groups_equal_the_loop(name, shared):
    student = narrow(name, 8)
    thetas = torch.stack([random_theta(student, seed=k) for k in range(3)])
    images = torch.randn(*((2,) if shared else (3, 2)), 3, 8, 8, dtype=torch.float64)
    labels = torch.randint(0, 5, (2,) if shared else (3, 2))
    out, saved = student.forward(thetas, images)
    cotangent = torch.randn_like(out)
    grad_thetas, grad_images = student.backward(saved, cotangent)
    losses, grads = loss_and_grad(student, thetas, images, labels)
    summed = torch.zeros_like(images)
    for g in range(3):
        x, y = (images, labels) if shared else (images[g], labels[g])
        one, kept = student.forward(thetas[g], x)
        grad_theta, grad_x = student.backward(kept, cotangent[g])
        loss, grad = loss_and_grad(student, thetas[g], x, y)
        assert torch.equal(out[g], one) and torch.equal(grad_thetas[g], grad_theta)
        assert torch.equal(losses[g], loss) and torch.equal(grads[g], grad)
        if shared:
            summed += grad_x
        else:
            summed[g] = grad_x
    torch.testing.assert_close(grad_images, summed)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnet", {}),
        ("convnet", {"norm": "batch", "activation": "silu"}),
        ("mlp", {}),
        ("vit", {"depth": 1}),
    ],
    ids=str,
)
def test_apply_can_be_differentiated_twice(name, options):
    width = {"vit": 2}.get(name, 2)
    student = build_student(name, channels=1, size=8, classes=2, width=width, **options)
    theta = random_theta(student).requires_grad_()
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(student.apply, (theta, images), fast_mode=True)
    assert torch.autograd.gradgradcheck(student.apply, (theta, images), fast_mode=True)


@pytest.mark.parametrize("layer", ["last", "all"])
def test_features_can_be_differentiated_twice(layer):
    student = build_student("convnet", channels=1, size=8, classes=2, width=2, depth=2)
    theta = random_theta(student).requires_grad_()
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def call(theta, images):
        found = student.features(theta, images, layers=layer)
        return found if layer == "last" else tuple(found)

    assert torch.autograd.gradcheck(call, (theta, images), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (theta, images), fast_mode=True)


def test_labels_hard_and_soft_agree_on_one_hot():
    logits, hard = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    z = nn.functional.one_hot(hard, 3).double() * 100
    for ours, theirs in zip(
        layers.softmax_cross_entropy(logits, hard),
        layers.softmax_cross_entropy(logits, z),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_patches_and_their_transpose():
    for (batch, channels, height, width), padding in product(
        [(2, 1, 5, 4), (1, 3, 3, 7), (0, 2, 4, 4)], [1, 3]
    ):
        images = torch.randn(batch, channels, height, width, dtype=torch.float64)
        columns = conv_products.patches(images, padding)
        wanted = (
            nn.functional.unfold(images, 3, padding=padding)
            .transpose(0, 1)
            .reshape(9 * channels, -1)
        )
        assert torch.equal(columns, wanted)
        other = torch.randn_like(columns)
        back = conv_products.unpatch(other, images.shape, padding)
        torch.testing.assert_close((columns * other).sum(), (images * back).sum())


def test_embed_and_its_pull_back():
    student = narrow("convnet", 8)
    theta, images = random_theta(student), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    features, vjp = embed_with_vjp(student, theta, images)
    torch.testing.assert_close(features, embed(student, theta, images, batch_size=2))
    leaf, cotangent = images.clone().requires_grad_(), torch.randn_like(features)
    (wanted,) = torch.autograd.grad(student.features(theta, leaf), leaf, cotangent)
    torch.testing.assert_close(vjp(cotangent), wanted)
    assert torch.equal(vjp(cotangent), vjp(cotangent))


@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_no_images_give_no_features(name):
    student = narrow(name, 8)
    assert embed(student, student.init(generator(0)), torch.zeros(0, 3, 8, 8)).shape == (
        0,
        student.feature_dim,
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_two_calls_give_the_same_bits(threads):
    torch.set_num_threads(threads)
    student = build_student("convnet", channels=3, size=32, classes=10, width=32)
    theta, images, labels = (
        student.init(generator(0)),
        torch.randn(50, 3, 32, 32),
        torch.arange(50) % 10,
    )
    first, second = (loss_and_grad(student, theta, images, labels) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_what_the_pair_refuses():
    student = narrow("convnet", 8)
    theta, images = student.init(generator(0)), torch.randn(2, 3, 8, 8)
    with pytest.raises(ConfigError, match="'logits' or 'features'"):
        student.forward(theta, images, to="maps")
    with pytest.raises(ConfigError, match="'logits' or 'features'"):
        student.infer(theta, images, to="maps")
    _, saved = student.forward(theta, images)
    with pytest.raises(ConfigError, match="expected want among"):
        student.backward(saved, torch.randn(2, 5), want=("labels",))
    for labels in (
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(2),
        torch.zeros(2, dtype=torch.int32),
    ):
        with pytest.raises(ShapeError, match="expected labels int64"):
            loss_and_grad(student, theta, images, labels)


def test_narrow_covers_every_student():
    assert set(NARROW) == set(SMALL) == set(STUDENTS)


@pytest.mark.parametrize("padding", [1, 3])
@pytest.mark.parametrize("way", ["auto", "winograd", "direct"])
def test_every_way_to_convolve_gives_the_same_sums_of_products(way, padding, monkeypatch):
    monkeypatch.setenv("KDISTILL_CONVOLUTION", way)
    for channels in (3, 16):
        x, dx = (torch.randn(2, channels, 9, 9, dtype=torch.float64) for _ in range(2))
        w, dw = (torch.randn(17, channels, 3, 3, dtype=torch.float64) for _ in range(2))
        conv = conv_products.convolution_for(channels, 17, padding, 9, x)
        leaves = [t.requires_grad_() for t in (x, w)]
        y = nn.functional.conv2d(x, w, padding=padding)
        g = torch.randn_like(y)
        wanted = torch.autograd.grad(y, leaves, g)
        tangent = nn.functional.conv2d(dx, w, padding=padding) + nn.functional.conv2d(
            x, dw, padding=padding
        )
        with torch.no_grad():
            a, da, b, db, c = (
                conv.input(x),
                conv.input(dx),
                conv.weight(w),
                conv.weight(dw),
                conv.grad(g),
            )
            torch.testing.assert_close(conv.output(2, (a, b)), y)
            torch.testing.assert_close(conv.output(2, (da, b), (a, db)), tangent)
            torch.testing.assert_close(conv.input_grad(2, (c, b)), wanted[0])
            torch.testing.assert_close(conv.input_grad(2, (c, b), (c, b)), 2 * wanted[0])
            total = conv.weight_grad(conv.weight_grad(None, (a, c)), (a, c))
            torch.testing.assert_close(conv.from_weight(total), 2 * wanted[1])


def test_an_unknown_way_to_convolve_is_refused(monkeypatch):
    monkeypatch.setenv("KDISTILL_CONVOLUTION", "winogard")
    with pytest.raises(ConfigError, match="did you mean 'winograd'"):
        conv_products.convolution_for(16, 16, 1, 8, torch.zeros(1))
