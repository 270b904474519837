"""dc and dsa from data to artefact, at a size that takes a second."""

import pytest
import torch

import kdistill
from kdistill import methods
from kdistill.api.run import resolve
from kdistill.augment import Augment
from kdistill.engine import build_student, class_gradients, gradient_match
from kdistill.errors import ConfigError, DataError, NonFiniteError, ShapeError
from kdistill.keys import generator
from kdistill.methods.matching.base import GradientConfig
from kdistill.objectives import class_gradient_match as gradient_matching
from kdistill.objectives.class_gradient_match import class_gradient_match

SMALL = {"iterations": 3, "outer_steps": 4, "inner_epochs": 2, "batch_real": 8, "width": 4}
NAMES = ("dc", "dsa")


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


def run(digits, name="dsa", **options):
    given = options.pop("given", {})
    return kdistill.distill(digits, method=name, ipc=2, options={**SMALL, **options}, **given)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls(digits, name):
    losses = []
    options = {
        "iterations": 30,
        "outer_steps": 1,
        "strategy": "none",
        "lr_images": 10.0,
        "batch_real": 32,
    }
    small = run(digits, name, **options, given={"callbacks": [lambda p: losses.append(p.loss)]})
    assert losses[-1] < 0.95 * losses[0]
    assert small.images.shape == (20, 1, 8, 8)


def test_a_resumed_run_has_the_same_bits(digits, tmp_path):
    whole = run(digits, given={"out": tmp_path / "whole"})

    def stop(progress):
        if progress.iteration == 10:  # within the life of a network
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(digits, given={"out": tmp_path / "parts", "callbacks": [stop]})
    parts = run(digits, given={"out": tmp_path / "parts", "resume": True})
    assert torch.equal(whole.images, parts.images)


def test_options_change_the_run(digits):
    usual = run(digits, iterations=1, outer_steps=2).images
    for change in (
        {"distance": "mse"},
        {"strategy": "none"},
        {"inner_epochs": 3},
        {"lr_net": 0.02},
        {"batch_train": 7},
    ):
        assert not torch.equal(usual, run(digits, iterations=1, outer_steps=2, **change).images)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning"
)  # forward mode of another norm scripts its formulas
def test_batch_norm_is_frozen_on_real_images(digits):
    assert bool(torch.isfinite(run(digits, iterations=1, norm="batch").images).all())
    with pytest.raises(
        ConfigError, match="gradients of single classes need frozen statistics, use norm 'instance'"
    ):
        run(digits, norm="batch", student="resnet18")


@pytest.mark.parametrize(
    ("ipc", "loops"),
    [(1, (1, 1)), (10, (10, 50)), (50, (50, 10)), (2, (2, 250)), (7, (7, 72)), (100, (50, 10))],
    ids=str,
)
def test_loops_follow_the_images_per_class(ipc, loops):
    assert GradientConfig().loops(ipc) == loops
    assert GradientConfig(outer_steps=3, inner_epochs=4).loops(ipc) == (3, 4)


def test_a_network_that_diverges_is_named(digits, tmp_path):
    with pytest.raises(
        NonFiniteError,
        match=r"network of matching step \d+ to train .* lower lr_net \(now 1e\+38\) .* "
        r"is saved in",
    ):
        run(digits, lr_net=1e38, given={"out": tmp_path})


@pytest.mark.parametrize("name", NAMES)
def test_presets_resolve(name):
    for preset in methods.get(name).presets:
        resolve(name, preset, {})


@pytest.mark.parametrize(
    "change",
    [
        {"outer_steps": 0},
        {"inner_epochs": 0},
        {"batch_real": 0},
        {"lr_net": 0.0},
        {"distance": "cosines"},
        {"lr_images": -1.0},
        {"lr_images": float("nan")},
        {"momentum": 1.0},
        {"iterations": -1},
        {"schedule": "cosin"},
    ],
    ids=str,
)
def test_bad_options_are_refused(digits, change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        run(digits, **change)


def test_a_mask_that_leaves_biases_alone_is_refused(digits):
    with pytest.raises(
        ConfigError,
        match=r"expected weights to be left to compare, got 0.9999, which leaves out \d+ of "
        r"\d+ para",
    ):
        run(digits, mask_ratio=0.9999)
    run(digits, mask_ratio=0.9999, distance="cosine", iterations=1)  # compares biases too


def problem(num_real=(4, 3, 5)):
    g = torch.Generator().manual_seed(0)
    student = build_student("convnet", channels=1, size=8, classes=3, width=4, depth=1)
    real_labels = torch.arange(3).repeat_interleave(torch.tensor(num_real))
    real, images = (
        torch.randn(len(real_labels), 1, 8, 8, generator=g),
        torch.randn(6, 1, 8, 8, generator=g),
    )
    return (
        student,
        student.init(generator(0)),
        real,
        real_labels,
        images,
        torch.tensor([0, 0, 1, 1, 2, 2]),
    )


def test_parts_of_the_classes_do_not_change_the_objective(monkeypatch):
    arguments = problem()
    whole = class_gradient_match(*arguments)
    monkeypatch.setattr(gradient_matching, "GRADIENTS_NBYTES", 1)
    parts = class_gradient_match(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_augmentation_is_siamese_and_pulled_back():
    student, theta, real, real_labels, images, labels = problem()
    augment = Augment("color_crop_scale", siamese=True, key=1, align_corners=False)
    loss, grad = class_gradient_match(
        student, theta, real, real_labels, images, labels, augment=augment, step=3
    )
    leaf = images.clone().requires_grad_()
    seen_real, seen = augment(real, 3, real_labels), augment(leaf, 3, labels)
    real_grad = class_gradients(student, theta, seen_real, real_labels, [4, 3, 5])
    losses, inner = gradient_match(
        student, theta, seen.detach().unflatten(0, (3, 2)), labels.view(3, 2), real_grad
    )
    torch.testing.assert_close(loss, losses.sum())
    torch.testing.assert_close(grad, torch.autograd.grad(seen, leaf, inner.flatten(0, 1))[0])


def test_an_objective_that_does_not_fit_is_refused():
    student, theta, real, real_labels, images, labels = problem()
    with pytest.raises(ShapeError, match="sort images by label"):
        class_gradient_match(student, theta, real, real_labels, images, labels.flip(0))
    with pytest.raises(ShapeError, match="equally many synthetic images"):
        class_gradient_match(
            student, theta, real, real_labels, images, torch.tensor([0, 0, 0, 1, 2, 2])
        )
    with pytest.raises(DataError, match="got class 1 on one side only"):
        class_gradient_match(
            student, theta, real, real_labels.clone().fill_(0), images[:4], labels[:4]
        )
