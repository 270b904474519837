import pytest
import torch

from benchmarks import iteration
from benchmarks.peers import distribution_matching as peer
from kdistill.augment import Augment
from kdistill.keys import make_key
from kdistill.testing.backends import runnable_backends

CPU = torch.device("cpu")
SIZES = (3, 4, 2, 16)  # classes, real and synthetic images of each, pixels a side


@pytest.mark.parametrize("backend", [b for b in runnable_backends() if b in ("cpu", "reference")])
def test_our_gradient_is_that_of_the_published_loop(backend):
    real, images = iteration.inputs(CPU, torch.float64, SIZES)
    for step in (1, 2):
        assert iteration.check(backend, real, images, width=8, step=step) == "ok"


def test_a_wrong_gradient_is_found(monkeypatch):
    real, images = iteration.inputs(CPU, torch.float64, SIZES)
    right = iteration.distribution_match

    def wrong(*arguments, **options):
        loss, grad = right(*arguments, **options)
        return loss, grad * 1.0001

    monkeypatch.setattr(iteration, "distribution_match", wrong)
    assert iteration.check("reference", real, images, width=8).startswith(
        "wrong: dm_iteration image gradient"
    )


def test_the_peers_agree_with_each_other():
    real, images = iteration.inputs(CPU, torch.float64, SIZES)
    net = peer.ConvNet(3, 16, 3, 8).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    drawn = [peer.draw_transformation(16, generator) for _ in range(3)]
    for transformations in (drawn, None):
        loop = peer.per_class_gradient(net, real, images, transformations)
        batched = peer.batched_gradient(net, real, images, transformations)
        torch.testing.assert_close(loop, batched)


def test_the_peers_transform_as_our_augmentation_does():
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    augment = Augment(iteration.DSA, siamese=True, key=make_key(3, "test"), align_corners=False)
    seen = set()
    for step in range(30):
        (drawn,) = iteration.same_transformations(augment, step, images, 1)
        seen.add(drawn[0])
        torch.testing.assert_close(peer.transform(images, drawn), augment(images, step))
    assert seen == {"color", "crop", "cutout", "flip", "affine"}


def test_every_family_is_drawn_within_its_range():
    generator = torch.Generator().manual_seed(0)
    drawn = [peer.draw_transformation(32, generator) for _ in range(300)]
    assert {family for family, _ in drawn} == {"color", "crop", "cutout", "flip", "affine"}
    assert all(-4 <= v <= 4 for family, values in drawn if family == "crop" for v in values)
    scales = [
        v
        for family, values in drawn
        if family == "affine" and values[1] == 0
        for v in (values[0], values[3])
    ]
    assert 1 / 1.2 <= min(scales) < 0.9
    assert 1.1 < max(scales) <= 1.2


@pytest.mark.parametrize(
    "make",
    [
        lambda *a: peer.Iteration(peer.per_class_gradient, *a, width=8),
        lambda *a: iteration.OurIteration("reference", *a, width=8),
    ],
)
def test_an_iteration_moves_the_images(make):
    real, images = iteration.inputs(CPU, torch.float32, SIZES)
    run = make(real, images)
    first = run.images.clone()
    run()
    run()
    assert not torch.equal(run.images, first)
    assert torch.isfinite(run.images).all()
