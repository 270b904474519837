"""``evaluate`` on real digits: the rows, their determinism, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdistill.api.evaluate import evaluate, student_of
from kdistill.artifacts import DistilledDataset
from kdistill.data import Split
from kdistill.engine import use_precision
from kdistill.engine.precision import asked_precision
from kdistill.errors import ConfigError, DataError, KDistillError, NonFiniteError
from kdistill.evaluation import Evaluation
from kdistill.evaluation.trainer import Trainer
from kdistill.transforms import Zca
from tests.evaluation._sets import numbers, small_set

CHANCE = 0.1


def test_every_row_says_what_its_spread_is_over(digits, small, tiny):
    result = evaluate(small, digits, protocol=replace(tiny, eight_bit=True))
    seeds = {row.name: row.seeds for row in result.rows}
    assert seeds == {
        "distilled": "1 distillation seed × 2 nets",
        "distilled, 8 bits": "1 distillation seed × 2 nets",
        "random": "2 subsets × 1 net",
        "herding": "1 subset × 2 nets",
        "k-center": "1 subset × 2 nets",
        "full": "2 nets",
    }
    for row in result.rows:
        assert len(row.accuracies) == len(row.validation) == 2
        assert all(0.0 <= accuracy <= 1.0 for accuracy in row.accuracies)
        assert row.images == (1293 if row.name == "full" else 50)
        assert row.nbytes == row.images * (64 * 4 + 8)
        assert row.seconds > 0
    assert result.small.mean > 5 * CHANCE
    assert result.row("full").mean > result.row("random").mean
    assert {"hlr", "ior", "lrs"} <= set(result.scores())
    assert result.peak_bytes > 2**20
    assert result.environment["threads"] == torch.get_num_threads()
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_set_remembers_its_evaluation(digits, small, tiny, tmp_path):
    own = small_set(
        digits,
        config={"source": {"fingerprint": digits.fingerprint}},
        metrics={"distillation": {"seconds": 1.0}},
    )
    copy = own.with_metrics()
    result = evaluate(own, digits, protocol=tiny, baselines=("random",))
    assert Evaluation.from_dict(own.metrics["evaluation"]) == result
    assert own.metrics["distillation"] == {"seconds": 1.0} and "evaluation" not in copy.metrics
    own.save_pretrained(tmp_path / "set")
    card = (tmp_path / "set/README.md").read_text()
    assert "Not measured yet" not in card and f"{100 * result.small.mean:.2f}" in card
    assert DistilledDataset.from_pretrained(tmp_path / "set").metrics == own.metrics
    again = evaluate(own, digits, protocol=tiny, baselines=())
    assert len(own.metrics["evaluation"]["rows"]) == len(again.rows) == 1  # the last one counts


def test_a_measurement_on_other_data_is_not_the_sets_own(digits, small, tiny):
    other = small_set(digits, config={"source": {"fingerprint": "0" * 64}})
    assert "other data" in " ".join(
        evaluate(other, digits, protocol=tiny, baselines=(), nets=1).notes
    )
    assert "evaluation" not in other.metrics


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(digits, small, tiny):
    run = {"protocol": tiny, "baselines": ("random", "full"), "reuse": False}
    first = evaluate(small, digits, **run)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    again = evaluate(small, digits, **run)
    assert numbers(first) == numbers(again)
    assert torch.equal(before, torch.random.get_rng_state())
    assert numbers(first) != numbers(evaluate(small, digits, seed=1, **run))


def test_shuffled_labels_score_near_chance(digits, small, tiny):
    order = torch.randperm(len(small), generator=torch.Generator().manual_seed(0))
    shuffled = small_set(digits, labels=small.labels[order])
    assert evaluate(small, digits, protocol=tiny, baselines=()).small.mean > 5 * CHANCE
    assert evaluate(shuffled, digits, protocol=tiny, baselines=()).small.mean < 2.5 * CHANCE


def test_every_network_of_the_random_row_has_its_own_subset(digits, small, tiny, tasks):
    evaluate(small, digits, protocol=tiny, baselines=("random",))
    (first, labels), (second, _) = next(task for task in tasks if task.name == "random").sets
    assert first.shape == second.shape == small.images.shape
    assert not torch.equal(first, second)
    assert torch.equal(labels, torch.arange(10).repeat_interleave(5))


def test_herding_does_not_depend_on_whether_the_full_row_was_asked_for(digits, small, tiny, tasks):
    for baselines in (("herding",), ("herding", "full")):
        for reuse in (True, False):
            evaluate(small, digits, protocol=tiny, baselines=baselines, nets=1, reuse=reuse)
    chosen = [task.sets[0][0] for task in tasks if task.name == "herding"]
    assert len(chosen) == 3  # the second of the two that may use the cache did
    assert all(torch.equal(chosen[0], other) for other in chosen)


def test_held_out_images_are_in_no_training_set(digits, small, tiny, tasks):
    result = evaluate(
        small, digits, protocol=replace(tiny, validation=0.2), baselines=("full",), nets=1
    )
    _, held_out = digits.holdout(0.2)
    held = {image.numpy().tobytes() for image in digits.transform.apply(held_out.images)}
    full = next(task for task in tasks if task.name == "full")
    trained = {image.numpy().tobytes() for image in full.sets[0][0]}
    assert result.data["validation"] == len(held_out) and len(full.sets[0][0]) + len(
        held_out
    ) == len(digits.train)
    assert not held & trained


def test_the_share_that_the_run_held_out_decides(digits, tiny):
    made = small_set(digits, config={"run": {"method": "dm", "validation": 0.3}})
    result = evaluate(made, digits, protocol=tiny, baselines=(), nets=1)
    assert result.small.name == "dm"
    assert result.data["validation"] == len(digits.holdout(0.3)[1])
    assert not result.notes
    leaky = small_set(digits, config={"run": {"method": "dm", "validation": 0.0}})
    assert "flatters" in " ".join(
        evaluate(leaky, digits, protocol=tiny, baselines=(), nets=1).notes
    )


def test_the_full_data_get_at_least_as_many_steps(digits, small, tiny, tasks):
    evaluate(
        small,
        digits,
        protocol=replace(tiny, batch_size=10, full_epochs=1),
        baselines=("full",),
        nets=1,
    )
    full = next(task for task in tasks if task.name == "full")
    assert full.epochs * -(-len(full.sets[0][0]) // 10) >= 12 * 5


def test_classes_are_counted_one_by_one(digits, small, tiny):
    few = (digits.test.labels != 3) | (torch.arange(len(digits.test)) % 9 == 0)
    uneven = replace(digits, test=digits.test.take(few.nonzero()[:, 0]))
    result = evaluate(small, uneven, protocol=tiny, baselines=())
    row, shown = result.small, torch.bincount(uneven.test.labels)
    counts = torch.tensor(row.confusion)
    assert torch.equal(counts.sum(1), 2 * shown)  # two networks
    assert row.mean == pytest.approx(float(counts.diagonal().sum()) / float(counts.sum()))
    assert sum(row.balanced) / 2 == pytest.approx(sum(row.per_class) / 10)
    assert row.per_class == pytest.approx((counts.diagonal() / counts.sum(1)).tolist())
    assert "balanced %" in str(
        result
    ) and f"test classes have {shown.min()} to {shown.max()} images" in str(result)
    text = result.per_class()
    assert [line.split()[0] for line in text.splitlines()[2:12]] == list("0123456789")
    assert "distilled: true \\ predicted" in text
    plain = evaluate(small, digits, protocol=replace(tiny, eight_bit=True), baselines=(), nets=1)
    assert "balanced %" not in str(plain) and [bool(row.confusion) for row in plain.rows] == [
        True,
        False,
    ]


def test_a_tiny_test_set_is_noted(digits, small, tiny):
    rows = torch.cat([(digits.test.labels == label).nonzero()[:2, 0] for label in range(9)])
    result = evaluate(
        small, replace(digits, test=digits.test.take(rows)), protocol=tiny, baselines=(), nets=1
    )
    text = str(result)
    assert "18 test images: they alone leave an accuracy uncertain by ± " in text
    assert "1 of 10 classes have no test image" in text
    assert "alone leave" not in str(evaluate(small, digits, protocol=tiny, baselines=(), nets=1))


def test_the_cost_of_eight_bits(digits, small, tiny):
    eight = replace(tiny, eight_bit=True)
    rounded = small_set(digits, images=(small.images * 255).round() / 255)
    assert evaluate(rounded, digits, protocol=eight, baselines=()).eight_bit_cost() == 0.0
    # hardly any contrast around one grey level, which instance norm restores: gone once it is
    # rounded
    faint = small_set(digits, images=78 / 255 + 3.5e-3 * (small.images - 0.5))
    result = evaluate(faint, digits, protocol=replace(eight, strategy="none"), baselines=())
    assert result.row("distilled, 8 bits").mean < 2.5 * CHANCE
    assert result.eight_bit_cost() > 2.5 * CHANCE


def test_lr_auto_chooses_on_validation_images_and_survives_an_explosion(
    digits, small, tiny, monkeypatch
):
    chooses = replace(tiny, lr="auto", lr_candidates=(1e-6, 0.1, 1e30))
    result = evaluate(small, digits, protocol=chooses, baselines=("random",), nets=1)
    assert result.small.lr == result.row("random").lr == (0.1,)
    learned = small_set(digits, learned_lr=0.2)
    own = evaluate(
        learned, digits, protocol=replace(chooses, lr_candidates=(1e-6, 1e-5)), baselines=(), nets=1
    )
    assert own.small.lr == (0.2,)
    assert "chosen among several and the one that it learned (0.2)" in str(own)
    with pytest.raises(NonFiniteError, match="smaller lr_candidates"):
        evaluate(small, digits, protocol=replace(chooses, lr_candidates=(1e29, 1e30)), baselines=())


def test_the_precision_of_the_networks_is_the_protocols(digits, small, tiny, monkeypatch):
    trained, network = [], Trainer._network

    def watched(self, task, net, lr):
        theta, highest = network(self, task, net, lr)
        trained.append((asked_precision(), theta))
        return theta, highest

    def own(**changes):
        return evaluate(small, digits, protocol=tiny, baselines=(), nets=1, **changes)

    monkeypatch.setattr(Trainer, "_network", watched)
    assert own().protocol.precision == "fp32"
    rounded = own(precision="bf16")
    assert rounded.protocol.precision == "bf16"
    assert any("tiny (bf16) protocol" in line for line in rounded.summary())
    with use_precision("bf16", "cpu"):  # of whoever calls: the record says what was used
        own()
    (first, plain), (second, other), (third, again) = trained
    assert (first, second, third) == ("fp32", "bf16", "fp32")
    assert torch.equal(plain, again) and not torch.equal(plain, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "tf32"}, "precision: expected fp32 or bf16 on the CPU, got tf32"),
        ({"precision": "fp16"}, "precision: expected one of fp32, tf32, bf16, got 'fp16'"),
        ({"precision": 16}, "precision: expected one of fp32, tf32, bf16, got '16'"),
        (
            {"precision": "bf16", "models": ("convnet", "mlp")},
            "precision: expected fp32 or tf32 for mlp, got bf16, which convnet alone has",
        ),
    ],
)
def test_a_precision_that_networks_or_device_do_not_have_is_refused(
    digits, small, tiny, tasks, options, message
):
    with pytest.raises(ConfigError, match=message):
        evaluate(small, digits, protocol=tiny, baselines=(), **options)
    assert not tasks


def test_best_on_test_is_apart_and_never_below_the_last_epoch(digits, small, tiny):
    plain = evaluate(small, digits, protocol=tiny, baselines=())
    best = evaluate(
        small, digits, protocol=replace(tiny, best_on_test=True, test_every=5), baselines=()
    )
    assert plain.small.best_on_test is None
    assert plain.small.accuracies == best.small.accuracies
    assert all(b >= a for a, b in zip(best.small.accuracies, best.small.best_on_test, strict=True))
    assert "best on test" in str(best)


def test_robustness_adds_rows_without_augmentation(digits, small, tiny):
    result = evaluate(small, digits, protocol=replace(tiny, robustness=True), baselines=("random",))
    names = [row.name for row in result.rows]
    assert names == ["distilled", "distilled, no augmentation", "random", "random, no augmentation"]
    assert result.row("random").accuracies != result.row("random, no augmentation").accuracies
    assert 0.0 < result.scores()["ars"] < 1.0
    plain = evaluate(
        small,
        digits,
        protocol=replace(tiny, robustness=True, strategy="none"),
        baselines=("random",),
    )
    assert [row.name for row in plain.rows] == names


def test_other_networks_and_own_modules(digits, small, tiny):
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    result = evaluate(
        small,
        digits,
        protocol=tiny,
        models=("convnet", "mlp", own),
        baselines=("herding", "full"),
        nets=1,
    )
    assert result.models == ("convnet", "mlp", "Sequential")
    assert len(result.rows) == 9
    assert all(result.row("full", model).mean > 3 * CHANCE for model in result.models)
    assert result.gap_closed("mlp") is None


def test_the_norm_of_a_network_is_the_protocols(digits, tiny):
    sizes = [
        student_of(
            "alexnet", digits, replace(tiny, other_widths={"alexnet": 8}, other_norms=norms)
        ).num_params
        for norms in ({}, {"alexnet": "none"})
    ]
    assert sizes[0] - sizes[1] == 2 * (8 + 12 + 16 + 12 + 12)  # a scale and a shift of every map


def test_progress_says_what_is_trained(digits, small, tiny):
    said = []
    evaluate(small, digits, protocol=tiny, baselines=("random",), progress=said.append)
    assert "random (convnet): network 2 of 2" in said


def grey_to_colour(small):
    return replace(small, images=small.images.expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda s, d: (grey_to_colour(s), d),
            DataError,
            "1×8×8 images in 10 classes .* got 3×8×8 in 10",
        ),
        (lambda s, d: (replace(s, images=s.images[:, :, :, :6]), d), DataError, "got 1×8×6"),
        (
            lambda s, d: (replace(s, classes=(*s.classes, "ten")), d),
            DataError,
            "in 11; load the data",
        ),
        (
            lambda s, d: (replace(s, classes=("zero", *s.classes[1:])), d),
            DataError,
            "label 0 to mean '0'",
        ),
        (
            lambda s, d: (s, replace(d, test=Split(d.test.images[:0], d.test.labels[:0]))),
            DataError,
            "expected test images",
        ),
    ],
    ids=["channels", "size", "classes", "names", "test"],
)
def test_a_set_that_does_not_fit_the_data_is_refused_in_one_sentence(
    digits, small, tiny, change, error, message
):
    with pytest.raises(error, match=message) as caught:
        evaluate(*change(small, digits), protocol=tiny)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "benhc"}, "did you mean 'bench'"),
        ({"baselines": ("randm",)}, "did you mean 'random'"),
        ({"models": ("convnext",)}, "did you mean 'convnet'"),
        ({"models": ()}, "at least one network"),
        ({"models": ("mlp", "mlp")}, "name each once"),
        ({"nets": 0}, "at least 1"),
    ],
)
def test_bad_options_get_one_sentence(digits, small, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        evaluate(small, digits, **options)
    assert "\n" not in str(caught.value)


def test_a_class_with_too_few_real_images_is_named(digits, tiny):
    big = small_set(digits, ipc=125)
    few = replace(digits, train=digits.train.take(torch.arange(600)), fingerprint="few")
    with pytest.raises(KDistillError, match="lower ipc or add images"):
        evaluate(big, few, protocol=tiny, baselines=("random",), nets=1)


def test_what_a_reader_should_know_is_noted(digits, small, tiny):
    eye = torch.eye(64)
    uneven = DistilledDataset(
        images=small.images[:-1],
        labels=small.labels[:-1],
        classes=digits.classes,
        transform=Zca(torch.zeros(64), eye, eye),
    )
    notes = " ".join(evaluate(uneven, digits, protocol=tiny, baselines=(), nets=1).notes)
    assert "have 4 to 5 images" in notes
    assert "normalisation='zca'" in notes
    assert "may flatter" in notes
    other = small_set(
        digits, config={"run": {"validation": 0.1}, "source": {"fingerprint": "0" * 64}}
    )
    assert "other data" in " ".join(
        evaluate(other, digits, protocol=tiny, baselines=(), nets=1).notes
    )
