"""The exact trajectory gradient against the oracle, plain autograd through every step."""

import math

import pytest
import torch

from kdistill.augment import Augment
from kdistill.engine import build_student, trajectory_match
from kdistill.errors import ConfigError, DataError, ShapeError
from kdistill.keys import generator, permutation
from kdistill.testing.backends import runnable_backends, running_on

DSA = Augment("color_crop_cutout_flip_scale_rotate", siamese=False, key=5, align_corners=True)

# torch loads its decompositions at the first forward derivative, with this warning of its own
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def problem(student, *, steps, batch=None, soft=False, images=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    start, target = student.init(generator(1)).to(dtype), student.init(generator(2)).to(dtype)
    x = torch.randn(
        images, student.channels, student.size, student.size, generator=g, dtype=torch.float64
    ).to(dtype)
    z = 3 * torch.randn(images, student.classes, generator=g, dtype=torch.float64).to(dtype)
    batches = []
    while len(batches) < steps:
        batches += list(permutation(len(batches), images).split(batch or images))[
            : steps - len(batches)
        ]
    return {
        "start": start,
        "target": target,
        "images": x,
        "labels": z if soft else z.argmax(1),
        "lr": 0.05,
        "batches": batches,
    }


def convnet(**options):
    return build_student(
        "convnet", **{"channels": 3, "size": 8, "classes": 3, "width": 18, "depth": 1, **options}
    )


def compare(found, truth, rtol=1e-9):
    for name in ("loss", "grad_images", "grad_labels", "grad_lr", "final", "grad_norms"):
        ours, true = getattr(found, name), getattr(truth, name)
        if true is None:
            assert ours is None, name
        else:
            assert ours.dtype == true.dtype, name
            scale = float(true.abs().max())
            assert float((ours - true).abs().max()) <= rtol * scale, name


CASES = {
    "one step": {"steps": 1},
    "minibatches": {"steps": 5, "batch": 4},
    "soft labels": {"steps": 3, "soft": True},
    "DSA and soft minibatches": {
        "steps": 4,
        "batch": 4,
        "soft": True,
        "augment": DSA,
        "first_step": 7,
    },
    "a function as augmentation": {
        "steps": 3,
        "augment": lambda x, step: torch.sin(x * (step + 1)),
    },
}


@pytest.mark.parametrize("mask", [None, "prefix", "function"])
@pytest.mark.parametrize("case", CASES)
def test_the_adjoint_is_the_unrolled_gradient(case, mask):
    options = dict(CASES[case])
    student = convnet()
    inputs = problem(
        student, **{k: options.pop(k) for k in ("steps", "batch", "soft") if k in options}
    )
    half = torch.arange(student.num_params) >= student.num_params // 2
    masks = {
        "prefix": half.double(),
        "function": lambda final, target: ((final - target).abs() > 0.05).double(),
        None: None,
    }
    run = {**inputs, **options, "mask": masks[mask]}
    compare(trajectory_match(student, **run), trajectory_match(student, **run, grad_mode="unroll"))


@pytest.mark.parametrize("way", ["direct", "winograd"])
def test_fifty_steps_stay_exact(way, monkeypatch):
    monkeypatch.setenv("KDISTILL_CONVOLUTION", way)
    student = convnet(depth=2)
    inputs = problem(student, steps=50, batch=3, soft=True)
    truth = trajectory_match(student, **inputs, grad_mode="unroll")
    compare(trajectory_match(student, **inputs), truth)
    compare(trajectory_match(student, **inputs, checkpoint_every=7), truth)


@pytest.mark.parametrize("every", [2, 3, 5, 9])
def test_checkpoints_change_no_bit(every):
    student = convnet()
    inputs = {**problem(student, steps=5, batch=4, soft=True), "augment": DSA}
    whole, parts = (
        trajectory_match(student, **inputs),
        trajectory_match(student, **inputs, checkpoint_every=every),
    )
    for name in ("loss", "grad_images", "grad_labels", "grad_lr", "final"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


@pytest.mark.parametrize("backend", runnable_backends())
def test_every_backend(backend):
    student = convnet(width=5)
    inputs = {**problem(student, steps=3, batch=4, soft=True), "augment": DSA}
    truth = trajectory_match(student, **inputs, grad_mode="unroll")
    with running_on(backend):
        compare(trajectory_match(student, **inputs), truth)


@pytest.mark.parametrize(
    "options",
    [{"norm": "batch"}, {"norm": "none"}, {"activation": "silu"}, {"pooling": "max"}],
    ids=str,
)
def test_other_students(options):
    student = convnet(width=4, **options)
    inputs = problem(student, steps=3, batch=4)
    compare(
        trajectory_match(student, **inputs), trajectory_match(student, **inputs, grad_mode="unroll")
    )


def test_float32_is_close_at_a_small_width():
    student = convnet(width=24)
    wide = problem(student, steps=10, soft=True)
    truth = trajectory_match(student, **wide, grad_mode="unroll")
    narrow = {
        k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in wide.items()
    }
    found = trajectory_match(student, **narrow)
    for name in ("grad_images", "grad_labels"):
        ours, true = getattr(found, name).double(), getattr(truth, name)
        assert float((ours - true).norm() / true.norm()) < 1e-4, name
    assert abs(float(found.grad_lr / truth.grad_lr) - 1) < 1e-4


def test_tesla_is_exact_for_one_step_only():
    student = convnet()
    one = problem(student, steps=1)
    compare(trajectory_match(student, **one, grad_mode="tesla"), trajectory_match(student, **one))
    many = problem(student, steps=6)
    tesla, exact = (
        trajectory_match(student, **many, grad_mode=mode) for mode in ("tesla", "adjoint")
    )
    assert torch.equal(tesla.loss, exact.loss)
    assert float((tesla.grad_images - exact.grad_images).norm() / exact.grad_images.norm()) > 1e-3


def test_tesla_is_the_published_formula():
    student = convnet(width=4)
    run = problem(student, steps=3, batch=4)
    found = trajectory_match(student, **run, grad_mode="tesla")
    theta, whole, thetas = run["start"], 0.0, []
    for rows in run["batches"]:
        thetas.append(theta)
        _, g = student.loss_and_grad(theta, run["images"][rows], run["labels"][rows])
        theta, whole = theta - run["lr"] * g, whole + g
    v = run["lr"] * (run["target"] - run["start"]) + run["lr"] ** 2 * whole
    norm = (run["start"] - run["target"]).square().sum()
    images = run["images"].clone().requires_grad_()
    total = torch.zeros_like(images)
    for rows, at in zip(run["batches"], thetas, strict=True):
        at = at.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(
            student.apply(at, images[rows]), run["labels"][rows]
        )
        (g,) = torch.autograd.grad(loss, at, create_graph=True)
        total += torch.autograd.grad(2 * (v @ g) / norm, images)[0]
    torch.testing.assert_close(found.grad_images, total)
    remainder = run["start"] - run["lr"] * whole - run["target"]
    torch.testing.assert_close(found.grad_lr, -2 * (whole @ remainder) / norm)


def test_a_group_is_its_members():
    student = convnet(width=4)
    run = problem(student, steps=3, batch=4, soft=True)
    start = torch.stack([run["start"], student.init(generator(7)).double()])
    target = torch.stack([run["target"], student.init(generator(8)).double()])
    both = trajectory_match(student, **{**run, "start": start, "target": target})
    alone = [
        trajectory_match(student, **{**run, "start": a, "target": b})
        for a, b in zip(start, target, strict=True)
    ]
    assert torch.equal(both.loss, torch.stack([one.loss for one in alone]))
    torch.testing.assert_close(both.grad_images, alone[0].grad_images + alone[1].grad_images)
    torch.testing.assert_close(both.grad_lr, alone[0].grad_lr + alone[1].grad_lr)


def test_a_step_size_below_the_smallest_is_raised_and_has_no_slope():
    student = convnet(width=4)
    run = problem(student, steps=2)
    found = trajectory_match(student, **{**run, "lr": -0.01})
    assert found.grad_lr == 0
    assert torch.equal(found.final, trajectory_match(student, **{**run, "lr": 1e-6}).final)
    unrolled = trajectory_match(student, **{**run, "lr": torch.tensor(-0.01)}, grad_mode="unroll")
    assert unrolled.grad_lr == 0


def test_the_gradient_descends():
    student = convnet(width=8)
    run = problem(student, steps=5)
    found = trajectory_match(student, **run)
    step = 1e-3 / float(found.grad_images.norm())
    after = trajectory_match(student, **{**run, "images": run["images"] - step * found.grad_images})
    predicted = step * float(found.grad_images.square().sum())
    assert math.isclose(float(found.loss - after.loss), predicted, rel_tol=0.02)


def test_inputs_stay_as_they_are():
    student = convnet(width=4)
    run = problem(student, steps=3)
    before = {name: run[name].clone() for name in ("start", "target", "images", "labels")}
    trajectory_match(student, **run)
    assert all(torch.equal(before[name], run[name]) for name in before)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"grad_mode": "adjont"}, ConfigError, "did you mean 'adjoint'"),
        ({"batches": []}, ConfigError, "at least one batch"),
        ({"checkpoint_every": 0}, ConfigError, "checkpoint_every >= 1"),
        ({"batches": [torch.tensor([0.0])]}, ShapeError, "int64 indices"),
        ({"target": torch.zeros(3, dtype=torch.float64)}, ShapeError, "from one expert"),
        ({"labels": torch.zeros(6, 9, dtype=torch.float64)}, ShapeError, "one label per image"),
    ],
)
def test_refusals(change, error, words):
    student = convnet(width=4)
    with pytest.raises(error, match=words):
        trajectory_match(student, **{**problem(student, steps=2), **change})


def test_equal_ends_are_refused():
    student = convnet(width=4)
    run = problem(student, steps=2)
    with pytest.raises(DataError, match="expert snapshots alias"):
        trajectory_match(student, **{**run, "target": run["start"]})
