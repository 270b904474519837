"""Students: sizes, parameter layout, initialisation, and what they refuse."""

import pytest
import torch
from torch import nn

from kdistill.engine import STUDENTS, build_student
from kdistill.errors import ConfigError, ShapeError
from kdistill.keys import generator

NARROW = {"convnet": 4, "mlp": 8, "lenet": 3, "alexnet": 4, "vgg11": 4, "resnet18": 4, "vit": 32}


def narrow(name, size=32, channels=3, classes=5, **options):
    return build_student(
        name, channels=channels, size=size, classes=classes, width=NARROW[name], **options
    )


@pytest.mark.parametrize(
    ("size", "classes", "count"),
    [(32, 10, 320_010), (32, 100, 504_420), (64, 200, 857_160), (128, 10, 615_690)],
)
def test_convnet_has_the_published_number_of_parameters(size, classes, count):
    assert build_student("convnet", channels=3, size=size, classes=classes).num_params == count


@pytest.mark.parametrize(
    ("size", "depth", "features"),
    [(8, 1, 16), (16, 2, 16), (28, 3, 16), (32, 3, 16), (33, 3, 16), (64, 4, 16), (256, 6, 16)],
)
def test_depth_follows_the_size(size, depth, features):
    student = build_student("convnet", channels=1, size=size, classes=10, width=2)
    assert (student.spec.depth, student.feature_dim) == (depth, 2 * features)


def test_theta_begins_with_the_first_block_and_ends_with_the_classifier():
    student = narrow("convnet", depth=2)
    block = ["conv.weight", "conv.bias", "norm.weight", "norm.bias"]
    wanted = [f"blocks.{level}.{part}" for level in range(2) for part in block]
    assert [slot.name for slot in student.slots] == [
        *wanted,
        "classifier.weight",
        "classifier.bias",
    ]


def test_init_is_pytorchs_default_bit_for_bit():
    student = build_student("convnet", channels=3, size=16, classes=4, width=6)
    torch.manual_seed(5)
    blocks = [[nn.Conv2d(c, 6, 3), nn.GroupNorm(6, 6)] for c in (3, 6)]
    modules = nn.Sequential(*blocks[0], *blocks[1], nn.Linear(student.feature_dim, 4))
    wanted = nn.utils.parameters_to_vector(modules.parameters())
    torch.testing.assert_close(
        student.init(torch.Generator().manual_seed(5)), wanted, rtol=0, atol=0
    )


@pytest.mark.parametrize("name", STUDENTS)
def test_init_uses_the_generator_and_nothing_else(name):
    before = torch.get_rng_state()
    student = narrow(name)
    first, second, other = (student.init(generator(key)) for key in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert (
        first.shape == (student.num_params,)
        and first.dtype == torch.float32
        and first.isfinite().all()
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_runs(name, size, channels):
    student = narrow(name, size, channels)
    theta, images = student.init(generator(3)), torch.randn(2, channels, size, size)
    logits = student.apply(theta, images)
    assert (
        logits.shape == (2, 5) and logits.isfinite().all() and not torch.equal(logits[0], logits[1])
    )
    assert student.features(theta, images).shape == (2, student.feature_dim)
    maps = student.features(theta, images, layers="all")
    assert len(maps) >= 1 and all(m.shape[0] == 2 and m.isfinite().all() for m in maps)


@pytest.mark.parametrize("name", ["lenet", "alexnet", "vgg11", "resnet18", "vit"])
def test_the_zoo_takes_larger_images(name):
    student = narrow(name, 64)
    assert student.apply(student.init(generator(3)), torch.randn(2, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("norm", ["instance", "group", "batch", "none"])
@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18"])
def test_the_zoo_follows_norm(name, norm):
    student = narrow(name, norm=norm)
    assert student.apply(student.init(generator(3)), torch.randn(3, 3, 32, 32)).isfinite().all()


def test_the_last_of_all_maps_leads_to_the_features():
    student = narrow("convnet")
    theta, images = (
        student.init(generator(0)).double(),
        torch.randn(2, 3, 32, 32, dtype=torch.float64),
    )
    maps = student.features(theta, images, layers="all")
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 32, 32), (4, 16, 16), (4, 8, 8)]
    pooled = nn.functional.avg_pool2d(maps[-1], 2).flatten(1)
    torch.testing.assert_close(pooled, student.features(theta, images))


def test_a_group_gives_what_its_members_give():
    student = narrow("convnet", 8)
    thetas = torch.stack([student.init(generator(k)) for k in range(3)])
    images = torch.randn(3, 2, 3, 8, 8)
    for call in (student.apply, student.features, student.infer):
        assert torch.equal(
            call(thetas, images),
            torch.stack([call(t, x) for t, x in zip(thetas, images, strict=True)]),
        )
        assert torch.equal(
            call(thetas, images[0]), torch.stack([call(t, images[0]) for t in thetas])
        )
    maps = student.features(thetas, images, layers="all")
    assert torch.equal(maps[0][1], student.features(thetas[1], images[1], layers="all")[0])


def test_batch_statistics_can_be_frozen():
    student = narrow("convnet", 8, norm="batch")
    theta, images = (
        student.init(generator(0)).double(),
        torch.randn(6, 3, 8, 8, dtype=torch.float64),
    )
    frozen = student.with_statistics(student.batch_statistics(theta, images))
    torch.testing.assert_close(frozen.apply(theta, images), student.apply(theta, images))
    torch.testing.assert_close(frozen.apply(theta, images[:2]), student.apply(theta, images)[:2])
    assert not torch.allclose(student.apply(theta, images[:2]), student.apply(theta, images)[:2])
    assert frozen.with_statistics(None).spec.statistics is None


def test_a_users_module_is_copied_and_keeps_its_order():
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(108, 4),
    )
    student = build_student(module, channels=1, size=8, classes=4)
    theta, images = (
        nn.utils.parameters_to_vector(module.parameters()).detach(),
        torch.randn(5, 1, 8, 8),
    )
    logits = student.apply(theta, images)
    assert torch.equal(logits, student.apply(theta, images)), "dropout is off"
    assert int(module[1].num_batches_tracked) == 0 and module.training, (
        "the user's module is left alone"
    )
    module[3].eval()
    torch.testing.assert_close(logits, module(images))
    assert student.feature_dim == 108 and student.features(theta, images).shape == (5, 108)
    assert student.features(theta, images, layers="all")[0].shape == (5, 3, 6, 6)


def test_a_users_module_is_drawn_from_the_generator():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(64, 4), nn.Parameter(torch.randn(1))

        def forward(self, x):
            return self.linear(x.flatten(1)) * self.scale

    module, shape = Scaled(), {"channels": 1, "size": 8, "classes": 4}
    before = torch.get_rng_state()
    of_module, of_factory = build_student(module, **shape), build_student(Scaled, **shape)
    for student in (of_module, of_factory):
        assert torch.equal(student.init(generator(1)), student.init(generator(1)))
        assert not torch.equal(student.init(generator(1)), student.init(generator(2)))
    assert torch.equal(torch.get_rng_state(), before)
    where = [slot.name for slot in of_module.slots].index("scale")
    assert torch.equal(of_module.unflatten(of_module.init(generator(1)))[where], module.scale), (
        "no reset: kept"
    )
    first, second = (of_factory.unflatten(of_factory.init(generator(k)))[where] for k in (1, 2))
    assert not torch.equal(first, second), "the factory draws it"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convnett", {}, "did you mean 'convnet'"),
        ("convnet", {"norm": "instanse"}, "did you mean 'instance'"),
        ("convnet", {"depth": 6}, "expected depth <= 5"),
        ("convnet", {"width": 0}, "expected width >= 1"),
        ("lenet", {"norm": "batch"}, "expected norm among instance, none, got batch"),
        ("vgg11", {"depth": 3}, "expected depth among None, got 3"),
        ("vit", {"width": 100}, "use a multiple of 32"),
        (nn.Flatten(), {"width": 3}, "expected width among None, got 3"),
        (lambda: None, {}, "expected a function that returns an nn.Module, got NoneType"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_student(name, channels=3, size=32, classes=10, **options)


def test_wrong_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"size 8\.\.256"):
        build_student("convnet", channels=3, size=4, classes=10)
    student = narrow("convnet", 8)
    theta, images = student.init(generator(0)), torch.randn(2, 3, 8, 8)
    with pytest.raises(
        ShapeError,
        match=r"expected theta \[\d+\] and images \[B, 3, 8, 8\], got .* and \[2, 1, 8, 8\]",
    ):
        student.apply(theta, images[:, :1])
    with pytest.raises(ShapeError, match="expected images like theta"):
        student.forward(theta, images.double())
    with pytest.raises(ShapeError, match="give both the same G"):
        student.apply(theta.expand(3, -1), images.expand(2, -1, -1, -1, -1))
    with pytest.raises(ConfigError, match="'last' or 'all'"):
        student.features(theta, images, layers="first")
    with pytest.raises(ConfigError, match="only batch norm"):
        student.with_statistics([])


def test_a_module_that_does_not_fit_is_explained():
    images = torch.zeros(2, 3, 8, 8)
    wrong = build_student(
        nn.Sequential(nn.Flatten(), nn.Linear(5, 4)), channels=3, size=8, classes=4
    )
    with pytest.raises(
        ShapeError, match=r"takes images \[2, 3, 8, 8\].*build it for 3 channels of 8 pixels"
    ):
        wrong.apply(wrong.init(generator(0)), images)
    empty = build_student(nn.Flatten(), channels=3, size=8, classes=4)
    with pytest.raises(ConfigError, match="parameters to train"):
        empty.apply(empty.init(generator(0)), images)
