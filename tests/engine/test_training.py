"""Training: SGD as torch has it, schedules, determinism, several networks, and accuracy."""

import math

import pytest
import torch
from torch import nn

from kdistill.engine import accuracy, build_student, loss_and_grad, train
from kdistill.engine.parameter_steps import SCHEDULES, rate_factor, sgd_
from kdistill.engine.student_training import confusion
from kdistill.errors import ConfigError, NonFiniteError, ShapeError
from kdistill.keys import generator, make_key, permutation


def tiny(classes=3, **options):
    return build_student("convnet", channels=1, size=8, classes=classes, width=4, **options)


def toy(count=12, classes=3, dtype=torch.float32):
    labels = torch.arange(count) % classes
    images = 0.3 * torch.randn(count, 1, 8, 8, dtype=dtype)
    images[:, 0, 0] += labels[:, None]
    images[:, 0, :, 0] -= labels[:, None] ** 2
    return images, labels


def with_torch(student, images, labels, *, epochs, lr, key, batch_size, schedule):
    """Return what torch.optim.SGD makes of the same run."""
    theta = nn.Parameter(student.init(generator(make_key(key, "init", 0))).to(images))
    optimiser = torch.optim.SGD([theta], lr, 0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        if schedule == "step" and epoch == epochs // 2 + 1:
            optimiser = torch.optim.SGD([theta], 0.1 * lr, 0.9, weight_decay=5e-4)
        if schedule == "cosine":
            optimiser.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for rows in permutation(make_key(key, "order", 0, epoch), len(images)).split(batch_size):
            optimiser.zero_grad()
            nn.functional.cross_entropy(student.apply(theta, images[rows]), labels[rows]).backward()
            optimiser.step()
    return theta.detach()


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_training_is_torchs_sgd(schedule):
    student, (images, labels) = tiny(), toy(dtype=torch.float64)
    run = {"epochs": 6, "lr": 0.05, "key": 7, "batch_size": 5, "schedule": schedule}
    ours = train(student, images, labels, **run)
    torch.testing.assert_close(ours[0], with_torch(student, images, labels, **run))


def test_training_by_adamw_is_torchs():
    student, (images, labels) = tiny(), toy(dtype=torch.float64)
    theta = nn.Parameter(student.init(generator(make_key(7, "init", 0))).to(images))
    optimiser = torch.optim.AdamW([theta], lr=0.01, weight_decay=0.2)
    for epoch in range(5):
        optimiser.param_groups[0]["lr"] = 0.01 * 0.5**epoch  # five epochs: one for every fifth
        for rows in permutation(make_key(7, "order", 0, epoch), len(images)).split(5):
            optimiser.zero_grad()
            nn.functional.cross_entropy(student.apply(theta, images[rows]), labels[rows]).backward()
            optimiser.step()
    run = {"epochs": 5, "lr": 0.01, "key": 7, "batch_size": 5, "weight_decay": 0.2}
    ours = train(student, images, labels, optimizer="adamw", schedule="halving", **run)
    torch.testing.assert_close(ours[0], theta.detach())


def test_schedules():
    def rates(schedule, epochs):
        return [round(rate_factor(schedule, epoch, epochs), 4) for epoch in range(epochs)]

    assert rates("step", 5) == [1.0, 1.0, 1.0, 0.1, 0.1]
    assert rates("halving", 10) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]
    warm = rates("warmup_cosine", 8)
    assert warm[:4] == [0.25, 0.5, 0.75, 1.0] and warm[4:] == [1.0, 0.8536, 0.5, 0.1464]
    for schedule in SCHEDULES:
        assert rates(schedule, 1) == [1.0]


def test_the_running_mean_is_returned_and_handed_to_the_tests():
    student, (images, labels) = tiny(), toy(dtype=torch.float64)
    run = {"epochs": 4, "lr": 0.05, "key": 7, "batch_size": 5}
    after, means = [], []
    train(student, images, labels, on_epoch=lambda _, x: after.append(x.clone()), **run)
    mean = train(
        student,
        images,
        labels,
        ema_decay=0.6,
        on_epoch=lambda _, x: means.append(x.clone()),
        **run,
    )
    expected = after[0]
    for epoch, theta in enumerate(after):
        decay = min(0.6, 1.0 - 1.0 / (1.0 + epoch))
        expected = decay * expected + (1.0 - decay) * theta
        torch.testing.assert_close(means[epoch], expected)
    assert torch.equal(mean, means[-1]) and not torch.equal(mean, after[-1])


def test_mixing_sees_augmented_images_and_the_number_of_the_step():
    student, (images, labels) = tiny(), toy()
    steps = []

    def mix(batch, targets, step):
        steps.append(step)
        assert (batch >= 100.0).all()
        return batch - 100.0, targets

    run = {"epochs": 2, "lr": 0.05, "key": 7, "batch_size": 5}
    train(student, images.abs(), labels, augment=lambda x, _: x + 100.0, mix=mix, **run)
    assert steps == list(range(6))


def test_same_key_same_bits_and_networks_do_not_depend_on_their_number():
    student, (images, labels) = tiny(), toy()
    run = {"epochs": 3, "lr": 0.05, "batch_size": 5, "augment": lambda x, step: x + 0.01 * step}
    three, again, one = (train(student, images, labels, key=1, nets=n, **run) for n in (3, 3, 1))
    assert torch.equal(three, again) and torch.equal(three[:1], one)
    assert not torch.equal(three[0], three[1])
    assert not torch.equal(one, train(student, images, labels, key=2, **run))


def test_training_learns_and_leaves_the_global_generator_alone():
    student, (images, labels) = tiny(), toy()
    before = torch.get_rng_state()
    thetas = train(student, images, labels, epochs=40, lr=0.05, key=0, nets=2)
    assert torch.equal(torch.get_rng_state(), before)
    found = accuracy(student, thetas, images, labels)
    assert found.shape == (2,) and found.dtype == torch.float64 and (found == 1.0).all()


def test_soft_labels_train_too():
    student, (images, labels) = tiny(), toy()
    logits = 5.0 * nn.functional.one_hot(labels, 3).float()
    thetas = train(student, images, logits, epochs=40, lr=0.05, key=0)
    assert accuracy(student, thetas[0], images, labels) == 1.0


def test_every_step_of_every_network_has_its_own_augmentation():
    student, (images, labels), seen = tiny(), toy(), []

    def augment(batch, step):
        seen.append((step, len(batch)))
        return batch

    train(student, images, labels, epochs=2, lr=0.01, key=0, batch_size=5, nets=2, augment=augment)
    assert sorted(seen) == [(step, (5, 5, 2)[step % 3]) for step in range(12)]


def test_callback_sees_every_epoch():
    student, (images, labels), seen = tiny(), toy(), []
    final = train(
        student,
        images,
        labels,
        epochs=3,
        lr=0.01,
        key=0,
        nets=2,
        on_epoch=lambda e, t: seen.append((e, t.clone())),
    )
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[-1][1], final) and not torch.equal(seen[0][1], final)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_step(momentum):
    theta, velocity = torch.randn(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    leaf = nn.Parameter(theta.clone())
    optimiser = torch.optim.SGD([leaf], 0.1, momentum, weight_decay=0.01)
    for _ in range(3):
        leaf.grad = torch.randn(5, dtype=torch.float64)
        optimiser.step()
        sgd_(theta, velocity, leaf.grad, lr=0.1, momentum=momentum, weight_decay=0.01)
    torch.testing.assert_close(theta, leaf.detach())


def test_counts_per_class_give_the_bits_of_the_accuracy():
    student, (images, labels) = tiny(), toy(13)
    thetas = torch.stack([student.init(generator(seed)) for seed in range(3)])
    counts = confusion(student, thetas, images, labels, batch_size=5)
    assert counts.shape == (3, 3, 3) and torch.equal(
        counts.sum(-1), torch.bincount(labels).expand(3, 3)
    )
    assert torch.equal(
        counts.diagonal(dim1=-2, dim2=-1).sum(-1).double() / 13,
        accuracy(student, thetas, images, labels, batch_size=5),
    )
    assert torch.equal(confusion(student, thetas[1], images, labels, batch_size=5), counts[1])
    with pytest.raises(ConfigError, match="confusion: expected at least one image"):
        confusion(student, thetas, images[:0], labels[:0])


def test_accuracy_counts_and_batches():
    student, (images, labels) = tiny(), toy()
    theta = student.init(generator(0))
    wanted = (student.apply(theta, images).argmax(1) == labels).double().mean()
    assert (
        accuracy(student, theta, images, labels)
        == wanted
        == accuracy(student, theta, images, labels, batch_size=5)
    )


def test_a_user_module_trains_like_any_student():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    student, (images, labels) = build_student(module, channels=1, size=8, classes=3), toy()
    thetas = train(student, images, labels, epochs=40, lr=0.05, key=0)
    assert accuracy(student, thetas[0], images, labels) == 1.0


def test_what_training_refuses():
    student, (images, labels) = tiny(), toy()
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        train(student, images, labels, epochs=1, lr=0.1, key=0, schedule="cosin")
    with pytest.raises(ConfigError, match="lr > 0"):
        train(student, images, labels, epochs=1, lr=-0.1, key=0)
    with pytest.raises(ShapeError, match=r"expected labels int64 \[12\]"):
        train(student, images, labels[:5], epochs=1, lr=0.1, key=0)
    with pytest.raises(ShapeError, match="expected at least one image, got none"):
        train(student, images[:0], labels[:0], epochs=1, lr=0.1, key=0)
    with pytest.raises(
        NonFiniteError, match=r"expected a finite loss, got nan in epoch 1; lower lr \(now 0\.1\)"
    ):
        train(student, images * math.nan, labels, epochs=1, lr=0.1, key=0)
    with pytest.raises(ConfigError, match="at least one image"):
        accuracy(student, student.init(generator(0)), images[:0], labels[:0])


def test_loss_and_grad_ignores_grad_mode():
    student, (images, labels) = tiny(), toy()
    theta = student.init(generator(0)).requires_grad_()
    loss, grad = loss_and_grad(student, theta, images, labels)
    assert not loss.requires_grad and not grad.requires_grad
