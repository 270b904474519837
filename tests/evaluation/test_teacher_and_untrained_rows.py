"""Rows on the labels of a teacher, and rows of networks that did not train."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdistill.api.evaluate import evaluate
from kdistill.errors import NonFiniteError
from kdistill.evaluation import metrics
from tests.evaluation._sets import numbers, small_set

CHANCE = 0.1


def test_learned_labels_and_learning_rate_are_used(digits, small, tiny):
    shifted = nn.functional.one_hot((small.labels + 1) % 10, 10) * 10.0
    soft = small_set(digits, label_logits=shifted, learned_lr=0.07)
    result = evaluate(soft, digits, protocol=tiny, baselines=())
    assert result.small.lr == (0.07,)
    assert result.small.mean < CHANCE  # it was taught that every digit is the next one
    assert result.row("distilled, hard labels").mean > 5 * CHANCE
    without = evaluate(soft, digits, protocol=replace(tiny, hard_labels=False), baselines=())
    assert [row.name for row in without.rows] == ["distilled"]
    assert result.small.nbytes == 50 * (64 * 4 + 40)


def test_a_set_with_soft_labels_is_compared_with_random_images_that_a_teacher_labelled(
    digits, small, tiny, tasks
):
    tiny = replace(tiny, full_epochs=8)  # a teacher that knows something
    hard = evaluate(small, digits, protocol=tiny, baselines=("random", "full"))
    tasks.clear()
    soft = small_set(digits, label_logits=nn.functional.one_hot(small.labels, 10) * 10.0)
    result = evaluate(soft, digits, protocol=tiny, baselines=("random", "full"))
    names = [row.name for row in result.rows]
    assert names == [
        "distilled",
        "distilled, hard labels",
        "random",
        "random, teacher labels",
        "full",
    ]
    # others were cached
    assert [task.name for task in tasks] == [
        "distilled",
        "distilled, hard labels",
        "random, teacher labels",
    ]
    assert numbers(hard)["random", "convnet"] == numbers(result)["random", "convnet"]
    teacher = result.row("random, teacher labels")
    assert (
        teacher.soft
        and teacher.kind == "baseline"
        and teacher.seeds == "2 subsets × 1 net"
        and teacher.mean > 4 * CHANCE
    )
    assert result.scores()["ior"] == result.small.mean - teacher.mean
    labelled = tasks[-1].sets
    tasks.clear()
    again = evaluate(soft, digits, protocol=tiny, baselines=("random",), reuse=False)
    # one teacher, cached or trained for this alone
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
    result = evaluate(
        soft,
        digits,
        protocol=replace(tiny, robustness=True, hard_labels=False),
        baselines=("random",),
        nets=1,
    )
    assert [row.name for row in result.rows][-2:] == [
        "random, teacher labels",
        "random, teacher labels, no augmentation",
    ]
    plain = (
        result.row("distilled, no augmentation").mean,
        result.row("random, teacher labels, no augmentation").mean,
    )
    teacher = result.row("random, teacher labels").mean
    assert result.scores()["ars"] == metrics.ars(result.small.mean, teacher, *plain)


def test_a_loss_that_is_not_finite_names_the_row_and_the_network(digits, small, tiny):
    with pytest.raises(
        NonFiniteError,
        match=r"finite loss of mlp on 'distilled', got none at lr 1e\+30 .*lr='auto'",
    ):
        evaluate(small, digits, protocol=tiny, models="mlp", baselines=(), lr=1e30)


def test_a_network_that_did_not_train_is_marked(digits, small, tiny):
    result = evaluate(small, digits, protocol=tiny, baselines=("random",), lr=1e-12)
    assert (result.small.untrained, result.row("random").untrained) == (2, 2)
    assert (
        "convnet did not train (2 of 2 on 'distilled', 2 of 2 on 'random'): no better than chance"
        in str(result)
    )
    trained = evaluate(small, digits, protocol=tiny, baselines=("full",))
    assert not any(row.untrained for row in trained.rows) and "†" not in str(trained)
