"""CutMix: what is pasted, how labels are mixed, and what decides the draws."""

import pytest
import torch

from kdistill.cutmix import CutMix

SIDE, CLASSES = 8, 5


def batch(count=6, dtype=torch.float32):
    """Return images whose every pixel is the number of the image, and their labels."""
    numbers = torch.arange(count, dtype=dtype)
    return numbers[:, None, None, None].expand(-1, 3, SIDE, SIDE).clone(), torch.arange(count) % 5


def own_share(mixed: torch.Tensor) -> torch.Tensor:
    numbers = torch.arange(len(mixed))[:, None, None, None]
    return (mixed == numbers).double().mean((1, 2, 3))


@pytest.mark.parametrize("step", range(20))
def test_labels_have_the_share_of_pixels(step):
    images, labels = batch(dtype=torch.float64)
    mixed, logits = CutMix(1.0, CLASSES, key=3)(images, labels, step)
    shares = logits.softmax(1)
    torch.testing.assert_close(shares.sum(1), torch.ones(6, dtype=torch.float64))
    for row in range(6):
        partner = {int(value) for value in mixed[row].unique()} - {row}
        assert len(partner) <= 1  # one box of one other image, whole in all channels
        own = float(own_share(mixed)[row])
        expected = torch.zeros(CLASSES, dtype=torch.float64)
        expected[labels[row]] += own
        for other in partner:
            expected[labels[other]] += 1.0 - own
        torch.testing.assert_close(shares[row], expected, atol=1e-12, rtol=0)


def test_the_mean_share_is_that_of_uniform_areas():
    images, labels = batch(dtype=torch.float64)
    mix = CutMix(1.0, CLASSES, key=0)
    own = [own_share(mix(images, labels, step)[0]).min() for step in range(600)]
    # 1 - E[(1 - l)] = 1/2 without a border; a box over the border is cut off, so a larger share
    assert 0.5 < float(torch.stack(own).mean()) < 0.75


def test_soft_labels_are_mixed_as_probabilities():
    images, labels = batch(dtype=torch.float64)
    logits = torch.randn(6, CLASSES, dtype=torch.float64)
    hard, soft = CutMix(1.0, CLASSES, key=3), CutMix(1.0, CLASSES, key=3)
    mixed, shares = hard(images, labels, 1)
    same, mixture = soft(images, logits, 1)
    assert torch.equal(mixed, same)
    own = own_share(mixed)[0]
    partner = int(({int(x) for x in mixed[0].unique()} - {0}).pop())
    expected = own * logits[0].softmax(0) + (1 - own) * logits[partner].softmax(0)
    torch.testing.assert_close(mixture[0].softmax(0), expected)
    assert shares.isfinite().all()


def test_the_key_and_the_step_decide_and_the_batch_is_not_changed():
    images, labels = batch()
    before, mix = images.clone(), CutMix(0.5, CLASSES, key=1)
    again = CutMix(0.5, CLASSES, key=1)
    are_mixed = []
    for step in range(40):
        mixed, targets = mix(images, labels, step)
        other, others = again(images, labels, step)
        assert torch.equal(mixed, other) and torch.equal(targets, others)
        are_mixed.append(targets.is_floating_point())
    assert torch.equal(images, before)
    assert 10 < sum(are_mixed) < 30  # half of the batches
    assert CutMix(0.0, CLASSES, key=1)(images, labels, 0)[1] is labels
