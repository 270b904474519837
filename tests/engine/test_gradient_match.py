"""gradient_match against the published formulation, a graph of the gradient, in float64."""

import pytest
import torch
from torch import nn

from kdistill.engine import build_student, class_gradients, gradient_match, loss_and_grad
from kdistill.errors import ConfigError, ShapeError
from kdistill.keys import generator
from kdistill.testing.backends import runnable_backends, running_on

EPS = 1e-6
# torch.func forward mode, inside blocks that are not the standard one, scripts its formulas the
# first time
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def drawn(student, *, groups=3, batch=4, soft=False, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    theta = student.init(generator(1)).to(dtype)
    shape = (student.channels, student.size, student.size)
    images = torch.randn(groups, batch, *shape, generator=g, dtype=torch.float64).to(dtype)
    logits = torch.randn(groups, batch, student.classes, generator=g, dtype=torch.float64).to(dtype)
    real = torch.stack([student.init(generator(10 + c)) for c in range(groups)]).to(dtype)
    return theta, images, logits if soft else logits.argmax(-1), real


def oracle(student, theta, images, labels, real, *, distance="cosine_rows", mask=None):
    """Return loss and image gradient of one member by double backward."""
    theta, images = theta.clone().requires_grad_(), images.clone().requires_grad_()
    target = labels.softmax(1) if labels.is_floating_point() else labels
    loss = nn.functional.cross_entropy(student.apply(theta, images), target)
    (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
    keep = torch.ones_like(real) if mask is None else mask
    grad, real = keep * grad, keep * real
    if distance == "mse":
        value = (grad - real).square().sum()
    elif distance == "cosine":
        value = 1 - grad @ real / (grad.norm() * real.norm() + EPS)
    else:
        value = torch.zeros((), dtype=theta.dtype)
        for g, r, m in zip(*(student.unflatten(x) for x in (grad, real, keep)), strict=True):
            if g.ndim >= 2:
                a, b, kept = g.flatten(1), r.flatten(1), m.flatten(1).sum(1) > 0
                cosine = (a * b).sum(1) / (_norm(a) * _norm(b) + EPS)
                value = value + (kept * (1 - cosine)).sum()
    return value.detach(), torch.autograd.grad(value, images)[0]


def _norm(rows):
    squares = rows.square().sum(1)
    return torch.where(squares > 0, torch.where(squares > 0, squares, 1.0).sqrt(), 0.0)


def assert_is_the_oracle(student, inputs, tolerance=1e-9, **options):
    theta, images, labels, real = inputs
    loss, grad = gradient_match(student, *inputs, **options)
    mask = options.pop("mask", None)
    for c in range(len(images)):
        keep = mask if mask is None or mask.ndim == 1 else mask[c]
        of_class, truth = oracle(
            student, theta, images[c], labels[c], real[c], mask=keep, **options
        )
        torch.testing.assert_close(loss[c], of_class.double(), rtol=tolerance, atol=tolerance)
        assert float((grad[c] - truth).abs().max()) <= tolerance * float(truth.abs().max())


@pytest.mark.parametrize("way", ["auto", "winograd", "direct"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("channels", "size", "depth"), [(1, 28, 2), (3, 16, 2), (5, 9, 1)])
def test_all_classes_at_once_are_exact_in_float64(channels, size, depth, soft, way, monkeypatch):
    monkeypatch.setenv("KDISTILL_CONVOLUTION", way)
    student = build_student(
        "convnet", channels=channels, size=size, classes=4, width=18, depth=depth
    )
    assert_is_the_oracle(student, drawn(student, soft=soft))


@pytest.mark.parametrize("distance", ["cosine_rows", "cosine", "mse"])
@pytest.mark.parametrize("mask", ["none", "shared", "own"])
def test_distances_and_masks(distance, mask):
    student = build_student("convnet", channels=3, size=8, classes=4, width=6, depth=2)
    inputs = drawn(student)
    kept = {"none": None, "shared": (student.num_params,), "own": inputs[3].shape}[mask]
    keep = (
        None
        if kept is None
        else (torch.rand(kept, generator=torch.Generator().manual_seed(3)) < 0.6).double()
    )
    if keep is not None:
        keep[..., :54] = 0  # whole rows of the first convolution
    assert_is_the_oracle(student, inputs, distance=distance, mask=keep)


@pytest.mark.parametrize(
    "options",
    [{"norm": "batch"}, {"norm": "none"}, {"activation": "silu"}, {"pooling": "max"}],
    ids=str,
)
def test_other_blocks(options):
    student = build_student("convnet", channels=2, size=8, classes=3, width=4, depth=2, **options)
    assert_is_the_oracle(student, drawn(student))


@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_other_networks(name):
    student = build_student(name, channels=1, size=8, classes=3, width=8, depth=1)
    assert_is_the_oracle(student, drawn(student))


@pytest.mark.parametrize("backend", runnable_backends())
def test_backends_agree(backend):
    student = build_student("convnet", channels=3, size=8, classes=3, width=6, depth=1)
    with running_on(backend):
        assert_is_the_oracle(student, drawn(student))


def test_chunks_do_not_change_the_result(monkeypatch):
    from kdistill.engine import layers

    student = build_student("convnet", channels=3, size=16, classes=4, width=16, depth=2)
    inputs = drawn(student, batch=7)
    monkeypatch.setattr(layers, "CHUNK_BYTES", 3 * 3 * 16 * 16 * 16 * 8)
    assert_is_the_oracle(student, inputs)


def test_one_class_is_a_group_of_one_and_a_group_has_networks_of_its_own():
    student = build_student("convnet", channels=1, size=8, classes=3, width=4, depth=1)
    theta, images, labels, real = drawn(student)
    together = gradient_match(student, theta, images, labels, real)
    each = torch.stack([theta, 0.5 * theta, -theta])
    own = gradient_match(student, each, images, labels, real)
    for c in range(3):
        for got, expected in zip(
            together, gradient_match(student, theta, images[c], labels[c], real[c]), strict=True
        ):
            assert torch.equal(got[c], expected)
        for got, expected in zip(
            own, gradient_match(student, each[c], images[c], labels[c], real[c]), strict=True
        ):
            assert torch.equal(got[c], expected)


def test_float32_at_a_small_width_keeps_the_bound_of_the_design():
    student = build_student("convnet", channels=3, size=16, classes=10, width=24, depth=2)
    inputs = drawn(student, batch=8)
    loss, grad = gradient_match(
        student, *[x.float() if x.is_floating_point() else x for x in inputs]
    )
    true_loss, truth = gradient_match(student, *inputs)
    assert float((grad - truth).norm() / truth.norm()) < 1e-4
    torch.testing.assert_close(loss, true_loss, rtol=1e-5, atol=1e-5)


def test_equal_gradients_have_no_distance():
    student = build_student("convnet", channels=1, size=8, classes=3, width=4, depth=1)
    theta, images, labels, _ = drawn(student)
    same = class_gradients(student, theta, images.flatten(0, 1), labels.flatten(), [4, 4, 4])
    for distance in ("cosine_rows", "cosine", "mse"):
        loss, grad = gradient_match(student, theta, images, labels, same, distance=distance)
        assert float(loss.abs().max()) < 1e-3  # eps is added to products of small norms
        assert float(grad.abs().max()) < 1e-3


def test_class_gradients_are_those_of_each_class():
    student = build_student("convnet", channels=1, size=8, classes=3, width=4, depth=1)
    theta, images, labels, _ = drawn(student, groups=1, batch=9)
    found = class_gradients(student, theta, images[0], labels[0], [4, 2, 3])
    for row, x, y in zip(
        found, images[0].split([4, 2, 3]), labels[0].split([4, 2, 3]), strict=True
    ):
        assert torch.equal(row, loss_and_grad(student, theta, x, y)[1])
    for sizes in ([4, 4], [4, 0, 5], []):
        with pytest.raises(
            ShapeError, match="class_gradients: expected sizes above 0 that sum to 9 images, got"
        ):
            class_gradients(student, theta, images[0], labels[0], sizes)


def test_refusals():
    student = build_student("convnet", channels=1, size=8, classes=3, width=4, depth=1)
    theta, images, labels, real = drawn(student)
    with pytest.raises(ShapeError, match="give every member of the group its own real gradient"):
        gradient_match(student, theta, images, labels, real[0])
    with pytest.raises(ShapeError, match="give every member of the group its own real gradient"):
        gradient_match(student, torch.stack([theta, theta]), images, labels, real)
    with pytest.raises(ShapeError, match="expected mask"):
        gradient_match(student, theta, images, labels, real, mask=real[:2])
    with pytest.raises(ShapeError, match="one label per image"):
        gradient_match(student, theta, images, labels[:, 1:], real)
    with pytest.raises(ShapeError, match=r"convert with .to\(syn\)"):
        gradient_match(student, theta, images, labels, real.float())
    with pytest.raises(
        ConfigError, match=r"expected a known distance, got 'cosine_row'.*cosine_rows"
    ):
        gradient_match(student, theta, images, labels, real, distance="cosine_row")
