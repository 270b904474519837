"""The engine on an emulated accelerator: no host tensor meets it, nothing waits, steps replay."""

import logging

import pytest
import torch

from kdistill import ops
from kdistill.augment import Augment
from kdistill.engine import (
    accuracy,
    build_student,
    class_gradients,
    grad_jvp,
    gradient_match,
    train,
    trajectory_match,
)
from kdistill.keys import generator
from kdistill.objectives.distribution_matching import distribution_match
from kdistill.ops import _capture
from tests.accelerator_suite.device import DEVICE, Device

FAMILIES = "color_crop_cutout_flip_scale_rotate"
STUDENT = build_student("convnet", channels=3, size=16, classes=4, width=8, depth=2)
START, TARGET, V = (STUDENT.init(generator(seed)) for seed in range(3))
IMAGES = torch.randn(8, 3, 16, 16, generator=generator(3))
LABELS = torch.arange(8) % 4
SOFT = torch.randn(8, 4, generator=generator(4))
LR = torch.tensor(0.1)
DSA = Augment(FAMILIES, siamese=False, key=1, align_corners=True)
SIAMESE = Augment(FAMILIES, siamese=True, key=2, align_corners=False)
EVERY = [torch.arange(3), torch.arange(5)]  # a short chunk first
DATA = (START, TARGET, V, IMAGES, LABELS, SOFT, LR)


@pytest.fixture(autouse=True)
def reference():
    """Run the ops that torch does not know on the reference, on both sides."""
    with ops.use_backend("reference"):
        yield


@pytest.fixture
def device(monkeypatch):
    _capture._recordings.clear()
    with Device() as made:
        monkeypatch.setitem(_capture.RECORDERS, DEVICE.type, made.record)
        yield made


def matched(start, target, images, labels, lr, step=0, **options):
    match = trajectory_match(
        STUDENT,
        start,
        target,
        images,
        labels,
        lr,
        batches=EVERY,
        augment=DSA,
        first_step=step,
        **options,
    )
    return [x for x in match if x is not None]


def jvp(theta, target, v, images, labels, soft, lr):
    return list(grad_jvp(STUDENT, theta, images, soft, v))


def group(theta, target, v, images, labels, soft, lr):
    return matched(torch.stack([theta, v]), torch.stack([target, theta]), images, labels, lr)


def trained(theta, target, v, images, labels, soft, lr):
    return (train(STUDENT, images, labels, epochs=2, lr=0.1, key=3, batch_size=5, augment=DSA),)


def distribution(theta, target, v, images, labels, soft, lr):
    return distribution_match(STUDENT, theta, images + 1.0, LABELS, images, LABELS, augment=SIAMESE)


def gradients(theta, target, v, images, labels, soft, lr):
    real = class_gradients(STUDENT, theta, images + 1.0, labels, (4, 4))
    return gradient_match(
        STUDENT, theta, images.unflatten(0, (2, 4)), labels.unflatten(0, (2, 4)), real
    )


CALLS = {  # what runs, how often the host may wait for the device, how often it may send something
    "grad_jvp": (jvp, 0, 0),
    "trajectory_match": (lambda t, to, v, x, y, z, lr: matched(t, to, x, y, lr), 0, 3),
    "with soft labels, a mask and checkpoints": (
        lambda t, to, v, x, y, z, lr: matched(
            t, to, x, z, lr, mask=(v > 0).to(v), checkpoint_every=2
        ),
        0, 3,
    ),
    "tesla": (lambda t, to, v, x, y, z, lr: matched(t, to, x, y, lr, grad_mode="tesla"), 0, 3),
    "a group": (group, 0, 3),
    "train": (trained, 3, 1 + 2 * (1 + 2 * 2)),  # waits: the start, an evaluation per epoch
    "accuracy": (lambda t, to, v, x, y, z, lr: (accuracy(STUDENT, t, x, y),), 0, 0),
    "distribution_match": (distribution, 0, 8),
    "gradient_match": (gradients, 1, 1),  # the table of rows, once
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_device_gets_the_same_bits_and_nobody_waits_for_it(name, device):
    call, waits, uploads = CALLS[name]
    expected = call(*DATA)
    there = [x.to(DEVICE) for x in DATA]
    before = sum(device.waits.values()), device.uploads
    got = call(*there)
    assert (sum(device.waits.values()) - before[0], device.uploads - before[1]) == (waits, uploads)
    for a, b in zip(got, expected, strict=True):
        assert a is b or (a.device == DEVICE and torch.equal(a.to("cpu"), b))


# ---- recorded steps


def plain_and_recorded(step, lr, images, **options):
    expected = matched(START, TARGET, images, LABELS, lr, step, **options)
    there = [x.to(DEVICE) for x in (START, TARGET, images, LABELS, lr)]
    got = matched(*there, step, cuda_graph=True, **options)
    return all(torch.equal(a.to("cpu"), b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("options", [{}, {"grad_mode": "tesla", "checkpoint_every": 2}], ids=str)
def test_a_replay_with_other_inputs_gives_the_bits_of_the_plain_call(device, options):
    for step in range(
        2
        # other draws of the augmentation, other learning rates, other images; Python runs no kernel
        # after the first
    ):
        assert plain_and_recorded(step, LR / (step + 1), IMAGES + step, **options)
    assert device.replays == 2  # one of them to compare


def test_the_clamp_of_the_step_size_is_recorded_too(device):
    for lr in (0.1, -0.1):
        assert plain_and_recorded(0, torch.tensor(lr), IMAGES)
    assert device.replays == 2


def test_another_shape_or_option_is_recorded_anew(device):
    for images in (IMAGES, IMAGES[:6], IMAGES):
        there = [x.to(DEVICE) for x in (START, TARGET, images, LABELS[: len(images)])]
        matched(*there, LR.to(DEVICE), cuda_graph=True)
    assert (device.recorded, device.replays) == (2, 3)


def test_what_waits_for_the_device_is_not_recorded_and_says_so_once(device, caplog):
    def mask(final, target):
        return torch.ones_like(final) * float((final - target).abs().max() > 0)

    with caplog.at_level(logging.WARNING, logger="kdistill"):
        for step in range(2):
            assert plain_and_recorded(step, LR, IMAGES, mask=mask)
    assert [r.getMessage() for r in caplog.records] == [
        "cuda_graph: every step launches its kernels itself: _local_scalar_dense: operation not "
        "permitted when stream is capturing"
    ]
    assert device.replays == 0


def test_a_replay_that_disagrees_is_not_used(device, caplog, monkeypatch):
    class Idle:
        def replay(self):
            """Leave the outputs as they are."""

    monkeypatch.setitem(
        _capture.RECORDERS,
        DEVICE.type,
        lambda function, place: (Idle(), [x if x is None else x + 1 for x in function()]),
    )
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        assert all(plain_and_recorded(step, LR, IMAGES) for step in range(2))
    assert "a replay differs from the plain call" in caplog.text


def test_recordings_go_with_their_owner_and_are_few(device):
    class Owner:
        pass

    owner, before = Owner(), len(_capture._recordings)
    for n in range(1, 7):
        _capture.capture(owner, "double", lambda x: (2 * x,), [torch.ones(n).to(DEVICE)])
    assert len(_capture._recordings[owner]) == _capture.GRAPHS
    del owner
    assert len(_capture._recordings) == before


# ---- the device itself


def test_the_device_refuses_what_a_gpu_refuses(device):
    there = torch.ones(3).to(DEVICE)
    with pytest.raises(AssertionError, match="meet tensors of the device"):
        there + torch.ones(3)
    with (
        pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
        device.recording(),
    ):
        torch.ones(3).to(DEVICE)
    device.waits.clear()
    there.sum().item()
    there[there > 0]
    assert dict(device.waits) == {"_local_scalar_dense": 1, "index": 1}
