"""The outer loop: what a step does to the state, and what survives numbers that blow up."""

from dataclasses import replace

import pytest
import torch

from kdistill import methods
from kdistill.errors import ConfigError, DataError, NonFiniteError
from kdistill.methods import Problem, Step, by_autograd, optimize
from kdistill.methods.distillation import Snapshots
from kdistill.optim import averaged, by_name, sgd
from kdistill.priors import PixelPrior
from kdistill.runner import Checkpoints


def problem(objective=None, **options):
    def one(iteration, images, state):
        return Step(images.sum(), torch.ones_like(images))

    settings = {"optimizer": by_name({"images": sgd(0.5)}), "iterations": 4, **options}
    return Problem(
        prior=PixelPrior(),
        state={"images": torch.zeros(2), **settings.pop("state", {})},
        labels=torch.zeros(2),
        objective=objective or one,
        **settings,
    )


def test_a_running_mean_is_the_result():
    mean = x = 0.0
    for _ in range(4):
        x -= 0.5
        mean = 0.5 * mean + 0.5 * x
    outcome = optimize(problem(optimizer=by_name({"images": averaged(sgd(0.5), 0.5)})))
    assert torch.equal(outcome.images, torch.full((2,), mean))
    assert torch.equal(outcome.last.state["images"], torch.full((2,), -2.0))


def test_updates_replace_tensors_as_they_are_and_others_stay():
    def counts(iteration, images, state):
        return Step(images.sum(), torch.ones_like(images), updates={"count": state["count"] + 1})

    start = {"count": torch.zeros(()), "constant": torch.ones(())}
    state = optimize(problem(counts, state=start)).last.state
    assert (float(state["count"]), float(state["constant"])) == (4.0, 1.0)
    assert torch.equal(state["images"], torch.full((2,), -2.0))


def test_an_objective_by_autograd_has_the_gradients_of_the_loss():
    def loss(iteration, images, state):
        return (images * torch.arange(2.0)).sum() * state["scale"] + iteration

    state = {"scale": torch.tensor(3.0)}
    step = by_autograd(loss, learned=("scale",))(5, torch.ones(2), state)
    assert (step.loss, step.loss.requires_grad) == (8.0, False)
    assert torch.equal(step.grad_images, torch.tensor([0.0, 3.0]))
    assert torch.equal(step.grads["scale"], torch.tensor(1.0))
    rules = by_name({"images": sgd(0.5), "scale": sgd(0.0)})
    run = problem(by_autograd(loss, learned=("scale",)), state=state, optimizer=rules)
    assert torch.equal(optimize(run).images, torch.tensor([0.0, -6.0]))


def test_metrics_of_a_step_reach_the_callbacks():
    def measured(iteration, images, state):
        return Step(images.sum(), torch.ones_like(images), metrics={"extra": torch.tensor(7.0)})

    reports = []
    optimize(problem(measured), callbacks=[reports.append])
    assert [(p.iteration, p.loss, p.metrics) for p in reports] == [(4, -3.0, {"extra": 7.0})]


def test_an_objective_that_fails_leaves_the_last_good_state(tmp_path):
    def fails(iteration, images, state):
        if iteration == 12:
            raise NonFiniteError("distill: expected something finite, got nothing; lower it")
        return Step(images.sum(), torch.ones_like(images))

    with pytest.raises(NonFiniteError, match=r"lower it; iteration 10 is saved in .*checkpoint"):
        optimize(problem(fails, iterations=20), Checkpoints(tmp_path))
    resumed = optimize(problem(iterations=20), Checkpoints(tmp_path), resume=True)
    assert torch.equal(resumed.images, torch.full((2,), -10.0))


def test_a_loss_that_is_not_finite_names_the_hint():
    def explodes(iteration, images, state):
        return Step(torch.tensor(torch.inf), torch.ones_like(images))

    with pytest.raises(
        NonFiniteError, match=r"lower the learning rate \(now images 0.5\); pass out="
    ):
        optimize(problem(explodes))


def test_a_skipped_step_changes_nothing_and_is_counted(tmp_path):
    def every_other(iteration, images, state):
        loss = torch.tensor(2.0 if iteration % 2 == 0 else 0.5)
        return Step(loss, torch.ones_like(images), updates={"count": state["count"] + 1})

    steps = averaged(sgd(0.5, momentum=1.0), 0.5)
    reports = []
    outcome = optimize(
        problem(
            every_other,
            iterations=20,
            optimizer=by_name({"images": steps}, skip_above=1.0),
            state={"count": torch.zeros(())},
        ),
        Checkpoints(tmp_path),
        callbacks=[lambda p: reports.append(p.skipped)],
    )
    plain = optimize(problem(optimizer=by_name({"images": steps}), iterations=10))
    assert torch.equal(outcome.images, plain.images)
    memory, expected = outcome.last.opt_state, plain.last.opt_state
    assert torch.equal(memory["velocity.images"], expected["velocity.images"])
    assert float(outcome.last.state["count"]) == 10.0
    assert (outcome.last.skipped, reports, outcome.last.iteration) == (10, [5, 10], 20)


def test_snapshots_are_results_of_shorter_runs_and_change_no_bit():
    images = []
    snapshots = Snapshots(
        3, lambda outcome: images.append((outcome.last.iteration, outcome.images))
    )
    whole = optimize(problem(iterations=7), snapshots=snapshots)
    assert [iteration for iteration, _ in images] == [3, 6]
    for iteration, at in images:
        assert torch.equal(at, optimize(problem(iterations=iteration)).images)
    assert torch.equal(whole.images, optimize(problem(iterations=7)).images)


def test_a_key_that_an_older_checkpoint_lacks_counts_as_its_default(tmp_path):
    old = {"run": {"options": {"width": 8}}}
    optimize(problem(), Checkpoints(tmp_path, old))
    defaults = {"run": {"options": {"width": 128, "new": 1}}}
    for new, fits in ((1, True), (2, False)):
        identity = {"run": {"options": {"width": 8, "new": new}}}
        checkpoints = Checkpoints(tmp_path, identity, defaults)
        if fits:
            assert optimize(problem(), checkpoints, resume=True).finished
        else:
            with pytest.raises(ConfigError, match=r"another run.options.new \(2, was 1\)"):
                optimize(problem(), checkpoints, resume=True)


@pytest.mark.parametrize(
    "other",
    [
        {"state": {"theta": torch.zeros(3)}},
        {"optimizer": by_name({"images": averaged(sgd(0.5), 0.5)})},
    ],
)
def test_a_checkpoint_with_other_tensors_is_refused(tmp_path, other):
    optimize(problem(), Checkpoints(tmp_path))
    with pytest.raises(DataError, match="a checkpoint with the tensors of this run, got others"):
        optimize(problem(**other), Checkpoints(tmp_path), resume=True)


def test_a_method_without_a_required_preset_is_refused():
    presets = {"paper": {}}
    with pytest.raises(
        ConfigError, match="expected the presets fast and paper, got none of 'fast'"
    ):
        replace(methods.get("dm"), presets=presets)
