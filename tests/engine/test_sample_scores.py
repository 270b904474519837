"""Scores of samples against plain PyTorch: the definitions, one autograd pass per image."""

import pytest
import torch
import torch.nn.functional as F

from kdistill.engine import STUDENTS, build_student, sample_scores
from kdistill.errors import ConfigError, ShapeError
from kdistill.keys import generator
from tests.engine.test_passes import random_theta
from tests.engine.test_students import narrow

ALL = ("el2n", "grand", "grand_last", "loss", "margin", "entropy", "error")


def plainly(student, thetas, images, labels):
    """Return every score by its definition, one image at a time, through autograd."""
    last = sum(slot.numel for slot in student.slots[-2:])
    rows = []
    for theta in thetas:
        for image, label in zip(images, labels, strict=True):
            leaf = theta.clone().requires_grad_()
            logits = student.apply(leaf, image[None])[0]
            log_p = F.log_softmax(logits, 0)
            target = (
                F.softmax(label, 0)
                if label.is_floating_point()
                else F.one_hot(label, student.classes).to(theta)
            )
            loss = -(target * log_p).sum()
            (grad,) = torch.autograd.grad(loss, leaf)
            p, own = log_p.detach().exp(), int(target.argmax())
            others = torch.cat([p[:own], p[own + 1 :]])
            entropy = -(p * p.log()).sum()
            wrong = (logits.argmax() != own).to(p)
            found = [
                (p - target).norm(),
                grad.norm(),
                grad[-last:].norm(),
                loss.detach(),
                others.max() - p[own],
                entropy,
                wrong,
            ]
            rows.append(torch.stack(found))
    return dict(
        zip(
            ALL, torch.stack(rows).view(len(thetas), len(images), -1).mean(0).unbind(1), strict=True
        )
    )


def drawn(student, count=5, checkpoints=2, soft=False):
    images = torch.randn(count, student.channels, student.size, student.size, dtype=torch.float64)
    labels = (
        torch.randn(count, student.classes, dtype=torch.float64)
        if soft
        else torch.arange(count) % student.classes
    )
    return (
        torch.stack([random_theta(student, seed=10 * k) for k in range(checkpoints)]),
        images,
        labels,
    )


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("name", STUDENTS)
def test_scores_are_their_definitions(name, soft):
    student = narrow(name, size=16)
    thetas, images, labels = drawn(student, soft=soft)
    wanted = plainly(student, thetas, images, labels)
    got = sample_scores(student, thetas, images, labels, ALL, batch_size=3)
    assert tuple(got) == ALL
    for metric in ALL:
        torch.testing.assert_close(got[metric], wanted[metric], rtol=1e-9, atol=1e-12)


def test_one_checkpoint_and_one_metric_by_name():
    student = narrow("convnet", size=8)
    thetas, images, labels = drawn(student)
    alone = sample_scores(student, thetas[0], images, labels, "el2n")
    assert (
        list(alone) == ["el2n"]
        and alone["el2n"].shape == (5,)
        and alone["el2n"].dtype == torch.float64
    )


def test_images_are_read_in_slices_and_progress_is_told():
    student = narrow("convnet", size=8)
    thetas, images, labels = drawn(student)
    read, told = [], []

    class Source:
        def __len__(self):
            return len(images)

        def __getitem__(self, rows):
            read.append((rows.start, rows.stop))
            return images[rows]

    got = sample_scores(
        student,
        thetas,
        Source(),
        labels,
        ("loss",),
        batch_size=2,
        on_batch=lambda *n: told.append(n),
    )
    assert read == [(0, 2), (2, 4), (4, 5)]
    assert told == [(2, 5), (4, 5), (5, 5)]
    torch.testing.assert_close(
        got["loss"], sample_scores(student, thetas, images, labels, ("loss",))["loss"]
    )


def test_no_images_give_no_scores():
    student = narrow("convnet", size=8)
    thetas, images, labels = drawn(student)
    assert sample_scores(student, thetas, images[:0], labels[:0], ("el2n", "grand"))[
        "grand"
    ].shape == (0,)


def test_a_second_run_gives_the_same_bits():
    student = narrow("convnet", size=16)
    thetas, images, labels = drawn(student)
    first, again = (sample_scores(student, thetas.float(), images, labels, ALL) for _ in range(2))
    assert all(torch.equal(first[metric], again[metric]) for metric in ALL)


def test_batch_statistics_have_no_gradients_of_single_images():
    for student in (
        narrow("convnet", size=8, norm="batch"),
        narrow("resnet18", size=8, norm="batch"),
    ):
        thetas, images, labels = drawn(student)
        with pytest.raises(
            ConfigError,
            match=r"images do not depend on each other, got .* with the statistics of the batch",
        ):
            sample_scores(student, thetas, images, labels, ("grand",))
        assert (
            sample_scores(student, thetas, images, labels, ("grand_last", "el2n"))["grand_last"]
            .isfinite()
            .all()
        )


def test_frozen_statistics_have():
    student = narrow("convnet", size=8, norm="batch")
    thetas, images, labels = drawn(student, checkpoints=1)
    student = student.with_statistics(student.batch_statistics(thetas[0], images))
    got = sample_scores(student, thetas, images, labels, ("grand",))["grand"]
    torch.testing.assert_close(got, plainly(student, thetas, images, labels)["grand"])


def test_a_module_whose_logits_are_not_its_classifiers():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = torch.nn.Linear(64, 4, bias=False)

        def forward(self, images):
            return 2.0 * self.classifier(images.flatten(1))

    student = build_student(Scaled(), channels=1, size=8, classes=4)
    theta, images, labels = student.init(generator(0)), torch.randn(3, 1, 8, 8), torch.arange(3)
    with pytest.raises(ConfigError, match="score with other metrics than 'grand_last'"):
        sample_scores(student, theta, images, labels, ("grand_last",))
    assert sample_scores(student, theta, images, labels, ("grand",))["grand"].shape == (3,)


def test_a_last_layer_without_bias():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4, bias=False))
    student = build_student(module, channels=1, size=8, classes=4)
    theta, images, labels = (
        student.init(generator(0)).double(),
        torch.randn(3, 1, 8, 8).double(),
        torch.arange(3),
    )
    got = sample_scores(student, theta, images, labels, ("grand", "grand_last"))
    torch.testing.assert_close(got["grand"], got["grand_last"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"metrics": ("el2m",)},
            ConfigError,
            r"expected a known metric, got 'el2m'; did you mean 'el2n'\?",
        ),
        (
            {"labels": torch.zeros(4, dtype=torch.int64)},
            ShapeError,
            "sample_scores: expected labels int64",
        ),
        ({"thetas": torch.zeros(0, 7)}, ShapeError, r"expected thetas \[K, P\] with K >= 1"),
        ({"thetas": torch.zeros(1, 7)}, ShapeError, r"expected theta \[\d+\]"),
        (
            {"labels": torch.full((5,), 5)},
            ShapeError,
            r"labels in 0\.\.4, got 5\.\.5; pass the right number of classes",
        ),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    student = narrow("convnet", size=8)
    thetas, images, labels = drawn(student)
    arguments = {
        "thetas": thetas,
        "images": images,
        "labels": labels,
        "metrics": ("el2n",),
    } | change
    with pytest.raises(error, match=message):
        sample_scores(student, **arguments)


def test_float32_keeps_the_bounds():
    student = build_student("convnet", channels=3, size=32, classes=10, width=32)
    thetas, images, labels = drawn(student, count=8, checkpoints=1)
    truth = sample_scores(student, thetas, images, labels, ("grand",))["grand"]
    got = sample_scores(student, thetas.float(), images, labels, ("grand",))["grand"].double()
    assert (got - truth).norm() <= 1e-5 * truth.norm()
    assert ((got - truth).abs() / truth).max() <= 1e-4
