"""The outer loop: schedule, bounds, running mean, and what survives numbers that blow up."""

import pytest
import torch

from kdistill import runner as loop
from kdistill.errors import ConfigError, NonFiniteError
from kdistill.methods import Problem, Step
from kdistill.priors import PixelPrior


def problem(objective=None, **options):
    def one(iteration, images, state):
        return Step(images.sum(), torch.ones_like(images))

    given = {"learning_rates": {"images": 0.5}, "momentum": 0.0, "iterations": 4, **options}
    return Problem(
        prior=PixelPrior(),
        state={"images": torch.zeros(2)},
        labels=torch.zeros(2),
        objective=objective or one,
        **given,
    )


def images_of(**options):
    return loop.run(problem(**options)).images


def test_a_constant_step_size():
    assert torch.equal(images_of(), torch.full((2,), -2.0))


def test_a_cosine_step_size_ends_at_zero():
    steps = [0.5 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * i / 4))) for i in range(4)]
    torch.testing.assert_close(images_of(schedule="cosine"), torch.full((2,), -float(sum(steps))))


def test_momentum_accumulates():
    assert torch.equal(images_of(momentum=1.0), torch.full((2,), -0.5 * (1 + 2 + 3 + 4)))


def test_a_lower_bound_holds():
    assert torch.equal(images_of(lower={"images": -0.75}), torch.full((2,), -0.75))


def test_the_running_mean_is_the_result():
    mean, x = 0.0, 0.0
    for _ in range(4):
        x -= 0.5
        mean = 0.5 * mean + 0.5 * x
    assert torch.equal(images_of(average={"images": 0.5}), torch.full((2,), mean))


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        problem(schedule="cosin")


def test_an_objective_that_fails_leaves_the_last_good_state(tmp_path):
    def fails(iteration, images, state):
        if iteration == 12:
            raise NonFiniteError("distill: expected something finite, got nothing; lower it")
        return Step(images.sum(), torch.ones_like(images))

    with pytest.raises(NonFiniteError, match=r"lower it; iteration 10 is saved in .*checkpoint"):
        loop.run(problem(fails, iterations=20), folder=tmp_path)
    resumed = loop.run(problem(iterations=20), folder=tmp_path, resume=True)
    assert torch.equal(resumed.images, torch.full((2,), -10.0))


def test_a_loss_that_is_not_finite_names_the_advice():
    def explodes(iteration, images, state):
        return Step(torch.tensor(torch.inf), torch.ones_like(images))

    with pytest.raises(
        NonFiniteError, match=r"lower the learning rate \(now images 0.5\); pass out="
    ):
        loop.run(problem(explodes))


def test_every_tensor_may_have_its_own_momentum():
    def one(iteration, images, state):
        return Step(images.sum(), torch.ones_like(images), {"label_logits": torch.ones(2)})

    two = problem(
        one,
        momentum={"images": 0.0, "label_logits": 1.0},
        learning_rates={"images": 0.5, "label_logits": 0.5},
    )
    two.state["label_logits"] = torch.zeros(2)
    state = loop.run(two).snapshot.state
    assert torch.equal(state["images"], torch.full((2,), -2.0))
    assert torch.equal(state["label_logits"], torch.full((2,), -0.5 * (1 + 2 + 3 + 4)))


def test_a_skipped_step_changes_nothing_and_is_counted(tmp_path):
    def every_other(iteration, images, state):
        return Step(torch.tensor(2.0), torch.ones_like(images), is_skipped=iteration % 2 == 0)

    seen = []
    options = {"iterations": 20, "momentum": 1.0, "average": {"images": 0.5}}
    outcome = loop.run(
        problem(every_other, **options),
        callbacks=[lambda p: seen.append(p.skipped)],
        folder=tmp_path,
    )
    plain = loop.run(problem(**{**options, "iterations": 10}))
    assert torch.equal(outcome.images, plain.images)
    assert torch.equal(outcome.snapshot.velocity["images"], plain.snapshot.velocity["images"])
    assert (outcome.skipped, seen, outcome.snapshot.iteration) == (10, [5, 10], 20)
