"""Optimisers: what a step does, what is remembered, and that state and memory are values."""

import pytest
import torch

from kdistill.errors import ConfigError
from kdistill.optim import Schedule, adam, averaged, by_name, sgd


def steps(optimizer, state, grads, count=4):
    """Return state and memory after ``count`` steps with the same gradients."""
    opt_state = optimizer.init(state)
    for iteration in range(count):
        state, opt_state = optimizer.update(grads, opt_state, state, iteration)
    return state, opt_state


def images_after(optimizer):
    return steps(optimizer, {"images": torch.zeros(2)}, {"images": torch.ones(2)})[0]["images"]


def test_a_constant_learning_rate():
    assert torch.equal(images_after(sgd(0.5)), torch.full((2,), -2.0))


def test_a_cosine_learning_rate_ends_at_zero():
    factors = [0.5 * (1 + torch.cos(torch.tensor(torch.pi * i / 4))) for i in range(4)]
    after = images_after(sgd(0.5, schedule=Schedule("cosine", 4)))
    torch.testing.assert_close(after, torch.full((2,), -0.5 * float(sum(factors))))
    assert Schedule("cosine", 4)(4) == 0.0


def test_momentum_accumulates():
    assert torch.equal(images_after(sgd(0.5, momentum=1.0)), torch.full((2,), -5.0))


def test_a_minimum_holds():
    assert torch.equal(images_after(sgd(0.5, minimum=-0.75)), torch.full((2,), -0.75))


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match="expected one of constant, cosine, got 'cosin'"):
        Schedule("cosin", 4)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.99)])
def test_adam_takes_the_steps_of_torch(betas):
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    theirs = torch.nn.Parameter(x.clone())
    reference = torch.optim.Adam([theirs], lr=0.1, betas=betas)
    ours, optimizer = {"x": x}, adam(0.1, betas)
    opt_state = optimizer.init(ours)
    for iteration in range(5):
        grad = torch.sin(torch.arange(5.0, dtype=torch.float64) + iteration)
        theirs.grad = grad.clone()
        reference.step()
        ours, opt_state = optimizer.update({"x": grad}, opt_state, ours, iteration)
    torch.testing.assert_close(ours["x"], theirs.detach(), rtol=1e-12, atol=1e-12)
    assert ("mean.x" in opt_state) == (betas[0] > 0)


def test_a_running_mean_is_the_result():
    optimizer = by_name({"images": averaged(sgd(0.5), decay=0.5)})
    state, opt_state = steps(optimizer, {"images": torch.zeros(2)}, {"images": torch.ones(2)})
    mean = x = 0.0
    for _ in range(4):
        x -= 0.5
        mean = 0.5 * mean + 0.5 * x
    assert torch.equal(optimizer.result(state, opt_state)["images"], torch.full((2,), mean))


def test_every_tensor_may_have_its_own_optimiser():
    rules = {"images": averaged(sgd(0.5), 0.0), "f": sgd(1.0), "f.2": sgd(2.0, momentum=1.0)}
    optimizer = by_name(rules)
    state = {name: torch.zeros(1) for name in ("images", "f.1", "f.2", "theta")}
    grads = {name: torch.ones(1) for name in ("images", "f.1", "f.2")}
    after, opt_state = steps(optimizer, state, grads, count=2)
    assert {name: float(x) for name, x in after.items()} == {
        "images": -1.0,
        "f.1": -2.0,
        "f.2": -6.0,
        "theta": 0.0,
    }
    assert not any("theta" in name for name in opt_state)
    assert optimizer.learning_rates() == {"images": 0.5, "f": 1.0, "f.2": 2.0}
    assert optimizer.sgd("theta") is None
    assert optimizer.sgd("images") == sgd(0.5)


def test_only_what_has_a_gradient_is_stepped_and_nothing_changes_in_place():
    optimizer = by_name({"images": sgd(0.5, momentum=0.5), "lr": sgd(1.0)})
    state = {"images": torch.zeros(2), "lr": torch.ones(())}
    opt_state = optimizer.init(state)
    before = {name: x.clone() for name, x in {**state, **opt_state}.items()}
    after, _ = optimizer.update({"images": torch.ones(2)}, opt_state, state, 0)
    assert after["lr"] is state["lr"]
    assert all(torch.equal(x, before[name]) for name, x in {**state, **opt_state}.items())


def test_a_gradient_without_an_optimiser_is_refused():
    optimizer = by_name({"images": sgd(0.5)})
    state = {"images": torch.zeros(2), "lr": torch.ones(())}
    with pytest.raises(ConfigError, match="a rule for every gradient, got none for 'lr'"):
        optimizer.update({"lr": torch.ones(())}, optimizer.init(state), state, 0)


def test_a_learning_rate_that_was_not_found_is_refused():
    with pytest.raises(ConfigError, match="a learning rate of images, got none; call calibrate"):
        images_after(sgd(None))


def test_a_learning_rate_that_was_found_holds_for_its_tensor_alone():
    optimizer = by_name({"f": averaged(sgd(None, momentum=0.5), 0.9), "lr": sgd(1.0)})
    found = optimizer.with_lr("f.1", 0.1).with_lr("f.2", 0.2)
    assert found.learning_rates() == {"lr": 1.0, "f.1": 0.1, "f.2": 0.2}
    assert found.sgd("f.2") == sgd(0.2, momentum=0.5)
    assert found.sgd("f.3").lr is None


def test_an_iteration_that_throws_the_images_or_has_a_large_loss_is_skipped():
    images, grad = torch.ones(4), torch.ones(4)
    rules = {"images": sgd(0.5, skip_move=0.6)}
    assert not by_name(rules).skips(torch.tensor(9.0), images, grad)
    assert by_name(rules).skips(torch.tensor(9.0), images, 2.0 * grad)
    assert by_name(rules, skip_above=8.0).skips(torch.tensor(9.0), images, grad)
    assert not by_name({"images": sgd(0.5)}).skips(torch.tensor(9.0), images, 1e9 * grad)
