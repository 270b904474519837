"""evaluate on real digits: the rows, their determinism, what is kept, and what is refused."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdistill import _native
from kdistill.api.evaluate import _student as student_of
from kdistill.api.evaluate import evaluate
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.checkpoint import encode_checkpoint
from kdistill.artifacts.tensors import decode, encode
from kdistill.data import Split
from kdistill.engine import use_precision
from kdistill.engine.precision import asked_precision
from kdistill.errors import ConfigError, DataError, KDistillError, NonFiniteError
from kdistill.evaluation import Evaluation, metrics
from kdistill.evaluation import baseline_cache as cache
from kdistill.evaluation.trainer import Trainer
from kdistill.selection import select
from kdistill.transforms import Zca

CHANCE = 0.1


def small_set(data, ipc=5, **changes):
    """Real images stand in for distilled ones."""
    kept, _ = data.holdout(0.1)
    rows = select("herding", kept.train.images.flatten(1), kept.train.labels, ipc, 0)
    return DistilledDataset(
        **{
            "images": kept.train.images[rows],
            "labels": kept.train.labels[rows],
            "classes": data.classes,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def small(digits):
    return small_set(digits)


@pytest.fixture
def tasks(monkeypatch):
    """Every task that is trained, in order."""
    seen, row = [], Trainer.row

    def watched(self, task):
        seen.append(task)
        return row(self, task)

    monkeypatch.setattr(Trainer, "row", watched)
    return seen


def numbers(evaluation):
    return {(row.name, row.model): (row.accuracies, row.validation) for row in evaluation.rows}


def test_every_row_is_there_and_says_what_its_spread_is_over(digits, small, tiny):
    found = evaluate(small, digits, protocol=replace(tiny, eight_bit=True))
    seeds = {row.name: row.seeds for row in found.rows}
    assert seeds == {
        "distilled": "1 distillation seed × 2 nets",
        "distilled, 8 bits": "1 distillation seed × 2 nets",
        "random": "2 subsets × 1 net",
        "herding": "1 subset × 2 nets",
        "k-center": "1 subset × 2 nets",
        "full": "2 nets",
    }
    for row in found.rows:
        assert len(row.accuracies) == len(row.validation) == 2
        assert all(0.0 <= accuracy <= 1.0 for accuracy in row.accuracies)
        assert row.images == (1293 if row.name == "full" else 50)
        assert row.nbytes == row.images * (64 * 4 + 8)
        assert row.seconds > 0
    assert found.small.mean > 5 * CHANCE
    assert found.row("full").mean > found.row("random").mean
    assert {"hlr", "ior", "lrs"} <= set(found.scores())
    assert found.peak_bytes > 2**20
    assert found.environment["threads"] == torch.get_num_threads()
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_set_remembers_its_evaluation(digits, small, tiny, tmp_path):
    own = small_set(
        digits,
        config={"source": {"fingerprint": digits.fingerprint}},
        metrics={"distillation": {"seconds": 1.0}},
    )
    copy = own.with_metrics()
    found = evaluate(own, digits, protocol=tiny, baselines=("random",))
    assert Evaluation.from_dict(own.metrics["evaluation"]) == found
    assert own.metrics["distillation"] == {"seconds": 1.0} and "evaluation" not in copy.metrics
    own.save_pretrained(tmp_path / "set")
    card = (tmp_path / "set/README.md").read_text()
    assert "Not measured yet" not in card and f"{100 * found.small.mean:.2f}" in card
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


def test_baselines_are_trained_once(digits, small, tiny, tasks):
    first = evaluate(small, digits, protocol=tiny)
    assert len(tasks) == 5
    tasks.clear()
    other = small_set(digits, ipc=1)
    second = evaluate(small, digits, protocol=tiny)
    assert [task.name for task in tasks] == ["distilled"]
    assert numbers(first) == numbers(second)
    assert first.row("random").sources == second.row("random").sources
    tasks.clear()
    evaluate(other, digits, protocol=tiny)
    # the full data serve every size
    assert [task.name for task in tasks] == ["distilled", "random", "herding", "k-center"]


@pytest.mark.parametrize(
    "change", ["recipe", "seed", "code", "threads", "data", "backend", "convolution"]
)
def test_a_kept_baseline_does_not_serve_anything_else(
    digits, small, tiny, tasks, monkeypatch, change
):
    run = {"protocol": tiny, "baselines": ("random",), "nets": 1}
    evaluate(small, digits, **run)
    tasks.clear()
    if change == "recipe":
        run["protocol"] = replace(tiny, lr=0.09)
    elif change == "seed":
        run["seed"] = 1
    elif change == "code":
        monkeypatch.setattr(cache, "code_digest", lambda: "other")
    elif change == "threads":
        monkeypatch.setattr(_native, "environment", lambda: {"threads": 64})
    elif change == "convolution":
        monkeypatch.setenv("KDISTILL_CONVOLUTION", "direct")
    elif change == "backend":
        monkeypatch.setenv("KDISTILL_BACKEND", "reference")
    else:
        digits = replace(digits, fingerprint="other")
    evaluate(small, digits, **run)
    assert "random" in [task.name for task in tasks]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("cut off", "damaged or cut off"),
        ("edited accuracy", "expected the contents that its checksum names, got others"),
        (
            "accuracy above 1",
            "expected what an evaluation measures of full, got accuracies above 1",
        ),
        ("more accuracies", "got accuracies of 2 numbers"),
        ("other accuracy", "got accuracies that disagree with the confusion matrix"),
        ("other confusion", "got a confusion matrix of other test images"),
        ("other source", "got the row of another baseline"),
        ("no row", "accuracies"),
        ("another entry", "expected the baseline that its name says, got another"),
        (
            "others can write",
            "expected a cache that only its owner can write, got one that others can write; chmod "
            "go-w it",
        ),
        ("a link", "a symbolic link, which is not followed"),
    ],
)
def test_a_kept_baseline_that_is_damaged_or_edited_is_trained_again(
    digits, small, tiny, tmp_path, caplog, damage, reason
):
    run = {"protocol": tiny, "baselines": ("full",), "nets": 1}
    first = evaluate(small, digits, **run)
    (file,) = (tmp_path / "cache/baselines").iterdir()
    tensors, kept = decode(file.read_bytes(), file)
    entry = kept["meta"]
    facts = entry["facts"]
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "others can write":
        file.parent.chmod(0o777)
    elif damage == "a link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif damage == "another entry":
        file.write_bytes(encode_checkpoint(tensors, {**entry, "entry": "other"}))
    elif damage == "edited accuracy":
        file.write_bytes(
            encode(tensors, {**kept, "meta": {**entry, "facts": {**facts, "accuracies": [0.99]}}})
        )
    else:
        right = facts["accuracies"][0]
        changed = {
            "accuracy above 1": [1.5],
            "more accuracies": [right] * 2,
            "other accuracy": [0.5 * right],
        }
        facts = {**facts, "accuracies": changed.get(damage, [right])}
        facts["confusion"] = (
            facts["confusion"][::-1] if damage == "other confusion" else facts["confusion"]
        )
        facts["sources"] = ["0" * 32] if damage == "other source" else facts["sources"]
        facts = {"name": "full"} if damage == "no row" else facts
        file.write_bytes(encode_checkpoint(tensors, {**entry, "facts": facts}))
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        again = evaluate(small, digits, **run)
    assert reason in caplog.text and "again" in caplog.text and len(caplog.records) == 1
    assert numbers(first) == numbers(again)


def test_kept_parameters_that_do_not_fit_are_trained_again(digits, small, tiny, tmp_path, caplog):
    run = {"protocol": tiny, "baselines": ("herding",), "nets": 1}
    first = evaluate(small, digits, **run)
    for file in (tmp_path / "cache/baselines").iterdir():
        tensors, kept = decode(file.read_bytes(), file)
        if "theta" not in tensors:
            file.unlink()
            continue
        tensors["theta"] = tensors["theta"][:-1]
        file.write_bytes(encode_checkpoint(tensors, kept["meta"]))
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        assert numbers(evaluate(small, digits, **run)) == numbers(first)
    assert "finite parameters, got others" in caplog.text


def test_a_cache_that_cannot_be_written_is_said_and_survived(
    digits, small, tiny, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        evaluate(small, digits, protocol=tiny, baselines=("full",), nets=1)
    assert "next time the baseline is trained again" in caplog.text


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
    assert len(chosen) == 3  # of the two that may be kept, the second was
    assert all(torch.equal(chosen[0], other) for other in chosen)


def test_withheld_images_are_in_no_training_set(digits, small, tiny, tasks):
    found = evaluate(
        small, digits, protocol=replace(tiny, validation=0.2), baselines=("full",), nets=1
    )
    _, held_out = digits.holdout(0.2)
    held = {image.numpy().tobytes() for image in digits.transform.apply(held_out.images)}
    full = next(task for task in tasks if task.name == "full")
    trained = {image.numpy().tobytes() for image in full.sets[0][0]}
    assert found.data["validation"] == len(held_out) and len(full.sets[0][0]) + len(
        held_out
    ) == len(digits.train)
    assert not held & trained


def test_the_share_that_the_run_withheld_decides(digits, tiny):
    made = small_set(digits, config={"run": {"method": "dm", "validation": 0.3}})
    found = evaluate(made, digits, protocol=tiny, baselines=(), nets=1)
    assert found.small.name == "dm"
    assert found.data["validation"] == len(digits.holdout(0.3)[1])
    assert not found.notes
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


def test_learned_labels_and_step_size_are_used(digits, small, tiny):
    shifted = nn.functional.one_hot((small.labels + 1) % 10, 10) * 10.0
    soft = small_set(digits, label_logits=shifted, learned_lr=0.07)
    found = evaluate(soft, digits, protocol=tiny, baselines=())
    assert found.small.lr == (0.07,)
    assert found.small.mean < CHANCE  # it was taught that every digit is the next one
    assert found.row("distilled, hard labels").mean > 5 * CHANCE
    without = evaluate(soft, digits, protocol=replace(tiny, hard_labels=False), baselines=())
    assert [row.name for row in without.rows] == ["distilled"]
    assert found.small.nbytes == 50 * (64 * 4 + 40)


def test_a_set_with_soft_labels_is_compared_with_random_images_that_a_teacher_labelled(
    digits, small, tiny, tasks
):
    tiny = replace(tiny, full_epochs=8)  # a teacher that knows something
    hard = evaluate(small, digits, protocol=tiny, baselines=("random", "full"))
    tasks.clear()
    soft = small_set(digits, label_logits=nn.functional.one_hot(small.labels, 10) * 10.0)
    found = evaluate(soft, digits, protocol=tiny, baselines=("random", "full"))
    names = [row.name for row in found.rows]
    assert names == [
        "distilled",
        "distilled, hard labels",
        "random",
        "random, teacher labels",
        "full",
    ]
    # others were kept
    assert [task.name for task in tasks] == [
        "distilled",
        "distilled, hard labels",
        "random, teacher labels",
    ]
    assert numbers(hard)["random", "convnet"] == numbers(found)["random", "convnet"]
    teacher = found.row("random, teacher labels")
    assert (
        teacher.soft
        and teacher.kind == "baseline"
        and teacher.seeds == "2 subsets × 1 net"
        and teacher.mean > 4 * CHANCE
    )
    assert found.scores()["ior"] == found.small.mean - teacher.mean
    labelled = tasks[-1].sets
    tasks.clear()
    again = evaluate(soft, digits, protocol=tiny, baselines=("random",), reuse=False)
    # one teacher, kept or trained for this alone
    assert again.row("random, teacher labels").accuracies == teacher.accuracies
    plain, labels = (
        next(task for task in tasks if task.name == f"random{name}").sets
        for name in ("", ", teacher labels")
    )
    for (images, truth), (same, logits), (_, before) in zip(plain, labels, labelled, strict=True):
        assert torch.equal(images, same) and torch.equal(logits, before)
        assert logits.shape == (50, 10) and float((logits.argmax(1) == truth).float().mean()) > 0.6
    assert (
        "random, teacher labels" in soft.metrics["evaluation"]["scores"]["convnet"]["over_random"]
    )
    without = evaluate(
        soft, digits, protocol=replace(tiny, teacher_labels=False), baselines=("random",), nets=1
    )
    assert [row.name for row in without.rows][2:] == ["random"] and "ior" not in without.scores()


def test_robustness_of_soft_labels_is_that_over_a_teachers_labels(digits, small, tiny):
    soft = small_set(digits, label_logits=nn.functional.one_hot(small.labels, 10) * 10.0)
    found = evaluate(
        soft,
        digits,
        protocol=replace(tiny, robustness=True, hard_labels=False),
        baselines=("random",),
        nets=1,
    )
    assert [row.name for row in found.rows][-2:] == [
        "random, teacher labels",
        "random, teacher labels, no augmentation",
    ]
    plain = (
        found.row("distilled, no augmentation").mean,
        found.row("random, teacher labels, no augmentation").mean,
    )
    teacher = found.row("random, teacher labels").mean
    assert found.scores()["ars"] == metrics.ars(found.small.mean, teacher, *plain)


def test_a_loss_that_is_not_finite_names_the_row_and_the_network(digits, small, tiny):
    with pytest.raises(
        NonFiniteError,
        match=r"finite loss of mlp on 'distilled', got none at lr 1e\+30 .*lr='auto'",
    ):
        evaluate(small, digits, protocol=tiny, models="mlp", baselines=(), lr=1e30)


def test_a_network_that_did_not_train_is_marked(digits, small, tiny):
    found = evaluate(small, digits, protocol=tiny, baselines=("random",), lr=1e-12)
    assert (found.small.untrained, found.row("random").untrained) == (2, 2)
    assert (
        "convnet did not train (2 of 2 on 'distilled', 2 of 2 on 'random'): no better than chance"
        in str(found)
    )
    trained = evaluate(small, digits, protocol=tiny, baselines=("full",))
    assert not any(row.untrained for row in trained.rows) and "†" not in str(trained)


def test_classes_are_counted_one_by_one(digits, small, tiny):
    few = (digits.test.labels != 3) | (torch.arange(len(digits.test)) % 9 == 0)
    uneven = replace(digits, test=digits.test.take(few.nonzero()[:, 0]))
    found = evaluate(small, uneven, protocol=tiny, baselines=())
    row, shown = found.small, torch.bincount(uneven.test.labels)
    counts = torch.tensor(row.confusion)
    assert torch.equal(counts.sum(1), 2 * shown)  # two networks
    assert row.mean == pytest.approx(float(counts.diagonal().sum()) / float(counts.sum()))
    assert sum(row.balanced) / 2 == pytest.approx(sum(row.per_class) / 10)
    assert row.per_class == pytest.approx((counts.diagonal() / counts.sum(1)).tolist())
    assert "balanced %" in str(
        found
    ) and f"test classes have {shown.min()} to {shown.max()} images" in str(found)
    text = found.per_class()
    assert [line.split()[0] for line in text.splitlines()[2:12]] == list("0123456789")
    assert "distilled: true \\ predicted" in text
    plain = evaluate(small, digits, protocol=replace(tiny, eight_bit=True), baselines=(), nets=1)
    assert "balanced %" not in str(plain) and [bool(row.confusion) for row in plain.rows] == [
        True,
        False,
    ]


def test_a_tiny_test_set_is_said(digits, small, tiny):
    rows = torch.cat([(digits.test.labels == label).nonzero()[:2, 0] for label in range(9)])
    found = evaluate(
        small, replace(digits, test=digits.test.take(rows)), protocol=tiny, baselines=(), nets=1
    )
    text = str(found)
    assert "18 test images: they alone leave an accuracy uncertain by ± " in text
    assert "1 of 10 classes have no test image" in text
    assert "alone leave" not in str(evaluate(small, digits, protocol=tiny, baselines=(), nets=1))


def test_the_price_of_eight_bits(digits, small, tiny):
    eight = replace(tiny, eight_bit=True)
    rounded = small_set(digits, images=(small.images * 255).round() / 255)
    assert evaluate(rounded, digits, protocol=eight, baselines=()).eight_bit_cost() == 0.0
    # hardly any contrast around one grey level, which instance norm restores: gone once it is
    # rounded
    faint = small_set(digits, images=78 / 255 + 3.5e-3 * (small.images - 0.5))
    found = evaluate(faint, digits, protocol=replace(eight, strategy="none"), baselines=())
    assert found.row("distilled, 8 bits").mean < 2.5 * CHANCE
    assert found.eight_bit_cost() > 2.5 * CHANCE


def test_lr_auto_chooses_on_validation_images_and_survives_an_explosion(
    digits, small, tiny, monkeypatch
):
    chooses = replace(tiny, lr="auto", lr_candidates=(1e-6, 0.1, 1e30))
    found = evaluate(small, digits, protocol=chooses, baselines=("random",), nets=1)
    assert found.small.lr == found.row("random").lr == (0.1,)
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
    found = evaluate(small, digits, protocol=replace(tiny, robustness=True), baselines=("random",))
    names = [row.name for row in found.rows]
    assert names == ["distilled", "distilled, no augmentation", "random", "random, no augmentation"]
    assert found.row("random").accuracies != found.row("random, no augmentation").accuracies
    assert 0.0 < found.scores()["ars"] < 1.0
    plain = evaluate(
        small,
        digits,
        protocol=replace(tiny, robustness=True, strategy="none"),
        baselines=("random",),
    )
    assert [row.name for row in plain.rows] == names


def test_other_networks_and_own_modules(digits, small, tiny):
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = evaluate(
        small,
        digits,
        protocol=tiny,
        models=("convnet", "mlp", own),
        baselines=("herding", "full"),
        nets=1,
    )
    assert found.models == ("convnet", "mlp", "Sequential")
    assert len(found.rows) == 9
    assert all(found.row("full", model).mean > 3 * CHANCE for model in found.models)
    assert found.gap_closed("mlp") is None


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
