"""The class-relevant feature distance against plain autograd and plain loops in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdistill.engine import build_student
from kdistill.errors import ConfigError, DataError
from kdistill.objectives.class_relevance import class_relevant_distance

CLASSES = 3


def images_of(count, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    return torch.randn(count, 1, 8, 8, generator=generator) + shift * labels[
        :, None, None, None
    ], labels


def student_of(name, **options):
    options = {"width": 4} | options
    student = build_student(name, channels=1, size=8, classes=CLASSES, **options)
    return student, torch.stack(
        [student.init(torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    )


def plain_convnet(theta, x):
    """Return maps, features and logits of a two-block ConvNet of width 4, written out."""
    w1, b1, g1, s1, w2, b2, g2, s2, w3, b3 = theta.split(
        [36, 4, 4, 4, 144, 4, 4, 4, CLASSES * 16, CLASSES]
    )
    m1 = F.group_norm(F.conv2d(x, w1.view(4, 1, 3, 3), b1, padding=1), 4, g1, s1).relu()
    m2 = F.group_norm(
        F.conv2d(F.avg_pool2d(m1, 2), w2.view(4, 4, 3, 3), b2, padding=1), 4, g2, s2
    ).relu()
    features = F.avg_pool2d(m2, 2).flatten(1)
    return m1, m2, features, features @ w3.view(CLASSES, 16).T + b3


def plain_distance(thetas, real, real_labels, syn, syn_labels, layers, weighting):
    total = 0.0
    for theta in thetas:
        for c in range(CLASSES):
            grads = []
            for x in real[real_labels == c]:
                m1, _, _, logits = plain_convnet(theta, x[None].requires_grad_())
                grads.append(torch.autograd.grad(logits[0, c], m1)[0][0].mean((1, 2)))
            inner, row = (
                torch.stack(grads).mean(0)[:, None, None],
                theta[-CLASSES * 16 - CLASSES : -CLASSES].view(CLASSES, 16)[c],
            )
            (r1, _, rf, _), (s1, _, sf, _) = (
                plain_convnet(theta, x[y == c]) for x, y in ((real, real_labels), (syn, syn_labels))
            )
            if weighting == "none":
                inner, row = 1.0, 1.0
            total = total + (row * (rf.mean(0) - sf.mean(0))).square().mean()
            if layers == "all":
                total = total + (inner * (r1.mean(0) - s1.mean(0))).square().mean()
    return total / len(thetas)


@pytest.mark.parametrize("layers", ["all", "last"])
@pytest.mark.parametrize("weighting", ["cam", "none"])
def test_equals_plain_loops_in_float64(layers, weighting):
    student, thetas = student_of("convnet", depth=2)
    thetas = thetas.double()
    (real, real_labels), (syn, labels) = images_of(13, 0), images_of(7, 1, 0.5)
    real, syn = real.double(), syn.double().requires_grad_()
    wanted = plain_distance(thetas, real, real_labels, syn, labels, layers, weighting)
    measure = class_relevant_distance(
        student, thetas, real, real_labels, layers=layers, weighting=weighting, batch_size=2
    )
    found = measure(syn, labels)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    (slope,), (wanted_slope,) = torch.autograd.grad(found, syn), torch.autograd.grad(wanted, syn)
    torch.testing.assert_close(slope, wanted_slope, rtol=1e-8, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(
            measure(syn.detach(), labels), wanted.detach(), rtol=1e-10, atol=0
        )
        single = class_relevant_distance(
            student, thetas.float(), real.float(), real_labels, layers=layers, weighting=weighting
        )
        torch.testing.assert_close(
            single(syn.float(), labels).double(), wanted.detach(), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("weighting", ["cam", "none"])
def test_a_head_of_averages_compares_maps_with_the_weight_of_each_channel(weighting):
    def network():
        return nn.Sequential(
            nn.Conv2d(1, 5, 3, 2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, CLASSES),
        )

    student = build_student(network, channels=1, size=8, classes=CLASSES)
    theta = student.init(torch.Generator().manual_seed(3)).double()
    (real, real_labels), (syn, labels) = images_of(9, 0), images_of(6, 1)
    real, syn = real.double(), syn.double()
    weight, bias, rows = theta[:45].view(5, 1, 3, 3), theta[45:50], theta[50:65].view(CLASSES, 5)
    wanted = 0.0
    for c in range(CLASSES):
        r, s = (
            F.conv2d(x[y == c], weight, bias, 2).relu().mean(0)
            for x, y in ((real, real_labels), (syn, labels))
        )
        wanted += (
            ((rows[c][:, None, None] if weighting == "cam" else 1.0) * (r - s)).square().mean()
        )
    for layers in ("last", "all"):  # one block: the same
        measure = class_relevant_distance(
            student, theta[None], real, real_labels, layers=layers, weighting=weighting
        )
        torch.testing.assert_close(measure(syn, labels), wanted, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["mlp", "lenet", "alexnet", "vgg11", "resnet18", "vit"])
def test_every_student_has_one(name):
    student, thetas = student_of(
        name, **({"width": 64, "depth": 1} if name == "vit" else {"width": 8})
    )
    (real, real_labels), (syn, labels) = images_of(6, 0), images_of(3, 1)
    values = [
        class_relevant_distance(student, thetas[:1], real, real_labels, layers=layers)(syn, labels)
        for layers in ("all", "last")
    ]
    assert 0 < values[1] <= values[0]


def test_a_set_is_at_no_distance_from_itself_and_larger_samples_come_nearer():
    student, thetas = student_of("convnet")
    real, labels = images_of(96, 0, 1.0)
    measure = class_relevant_distance(student, thetas, real, labels)
    assert float(measure(real, labels)) < 1e-10
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    mean = []
    for ipc in (1, 4, 16):
        draws = [
            (CLASSES * order[i : i + ipc, None] + torch.arange(CLASSES)).flatten()
            for i in range(0, 16, ipc)
        ]
        mean.append(sum(float(measure(real[rows], labels[rows])) for rows in draws) / len(draws))
    assert mean[0] > mean[1] > mean[2]


def test_one_class_alone_moves_only_its_own_part():
    student, thetas = student_of("convnet")
    real, labels = images_of(12, 0)
    measure = class_relevant_distance(student, thetas, real, labels)
    only = labels == 1
    assert float(measure(real[only], labels[only])) < 1e-10
    assert float(measure(real[only], labels[only] + 1)) > 1e-6


def test_bad_input():
    student, thetas = student_of("convnet")
    real, labels = images_of(6, 0)
    with pytest.raises(ConfigError, match="layers: expected a known choice, got 'first'"):
        class_relevant_distance(student, thetas, real, labels, layers="first")
    with pytest.raises(DataError, match="got none of class 2; add some"):
        class_relevant_distance(student, thetas, real, labels.clamp(max=1))
    headless = build_student(
        lambda: nn.Sequential(nn.Conv2d(1, CLASSES, 8), nn.ReLU(), nn.Flatten()),
        channels=1,
        size=8,
        classes=CLASSES,
    )
    with pytest.raises(ConfigError, match="ends in a linear classifier"):
        class_relevant_distance(headless, headless.init(torch.Generator())[None], real, labels)
