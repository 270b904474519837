"""PAD for distribution and gradient matching: deepest layers, images chosen by difficulty."""

import pytest
import torch
from torch.nn import functional

import kdistill
from kdistill import methods
from kdistill.api.run import resolve
from kdistill.augment import Augment
from kdistill.data.splits import ClassSampler
from kdistill.engine import build_student
from kdistill.errors import ConfigError, DataError
from kdistill.keys import generator, make_key
from kdistill.objectives import distribution_matching
from kdistill.objectives.class_gradient_match import class_gradient_match
from kdistill.objectives.distribution_matching import distribution_match, layered_distribution_match

STUDENT = build_student("convnet", channels=1, size=16, classes=3, width=4, depth=2)
SMALL = {
    "iterations": 2,
    "batch_real": 8,
    "width": 4,
    "depth": 2,
    "score_nets": 1,
    "score_epochs": 1,
}


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def inputs():
    theta = STUDENT.init(generator(0)).double()
    real, images = torch.randn(11, 1, 16, 16).double(), torch.randn(4, 1, 16, 16).double()
    return (
        theta,
        real,
        torch.tensor([0, 2] * 5 + [0]),
        images,
        torch.tensor([0, 0, 1, 2]),
    )  # class 1 has no real image


def by_hand(theta, real, real_labels, images, labels, levels):
    """Sum over layers and classes of the squared distance of mean maps, by autograd."""
    leaf, total = images.clone().requires_grad_(), 0.0
    ours, theirs = (
        STUDENT.features(theta, leaf, layers="all"),
        STUDENT.features(theta, real, layers="all"),
    )
    for level in levels:
        for k in (0, 2):
            gap = theirs[level][real_labels == k].mean(0) - ours[level][labels == k].mean(0)
            total = total + gap.square().sum()
    return total, torch.autograd.grad(total, leaf)[0]


@pytest.mark.parametrize(("ratio", "levels"), [(0.0, (0, 1)), (0.5, (1,)), (0.9, (1,))])
def test_the_deepest_maps_are_matched(ratio, levels, monkeypatch):
    monkeypatch.setattr(distribution_matching, "CHUNK", 4)
    given = inputs()
    found = layered_distribution_match(STUDENT, *given, mask_ratio=ratio)
    torch.testing.assert_close(found, by_hand(*given, levels))


def test_the_gradient_goes_through_the_augmentation():
    theta, real, real_labels, images, labels = inputs()
    augment = Augment("color_scale", siamese=True, key=3, align_corners=False)
    loss, grad = layered_distribution_match(
        STUDENT, theta, real, real_labels, images, labels, augment=augment, step=5
    )
    leaf = images.clone().requires_grad_()
    total, inner = by_hand(
        theta,
        augment(real, 5, real_labels),
        real_labels,
        augment(images, 5, labels),
        labels,
        (0, 1),
    )
    torch.testing.assert_close(loss, total.detach())
    seen = augment(leaf, 5, labels)
    torch.testing.assert_close(grad, torch.autograd.grad(seen, leaf, inner)[0])


def test_one_deepest_layer_is_the_features_before_pooling():
    student = build_student(
        "convnet", channels=1, size=16, classes=3, width=4, depth=1, pooling="none"
    )
    theta = student.init(generator(0)).double()
    _, real, real_labels, images, labels = inputs()
    one, two = (
        f(student, theta, real, real_labels, images, labels)
        for f in (layered_distribution_match, distribution_match)
    )
    torch.testing.assert_close(one, two)


def run(digits, **options):
    return kdistill.distill(digits, method="dm", ipc=1, options={**SMALL, **options}).images


def test_dm_offers_both_parts_of_pad(digits):
    plain = run(digits)
    others = [
        run(digits, **o) for o in ({"drop_hardest": 0.5}, {"drop_easiest": 0.5}, {"layers": "all"})
    ]
    others.append(run(digits, layers="all", mask_ratio=0.5))
    assert all(not torch.equal(x, y) for i, x in enumerate(others) for y in [plain, *others[:i]])


def test_what_is_dropped_is_never_seen(digits):
    config = resolve("dm", "fast", {**SMALL, "drop_hardest": 0.25, "drop_easiest": 0.25})
    ranking, kept = config.ranking(digits), config.selected(digits)
    wanted = torch.cat([rows[round(0.25 * len(rows)) :][: len(rows) // 2] for rows in ranking.rows])
    assert abs(len(kept.train) - len(wanted)) <= 10
    assert (
        functional.mse_loss(kept.train.images.mean(0), digits.train.images[wanted].mean(0)) < 1e-4
    )
    assert config.selected(digits).train.images.shape[0] < len(digits.train)
    assert resolve("dm", "fast", SMALL).selected(digits) is digits


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drop_hardest": 0.6, "drop_easiest": 0.4}, "got 0.6 and 0.4"),
        ({"drop_easiest": -0.1}, r"drop_easiest: expected a share in \[0, 1\), got -0.1"),
        ({"mask_ratio": 0.5}, "set layers=all too"),
        ({"layers": "first"}, "layers: expected one of 'last', 'all', got 'first'"),
        ({"layers": "all", "mask_ratio": 1.0}, r"share in \[0, 1\)"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        resolve("dm", "fast", options)


def test_a_ratio_that_empties_a_class_is_refused_before_anything_is_trained(digits, monkeypatch):
    monkeypatch.setattr("kdistill.methods.difficulty.difficulty", None)
    with pytest.raises(DataError, match=r"at least 1 images of class 0 .* got 0 of 1"):
        run(digits, drop_hardest=0.9999)


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_gradient_matching_offers_both_parts_of_pad(digits, name):
    options = {
        **SMALL,
        "outer_steps": 1,
        "inner_epochs": 1,
        "strategy": "none",
        "init": "real",
        "lr_images": 1.0,
    }

    def images(**more):
        return kdistill.distill(digits, method=name, ipc=1, options={**options, **more}).images

    plain, others = (
        images(),
        [images(mask_ratio=0.5), images(drop_hardest=0.5), images(drop_easiest=0.5)],
    )
    assert all(not torch.equal(x, y) for i, x in enumerate(others) for y in [plain, *others[:i]])
    with pytest.raises(ConfigError, match=r"share in \[0, 1\)"):
        resolve(name, "fast", {"mask_ratio": 1.0})
    with pytest.raises(DataError, match="leave out less or add images"):
        images(drop_easiest=0.9999)


def test_the_mask_reaches_the_distance_of_gradients(digits):
    options = {**SMALL, "outer_steps": 1, "strategy": "none", "init": "real", "mask_ratio": 0.25}
    config = resolve("dc", "fast", options)
    problem = methods.get("dc").build(config, digits, 1, 0, None)
    student, images = config.network(digits), problem.state["images"]
    step = problem.objective(0, images, problem.state)
    theta = step.updates["theta"]
    rows = ClassSampler(digits.train.labels, 10).draw(config.batch_real, make_key(0, "real", 0))
    real, labels = digits.transform.apply(digits.train.images)[rows], digits.train.labels[rows]
    mask = (torch.arange(student.num_params) >= student.num_params // 4).float()
    loss, grad = class_gradient_match(
        student, theta, real, labels, images, problem.labels, mask=mask
    )
    assert torch.equal(step.grad_images, grad) and torch.equal(step.loss, loss)
