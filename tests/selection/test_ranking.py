"""Subsets by difficulty, PAD's curriculum, and first images that networks get right."""

import pytest
import torch

from kdistill.errors import ConfigError, DataError, ShapeError
from kdistill.selection import Curriculum, quota, rank, select_correct

CIFAR10 = Curriculum()  # .75, 20, 40 and 60, .1 and .2


def ranking_of(*counts, classes=()):
    """Return classes of ``counts`` images, interleaved, whose scores fall with the row."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    return rank(
        -torch.arange(len(labels)).double(), labels, num_classes=len(counts), classes=classes
    ), labels


def test_every_class_is_sorted_from_easy_to_hard():
    ranking, labels = ranking_of(5, 3)
    for label, rows in enumerate(ranking.rows):
        assert rows.tolist() == sorted(
            torch.nonzero(labels == label).flatten().tolist(), reverse=True
        )


def test_equal_scores_keep_the_order_of_rows_and_never_learnt_is_hardest():
    ranking = rank(torch.tensor([1.0, torch.inf, 1.0, 0.0]), torch.zeros(4, dtype=torch.int64))
    assert ranking.rows[0].tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(5000, 0.75, 3750), (500, 0.75, 375), (7, 0.5, 4), (10, 0.25, 3)],
)
def test_a_quota_is_rounded_once_for_every_class(count, share, expected):
    assert quota(count, share) == expected


def test_shares_are_quotas_of_unequal_classes():
    ranking, labels = ranking_of(20, 10, 5)
    kept = ranking.keep(0.0, 0.8)
    assert torch.bincount(labels[kept]).tolist() == [16, 8, 4]
    hardest = set(torch.cat([rows[quota(len(rows), 0.8) :] for rows in ranking.rows]).tolist())
    assert hardest.isdisjoint(kept.tolist())
    assert torch.bincount(labels[ranking.keep(0.2, 1.0)]).tolist() == [16, 8, 4]
    assert torch.equal(ranking.keep(), torch.arange(35))


@pytest.mark.parametrize(
    ("epoch", "window"),
    [
        (0, (0, 0.75)),
        (10, (0, 0.875)),
        (19, (0, 0.9875)),
        (20, (0, 1)),
        (40, (0, 1)),
        (41, (0.1, 1)),
        (60, (0.1, 1)),
        (61, (0.2, 1)),
        (99, (0.2, 1)),
    ],
)
def test_the_curriculum_is_the_published_one(epoch, window):
    assert CIFAR10.window(epoch) == pytest.approx(window)


@pytest.mark.parametrize("per_class", [5000, 500, 13])
def test_no_class_is_ever_empty_and_classes_stay_balanced(per_class):
    ranking, labels = ranking_of(per_class, per_class)
    CIFAR10.check(ranking, 100)
    for epoch in (0, 5, 20, 41, 61, 99):
        counts = torch.bincount(labels[CIFAR10.rows(ranking, epoch)]).tolist()
        low, high = CIFAR10.window(epoch)
        assert counts == [quota(per_class, high) - quota(per_class, low)] * 2
        assert counts[0] > 0


def test_a_curriculum_that_empties_a_class_is_refused_with_the_numbers():
    ranking, _ = ranking_of(30, 2, classes=("cat", "dog"))
    steep = Curriculum(initial_ratio=0.1)
    with pytest.raises(
        DataError, match=r"1 images of class 1 \('dog'\) between the shares 0 and 0.1 .* got 0 of 2"
    ):
        steep.check(ranking, 5)
    with pytest.raises(DataError, match="at least 9 images of class 0"):
        ranking_of(10, 10)[0].keep(0.2, 1.0, at_least=9)


@pytest.mark.parametrize(
    "change",
    [
        {"initial_ratio": 0.0},
        {"initial_ratio": 1.5},
        {"add_until": -1},
        {"remove_after": (40,)},
        {"remove_after": (60, 40)},
        {"remove_ratio": (0.1, 1.0)},
        {"add_until": 50},
    ],
)
def test_a_schedule_out_of_range_is_refused(change):
    with pytest.raises(ConfigError, match="are PAD's"):
        Curriculum(**change)


def test_a_curriculum_without_growth_or_removal_is_everything():
    flat = Curriculum(add_until=0, remove_after=(), remove_ratio=())
    assert {flat.window(epoch) for epoch in range(50)} == {(0.0, 1.0)}


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)])
def test_shares_out_of_range_are_refused(low, high):
    with pytest.raises(ConfigError, match="leave out less"):
        ranking_of(5)[0].keep(low, high)


def test_scores_that_do_not_fit_are_refused():
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ShapeError, match="one score per image"):
        rank(torch.zeros(4), labels)
    with pytest.raises(DataError, match="NaN at row 1"):
        rank(torch.tensor([0.0, torch.nan, 1.0]), labels)


def test_images_that_a_network_gets_right_come_first():
    labels = torch.arange(40) % 2
    asked = []

    def predictions(network):
        asked.append(
            network
        )  # network 0 knows rows below 6, network 1 those below 20, both say "other" elsewhere
        return torch.where(torch.arange(40) < (6, 20)[network], labels, 1 - labels)

    rows = select_correct(predictions, 2, labels, 5, key=3, num_classes=2)
    assert labels[rows].tolist() == [0] * 5 + [1] * 5
    assert all(set(rows[k : k + 3].tolist()) == {k // 5, k // 5 + 2, k // 5 + 4} for k in (0, 5))
    assert rows.max() < 20
    assert len(set(rows.tolist())) == 10
    assert asked == [0, 1]
    select_correct(predictions, 2, labels, 3, key=3, num_classes=2)
    assert asked == [0, 1, 0]  # no more than needed


def test_a_class_that_no_network_gets_right_is_filled_all_the_same():
    labels = torch.arange(10) % 2
    rows = select_correct(lambda network: 1 - labels, 2, labels, 5, key=0, num_classes=2)
    assert sorted(rows.tolist()) == list(range(10))
    with pytest.raises(DataError, match="lower ipc"):
        select_correct(lambda network: labels, 1, labels, 6, key=0, num_classes=2)


def test_a_small_class_gives_all_it_has_in_turn():
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    rows = select_correct(lambda network: labels, 1, labels, 5, key=0, num_classes=2)
    assert set(rows[:5].tolist()) == {0, 1} and len(set(rows[5:].tolist())) == 5


def test_halves_go_up_whatever_the_rounding_of_the_share():
    assert [quota(5, 1.0 - 0.9), quota(5, 0.1), quota(15, 1.0 - 0.9), quota(7, 0.5)] == [1, 1, 2, 4]
