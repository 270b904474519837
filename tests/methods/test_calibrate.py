"""Learning rates that are found from the first gradients."""

import math

import pytest
import torch

import kdistill
from kdistill.errors import ConfigError, NonFiniteError
from kdistill.methods import Problem, Step, calibrate
from kdistill.optim import FirstMove, LeastLoss, by_name, sgd
from kdistill.priors import PixelPrior

IMAGES = torch.full((4, 1, 2, 2), 3.0)
MOVE = FirstMove().share
DRAWS = len(FirstMove().iterations)


def problem(objective, start=IMAGES, **rules):
    return Problem(
        prior=PixelPrior(),
        state={"images": start},
        labels=torch.zeros(4),
        objective=objective,
        optimizer=by_name({"images": sgd(None), **rules}),
        iterations=9,
    )


def parabola(best, *, diverges_above=math.inf, norm=0.5):
    """Return the objective with a loss ``(alpha - best)^2`` and the list of what was tried."""
    tried = []

    def objective(iteration, images, state):
        alpha = state["lr"]
        tried.append((iteration, float(alpha)))
        if alpha > diverges_above:
            raise NonFiniteError("ran away")
        grad = torch.zeros_like(IMAGES)
        grad[0, 0, 0, 0] = norm
        return Step((alpha - best) ** 2, grad, {"lr": 2.0 * (alpha - best)})

    return objective, tried


def found(objective, lr=None, lr_images=None):
    """Return the student's learning rate and that of the images."""
    initial = LeastLoss() if lr is None else None
    rules = {"images": sgd(lr_images), "lr": sgd(1e-5, initial=initial)}
    start = problem(objective, **rules)
    if lr is not None:
        start.state["lr"] = torch.tensor(lr, dtype=torch.float64)
    after = calibrate(start)
    return float(after.state["lr"]), after.optimizer.learning_rates()["images"]


@pytest.mark.parametrize("best", [4e-4, 0.005, 0.0101, 0.03, 0.2])
def test_the_student_gets_the_learning_rate_of_the_least_loss(best):
    objective, tried = parabola(best)
    lr, lr_images = found(objective)
    assert lr == pytest.approx(best, rel=0.1)
    assert lr_images == pytest.approx(MOVE * 12.0 / 0.5, rel=1e-5)
    assert {iteration for iteration, _ in tried} == set(range(DRAWS))


@pytest.mark.parametrize("diverges_above", [0.002, 0.011])
def test_a_learning_rate_at_which_the_student_diverges_is_not_taken(diverges_above):
    lr, lr_images = found(parabola(0.5, diverges_above=diverges_above)[0])
    assert lr <= diverges_above
    assert math.isfinite(lr_images)


def test_the_search_ends_where_no_learning_rate_is_best():
    assert 1.0 <= found(parabola(1e9)[0], lr_images=1.0)[0] < 2.0
    assert 5e-5 < found(parabola(-1.0)[0], lr_images=1.0)[0] <= 1e-4


def test_what_is_given_is_kept_and_costs_nothing():
    objective, tried = parabola(0.005)
    assert found(objective, 0.7, 9.0) == (0.7, 9.0)
    assert not tried
    assert found(objective, 0.7) == (0.7, pytest.approx(MOVE * 12.0 / 0.5))
    assert found(objective, lr_images=9.0) == (pytest.approx(0.005, rel=0.1), 9.0)


def test_the_first_step_of_the_images_has_the_same_length_on_all_data():
    tried = []

    def objective(iteration, images, state):
        tried.append(iteration)
        grad = torch.zeros_like(IMAGES)
        grad[0, 0, 0, 0] = 0.25
        return Step(torch.zeros(()), grad)

    find = FirstMove(share=0.01, iterations=(0, 4, 8))
    rates = calibrate(problem(objective)).optimizer.learning_rates()
    assert rates["images"] == pytest.approx(MOVE * 12.0 / 0.25)
    rates = calibrate(problem(objective, images=sgd(None, find=find))).optimizer.learning_rates()
    assert rates["images"] == pytest.approx(0.01 * 12.0 / 0.25)
    assert tried == [0, 1, 2, 0, 4, 8]


def test_label_logits_move_by_a_share_of_their_own_norm():
    def objective(iteration, images, state):
        return Step(images.sum(), torch.ones_like(images), {"label_logits": torch.full((2,), 0.5)})

    start = problem(objective, label_logits=sgd(None, find=FirstMove("lr_labels", 0.1)))
    start.state["label_logits"] = torch.full((2,), 4.0)
    rates = calibrate(start).optimizer.learning_rates()
    assert rates["label_logits"] == pytest.approx(0.1 * 8.0)
    after = calibrate(calibrate(start)).optimizer
    assert after.learning_rates() == rates


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_without_a_gradient_a_learning_rate_has_to_be_named(value):
    with pytest.raises(
        ConfigError,
        match=r"lr_images: expected gradients "
        r"(and images to find it|to find the learning rate) from",
    ):
        calibrate(problem(lambda *_: Step(torch.zeros(()), torch.full_like(IMAGES, value))))


def test_images_of_nothing_have_no_learning_rate():
    with pytest.raises(ConfigError, match="and 0 in 3 iterations; name a learning rate"):
        calibrate(
            problem(
                lambda *_: Step(torch.zeros(()), torch.ones_like(IMAGES)), torch.zeros_like(IMAGES)
            )
        )


@pytest.mark.parametrize("name", ["dm", "dsa"])
def test_the_same_run_comes_from_the_learning_rate_that_was_found(name):
    data = kdistill.load_data("digits", quiet=True)
    options = {"iterations": 2, "width": 8, "batch_real": 8} | (
        {} if name == "dm" else {"outer_steps": 2, "inner_epochs": 1}
    )
    first = kdistill.distill(data, method=name, ipc=1, options=options | {"lr_images": None})
    rate = first.metrics["distillation"]["learning_rates"]["images"]
    again = kdistill.distill(data, method=name, ipc=1, options=options | {"lr_images": rate})
    assert torch.equal(first.images, again.images)
    other = kdistill.distill(data, method=name, ipc=1, options=options | {"lr_images": 2.0 * rate})
    assert not torch.equal(first.images, other.images)
