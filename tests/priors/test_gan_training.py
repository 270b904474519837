"""Training of a generator, iteration by iteration: every part against its definition."""

import shutil

import pytest
import torch

from kdistill.errors import DataError, NonFiniteError
from kdistill.keys import generator as keyed
from kdistill.priors.gan_training import GanState, PriorSpec, new_gan_training
from kdistill.priors.gan_training.discriminator import (
    Discriminator,
    GroupedSampler,
    _spread,
    group_size,
)
from kdistill.runner import Checkpoints, Runner
from tests.priors.tiny_trainings import TINY

PENALTIES = ("gradient penalty", "path-length penalty")


def tiny_training(data, **options):
    spec = PriorSpec(**{**TINY, **options})
    return new_gan_training(spec, data, "crop_scale")


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def runner_of(training, folder, **options):
    """Return a runner that checks and saves every iteration."""
    return Runner(
        task=training,
        checkpoints=Checkpoints(folder, {"settings": 1}),
        report=lambda timing, numbers: None,
        check_every=1,
        checkpoint_minutes=0.0,
        **options,
    )


def test_the_discriminator_can_be_differentiated_twice():
    opponent = Discriminator(size=8, channels=2, classes=3, channel_base=32, channel_max=3)
    tensors = {name: x.double() for name, x in opponent.new(keyed(0)).items()}
    tensors["classes"] = torch.randn(3, 3, dtype=torch.float64, generator=keyed(1))
    names, labels = list(tensors), torch.tensor([0, 2, 1, 1])
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=keyed(2)).requires_grad_()
    some = [name for name in names if name.startswith(("b4", "classes", "label", "out"))]
    inputs = [tensors[name].requires_grad_() for name in some]

    def judged(images, *values):
        judged = opponent.apply({**tensors, **dict(zip(some, values, strict=True))}, images, labels)
        return torch.cat([judged.logits, judged.class_logits.flatten(), judged.spread])

    assert torch.autograd.gradcheck(judged, (images, *inputs), fast_mode=True)
    assert torch.autograd.gradgradcheck(judged, (images, *inputs), fast_mode=True)


def test_logits_depend_on_the_class_and_scores_do_not():
    opponent = Discriminator(size=8, channels=1, classes=2, channel_base=64, channel_max=8)
    tensors = opponent.new(keyed(0))
    images = torch.randn(4, 1, 8, 8, generator=keyed(1))
    tensors["classes"] = torch.randn(2, 8, generator=keyed(2))
    first = opponent.apply(tensors, images, torch.zeros(4, dtype=torch.int64))
    second = opponent.apply(tensors, images, torch.ones(4, dtype=torch.int64))
    assert not torch.equal(first.logits, second.logits)
    assert torch.equal(first.class_logits, second.class_logits)


def test_the_step_is_adam_without_momentum(digits):
    training = tiny_training(digits, lr=0.01)
    state = training.start().tensors
    theta = torch.nn.Parameter(state["generator"].clone())
    adam = torch.optim.Adam([theta], lr=0.01, betas=(0.0, 0.99), eps=1e-8)
    for iteration in range(5):
        theta.grad = torch.randn(theta.shape, generator=keyed(iteration))
        state = training._stepped(state, "generator", theta.grad, iteration)
        adam.step()
    torch.testing.assert_close(state["generator"], theta.data)
    assert torch.equal(state["discriminator"], training.start().tensors["discriminator"])


def test_an_iteration_is_a_function_of_its_state(digits):
    for options in ({}, {"path_length": 2.0, "augment_p": 0.5, "r1": 1.0}):
        training = tiny_training(digits, **options)
        state, _ = training.iterate(training.start())
        before = {name: x.clone() for name, x in state.tensors.items()}
        first, second = (training.iterate(state)[0] for _ in range(2))
        assert first.iteration == second.iteration == 2
        assert first.tensors.keys() == before.keys()
        for name, x in first.tensors.items():
            assert torch.equal(x, second.tensors[name]), name
            assert torch.equal(state.tensors[name], before[name]), name
            assert torch.isfinite(x).all()


def test_penalties_are_left_out_between_their_turns(digits):
    training = tiny_training(digits, path_length=2.0, path_every=2, r1=1.0)
    state, has_penalties = training.start(), []
    for _ in range(6):
        state, losses = training.iterate(state)
        has_penalties.append([float(losses[name]) > 0.0 for name in PENALTIES])
    assert has_penalties == [[i % 3 == 0, i % 2 == 0] for i in range(6)]


def test_the_average_follows_with_its_half_life(digits):
    training = tiny_training(digits, ema_images=8)
    state = training.start().tensors
    after = training.iterate(GanState(10_000, state))[0].tensors
    decay = 0.5 ** (4 / 8)
    torch.testing.assert_close(
        after["average"], decay * state["average"] + (1 - decay) * after["generator"]
    )


def test_the_probability_of_augmentation_follows_the_sign(digits):
    training = tiny_training(
        digits, augment_images=64, augment_target=0.5
    )  # 4 iterations of 4 images: a quarter up or down
    for sign_sum, expected in ((2.1, 0.75), (1.9, 0.25)):
        state = training.start().tensors | {"augment_p": scalar(0.5), "sign_sum": scalar(sign_sum)}
        after = training._adjusted(state, 4)
        numbers = [float(after[name]) for name in ("augment_p", "sign_sum", "sign")]
        assert numbers == [expected, 0.0, sign_sum / 4]
        assert float(training._adjusted(state, 5)["augment_p"]) == 0.5
    assert float(training._adjusted(state | {"augment_p": scalar(0.1)}, 4)["augment_p"]) == 0.0
    assert float(tiny_training(digits, augment_p=1.0).start().tensors["augment_p"]) == 1.0


def test_augmentation_that_is_off_or_improbable_changes_nothing(digits):
    training = tiny_training(digits)
    images = training.images[:4]
    assert training._augmented(images, 0.0, "real", 0) is images
    torch.testing.assert_close(training._augmented(images, 1e-12, "real", 0), images)
    assert not torch.allclose(training._augmented(images, 1.0, "real", 0), images)


def test_classes_are_learned(colours):
    training = new_gan_training(PriorSpec(**{**TINY, "lr": 0.02, "batch_size": 8}), colours, "none")
    state = training.start()
    for _ in range(80):
        state, _ = training.iterate(state)
    network = training.generator(state.tensors["generator"])
    z = torch.randn(20, 4, generator=keyed(3))
    red, green, blue = (
        network.forward(network.mapping(z, torch.ones(20, dtype=torch.int64))).mean((0, 2, 3))
        - network.forward(network.mapping(z, torch.zeros(20, dtype=torch.int64))).mean((0, 2, 3))
    ).tolist()
    # on the scale from -1 to 1; truth: 2, 1 and -0.2
    assert blue > 0.7 and green > red, (red, green, blue)


def test_a_killed_training_resumes_with_the_same_bits(digits, tmp_path):
    training = tiny_training(digits, augment_p=0.3, path_length=1.0)

    def copied(state):
        if state.iteration == 7:
            # what a kill would leave there
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    (tmp_path / "whole").mkdir()
    whole = runner_of(training, tmp_path / "whole", on_checkpoint=copied).run().state
    again = runner_of(training, tmp_path / "killed").run(resume=True).state
    assert whole.iteration == again.iteration == 12
    assert whole.tensors.keys() == again.tensors.keys()
    for name, x in whole.tensors.items():
        assert torch.equal(x, again.tensors[name]), name


def test_what_is_not_finite_is_named(digits, tmp_path, monkeypatch):
    training = tiny_training(digits)
    train_generator = type(training)._train_generator

    def broken(self, state, iteration, *rest):
        state, losses = train_generator(self, state, iteration, *rest)
        factor = float("nan") if iteration == 4 else 1.0
        return state, losses | {"generator loss": factor * losses["generator loss"]}

    monkeypatch.setattr(type(training), "_train_generator", broken)
    with pytest.raises(
        NonFiniteError,
        match=r"at iteration 5 a finite generator loss, got nan; .*; iteration 4 is saved in ",
    ):
        runner_of(training, tmp_path).run()


def test_groups_of_a_batch_are_of_one_class_and_classes_come_as_often_as_they_are(colours):
    few = colours.train.take(torch.cat([torch.arange(30), torch.arange(90, 96)]))
    sampler = GroupedSampler(few.labels, 2)
    rows = torch.stack([sampler.draw(8, key) for key in range(400)])
    labels = few.labels[rows].view(400, 4, 2)  # images 2 and more apart are a group of four
    assert (labels == labels[:, :1]).all()
    share = len(few.labels[few.labels == 1]) / len(few)
    assert abs(float((labels == 1).double().mean()) - share) < 0.05
    assert set(rows.flatten().tolist()) == set(range(len(few)))


def test_the_spread_is_that_of_a_group():
    x = torch.randn(8, 3, 4, 4, generator=keyed(0))
    wanted = torch.stack(
        [x[group::2].std(0, correction=0).mean() for group in (0, 1)]
    )  # images 2 apart are a group of four
    torch.testing.assert_close(_spread(x), wanted)
    assert float(_spread(x[:1].expand(8, -1, -1, -1)).max()) < 1e-3
    assert [group_size(count) for count in (2, 3, 8, 10)] == [2, 1, 4, 2]


def test_a_checkpoint_of_other_tensors_is_refused(digits):
    training = tiny_training(digits)
    tensors = training.start().tensors
    renamed = {"generator.theta": tensors["generator"]}  # as version 0.1.0 named them
    shorter = tensors | {"average": tensors["average"][:-1]}
    double = tensors | {"average": tensors["average"].double()}
    for others in (renamed, shorter, double):
        with pytest.raises(DataError, match="with the tensors of this training, got others"):
            training.restored(others, {"iteration": 1})
    assert training.restored(tensors, {"iteration": 1}).iteration == 1
