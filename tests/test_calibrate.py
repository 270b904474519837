"""Learning rates of the trajectory methods that are found from the first gradients."""

import math

import pytest
import torch

import kdistill
from kdistill.errors import ConfigError, NonFiniteError
from kdistill.methods.base import Step
from kdistill.methods.calibration import DRAWS, MOVE, calibrated, calibrated_images

IMAGES = torch.full((4, 1, 2, 2), 3.0)


def parabola(best, *, diverges_above=math.inf, norm=0.5):
    """Return ``measure`` of a loss ``(alpha - best)^2`` and the list of what was tried."""
    tried = []

    def measure(iteration, alpha):
        tried.append((iteration, float(alpha)))
        if alpha > diverges_above:
            raise NonFiniteError("ran away")
        grad = torch.zeros_like(IMAGES)
        grad[0, 0, 0, 0] = norm
        return Step((alpha - best) ** 2, grad, {"lr": 2.0 * (alpha - best)})

    return measure, tried


@pytest.mark.parametrize("best", [4e-4, 0.005, 0.0101, 0.03, 0.2])
def test_the_student_gets_the_step_size_of_the_least_loss(best):
    measure, tried = parabola(best)
    lr, lr_images = calibrated(measure, IMAGES, None, None)
    assert lr == pytest.approx(best, rel=0.1)
    assert lr_images == pytest.approx(MOVE * 12.0 / 0.5, rel=1e-5)
    assert {iteration for iteration, _ in tried} == set(range(DRAWS))


@pytest.mark.parametrize("diverges_above", [0.002, 0.011])
def test_a_step_size_at_which_the_student_diverges_is_not_taken(diverges_above):
    lr, lr_images = calibrated(parabola(0.5, diverges_above=diverges_above)[0], IMAGES, None, None)
    assert lr <= diverges_above
    assert math.isfinite(lr_images)


def test_the_search_ends_where_no_step_size_is_best():
    assert 1.0 <= calibrated(parabola(1e9)[0], IMAGES, None, 1.0)[0] < 2.0
    assert 5e-5 < calibrated(parabola(-1.0)[0], IMAGES, None, 1.0)[0] <= 1e-4


def test_what_is_given_is_kept_and_costs_nothing():
    measure, tried = parabola(0.005)
    assert calibrated(measure, IMAGES, 0.7, 9.0) == (0.7, 9.0)
    assert not tried
    assert calibrated(measure, IMAGES, 0.7, None) == (0.7, pytest.approx(MOVE * 12.0 / 0.5))
    assert calibrated(measure, IMAGES, None, 9.0) == (pytest.approx(0.005, rel=0.1), 9.0)


def test_the_first_step_of_the_images_has_the_same_length_on_all_data():
    tried = []

    def measure(iteration, norm=0.25):
        tried.append(iteration)
        grad = torch.zeros_like(IMAGES)
        grad[0, 0, 0, 0] = norm
        return Step(torch.zeros(()), grad)

    assert calibrated_images(measure, IMAGES) == pytest.approx(MOVE * 12.0 / 0.25)
    assert tried == list(range(DRAWS))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_without_a_gradient_a_step_size_has_to_be_named(value):
    with pytest.raises(
        ConfigError,
        match=r"lr_images: expected gradients (and images to find it|to find the learning rate) from",
    ):
        calibrated_images(lambda _: Step(torch.zeros(()), torch.full_like(IMAGES, value)), IMAGES)


def test_images_of_nothing_have_no_step_size():
    with pytest.raises(ConfigError, match="and 0 in 3 iterations; name a learning rate"):
        calibrated_images(
            lambda _: Step(torch.zeros(()), torch.ones_like(IMAGES)), torch.zeros_like(IMAGES)
        )


@pytest.mark.parametrize("name", ["dm", "dsa"])
def test_the_same_run_comes_from_the_step_size_that_was_found(name):
    data = kdistill.load_data("digits", quiet=True)
    options = {"iterations": 2, "width": 8, "batch_real": 8} | (
        {} if name == "dm" else {"outer_steps": 2, "inner_epochs": 1}
    )
    found = kdistill.distill(data, method=name, ipc=1, options=options | {"lr_images": None})
    rate = found.metrics["distillation"]["learning_rates"]["images"]
    again = kdistill.distill(data, method=name, ipc=1, options=options | {"lr_images": rate})
    assert torch.equal(found.images, again.images)
    other = kdistill.distill(data, method=name, ipc=1, options=options | {"lr_images": 2.0 * rate})
    assert not torch.equal(found.images, other.images)
