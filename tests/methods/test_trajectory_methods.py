"""mtt, tesla and ftd from data to artefact, at a size that takes a second."""

from dataclasses import replace

import pytest
import torch

import kdistill
from kdistill import methods
from kdistill.api.run import resolve
from kdistill.artifacts.checkpoint import load_checkpoint, save_checkpoint
from kdistill.engine.trajectory_gradient import SMALLEST_LR
from kdistill.errors import ConfigError, NonFiniteError
from kdistill.methods.trajectory.base import _batches, _drawn
from kdistill.methods.trajectory.mtt import FAST
from kdistill.optim import by_name, sgd
from kdistill.priors import PixelPrior
from kdistill.transforms import Standardise

SMALL = {
    "iterations": 20,
    "syn_steps": 3,
    "max_start_epoch": 2,
    "width": 4,
    "num_experts": 2,
    "batch_syn": None,
}
NAMES = ("mtt", "tesla", "ftd")


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep experts of these tests out of the user's cache."""
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))


def run(digits, folder, name="mtt", **options):
    given = options.pop("given", {})
    options = {**SMALL, "experts": str(folder / ("gsam" if name == "ftd" else "sgd")), **options}
    return kdistill.distill(digits, method=name, ipc=1, options=options, **given)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls_and_the_learning_rate_is_kept(digits, folder, name):
    losses = []
    options = {
        "iterations": 120,
        "max_start_epoch": 1,
        "num_experts": 1,
        "experts": None,
        "strategy": "none",
        "lr_images": 1000.0,
    }
    small = run(
        digits, folder, name, **options, given={"callbacks": [lambda p: losses.append(p.loss)]}
    )
    assert losses[-1] < 0.8 * losses[0]
    assert small.learned_lr > 0
    assert small.learned_lr != FAST["lr_init"]
    assert small.images.shape == (10, 1, 8, 8)


def test_a_resumed_run_has_the_same_bits(digits, folder, tmp_path):
    whole = run(digits, folder, "ftd", given={"out": tmp_path / "whole"})

    def stop(progress):
        if progress.iteration == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(digits, folder, "ftd", given={"out": tmp_path / "parts", "callbacks": [stop]})
    parts = run(digits, folder, "ftd", given={"out": tmp_path / "parts", "resume": True})
    assert torch.equal(whole.images, parts.images)
    assert whole.learned_lr == parts.learned_lr


def test_the_learning_rates_that_were_found_are_noted_and_make_the_run_again(digits, folder):
    found = run(digits, folder, lr_init=None, lr_images=None)
    noted = found.metrics["distillation"]
    assert noted["learning_rates"]["lr"] == FAST["lr_lr"]
    again = run(
        digits, folder, lr_init=noted["lr_init"], lr_images=noted["learning_rates"]["images"]
    )
    assert torch.equal(found.images, again.images)
    assert found.learned_lr == again.learned_lr


def test_the_first_move_shrinks_with_the_images_per_class(digits, folder):
    """More images per class have noisier gradients: at 4 they move half as far as at 1."""

    def rate(ipc, **options):
        options = {**SMALL, "experts": str(folder / "sgd"), "iterations": 1, **options}
        options |= {"lr_images": None, "init": "noise"}
        small = kdistill.distill(digits, method="mtt", ipc=ipc, options=options, quiet=True)
        return small.metrics["distillation"]["learning_rates"]["images"]

    assert rate(1) == pytest.approx(rate(1, first_move=0.03))
    assert rate(4) == pytest.approx(rate(4, first_move=0.015))
    assert rate(4) == pytest.approx(0.5 * rate(4, first_move=0.03))


def test_a_run_from_before_the_move_shrank_goes_on_as_it_began_or_not_at_all(
    digits, folder, tmp_path
):
    """Its checkpoint names no first move; 3 % whatever the number of images was the rule."""
    options = {**SMALL, "experts": str(folder / "sgd"), "init": "noise", "lr_images": None}

    def run_to(out, first_move, **given):
        chosen = {**options, "first_move": first_move}
        return kdistill.distill(
            digits, method="mtt", ipc=4, options=chosen, out=out, quiet=True, **given
        )

    def stop(progress):
        raise KeyboardInterrupt

    whole = run_to(tmp_path / "whole", 0.03)
    with pytest.raises(KeyboardInterrupt):
        run_to(tmp_path / "old", 0.03, callbacks=[stop])
    path = tmp_path / "old/checkpoint.safetensors"
    tensors, numbers = load_checkpoint(path)
    del numbers["identity"]["run"]["options"]["first_move"]
    save_checkpoint(path, tensors, numbers)
    with pytest.raises(ConfigError, match=r"first_move \(None, was 0\.03\); use the same"):
        run_to(tmp_path / "old", None, resume=True)
    assert torch.equal(run_to(tmp_path / "old", 0.03, resume=True).images, whole.images)


def test_exact_and_unrolled_gradients_lead_to_the_same_images(digits, folder):
    exact, unrolled = (
        run(digits, folder, iterations=3, grad_mode=mode) for mode in ("adjoint", "unroll")
    )
    torch.testing.assert_close(exact.images, unrolled.images, rtol=1e-3, atol=1e-3)


def test_an_iteration_that_would_throw_the_images_is_skipped(digits, folder, caplog):
    first = run(digits, folder, iterations=0).images
    none = run(digits, folder, iterations=3, lr_images=None, skip_move=1e-9)
    assert (
        torch.equal(none.images, first) and "every one of 3 iterations was skipped" in caplog.text
    )
    some, usual = (
        run(digits, folder, iterations=3, lr_images=None, skip_move=share).images
        for share in (1e9, None)
    )
    assert not torch.equal(some, first) and torch.equal(some, usual)
    named = run(
        digits, folder, iterations=3, lr_images=1.0, skip_move=1e-9
    )  # who names a learning rate means it
    assert not torch.equal(named.images, first)
    with pytest.raises(ConfigError, match="skip_move: expected a number above 0"):
        run(digits, folder, skip_move=0.0)


def test_ftd_returns_the_running_mean(digits, folder):
    still = run(digits, folder, "ftd", iterations=3, ema_decay=1.0, lr_init=0.5)
    assert (
        still.learned_lr
        == run(digits, folder, "ftd", iterations=3, ema_decay=0.0, lr_init=0.5).learned_lr
        != 0.5
    )
    assert torch.equal(still.images, run(digits, folder, "ftd", iterations=1, lr_images=0.0).images)


def test_ftd_has_the_values_of_its_own_code():
    ftd, datm = resolve("ftd", "paper", {}), resolve("datm", "paper", {})
    assert (ftd.ema_decay, ftd.surrogate) == (0.9995, 0.4)
    assert datm.surrogate == 0.3
    subsets = resolve("ftd", "imagenet128", {})
    assert (subsets.ema_decay, subsets.surrogate) == (0.999, 1.0)


def test_teacher_labels_change_the_run(digits, folder):
    hard, soft = (
        run(digits, folder, "tesla", iterations=3, teacher_labels=flag) for flag in (False, True)
    )
    assert not torch.equal(hard.images, soft.images)


def test_the_learning_rate_cannot_become_negative():
    problem = methods.Problem(
        prior=PixelPrior(),
        state={"images": torch.zeros(1), "lr": torch.tensor(0.5)},
        labels=torch.zeros(1),
        objective=lambda _, images, state: methods.Step(
            torch.zeros(()), images, {"lr": torch.ones(())}
        ),
        optimizer=by_name({"images": sgd(1.0), "lr": sgd(10.0, minimum=SMALLEST_LR)}),
        iterations=3,
    )
    assert methods.optimize(problem).last.state["lr"] == torch.tensor(SMALLEST_LR)


def test_a_student_that_diverges_is_named(digits, folder, tmp_path):
    with pytest.raises(NonFiniteError, match=r"lower lr_lr or lr_init.*iteration 0 is saved"):
        run(digits, folder, lr_init=1e30, lr_images=1.0, syn_steps=6, given={"out": tmp_path})
    with pytest.raises(NonFiniteError, match=r"lower lr_lr or lr_init"):
        run(digits, folder, lr_init=1e30, lr_images=None, syn_steps=6)


def test_experts_of_another_recipe_are_refused(digits, folder):
    run(digits, folder, iterations=1)
    with pytest.raises(ConfigError, match=r"settings.lr 0.05"):
        run(digits, folder, iterations=1, expert_lr=0.05)
    with pytest.raises(ConfigError, match="student"):
        run(digits, folder, iterations=1, width=5)


@pytest.mark.parametrize("name", NAMES)
def test_presets_resolve(name):
    for preset in methods.get(name).presets:
        resolve(name, preset, {})


@pytest.mark.parametrize(
    "change", [{"syn_steps": 0}, {"num_experts": 0}, {"batch_syn": 0}, {"grad_mode": "exact"}]
)
def test_bad_options_are_refused(digits, folder, change):
    with pytest.raises(ConfigError):
        run(digits, folder, **change)


def test_every_expert_has_its_turn_and_start_epochs_cover_the_window():
    drawn = [_drawn(i, 4, (0, 3), seed=0) for i in range(40)]
    assert all({expert for expert, _ in drawn[k : k + 4]} == {0, 1, 2, 3} for k in range(0, 40, 4))
    assert {epoch for _, epoch in drawn} == {0, 1, 2}


def test_inner_batches_are_shuffled_passes_with_the_short_chunk_first():
    batches = _batches(10, 4, 7, key=3)
    assert [len(b) for b in batches] == [2, 4, 4, 2, 4, 4, 2]
    assert sorted(torch.cat(batches[:3]).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:6]))


def test_experts_can_be_trained_before(digits, capsys):
    options = {key: value for key, value in SMALL.items() if key != "iterations"}
    store = kdistill.train_experts(digits, options=options)
    assert "2 experts to train" in capsys.readouterr().err
    assert len(store) == 2
    kdistill.distill(digits, method="mtt", ipc=1, options={**options, "iterations": 1})
    assert "to train" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match="such as mtt"):
        kdistill.train_experts(digits, method="dm")


def test_another_transform_is_another_expert(digits, folder):
    run(digits, folder, iterations=1)
    other = replace(digits, transform=Standardise(torch.tensor([5.0]), torch.tensor([0.01])))
    with pytest.raises(ConfigError, match=r"data\.training"):
        run(other, folder, iterations=1)
