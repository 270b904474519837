"""Selections against brute force in plain Python and float64."""

import itertools

import numpy as np
import pytest
import torch

from kdistill.errors import ConfigError, DataError, ShapeError
from kdistill.selection import SELECTIONS, coresets, select

KEY = 1234


def problem(
    counts: tuple[int, ...], features: int = 5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=g)]
    return torch.randn(len(labels), features, generator=g) + 3.0 * labels[:, None], labels


def rows_of(labels: torch.Tensor, label: int) -> list[int]:
    return (labels == label).nonzero().squeeze(1).tolist()


def brute_herding(x: np.ndarray, ipc: int) -> list[int]:
    mean, chosen = x.mean(0), []
    for _ in range(ipc):
        left = [i for i in range(len(x)) if i not in chosen]
        chosen.append(min(left, key=lambda i: np.linalg.norm(mean - x[[*chosen, i]].mean(0))))
    return chosen


def brute_k_center(x: np.ndarray, ipc: int) -> list[int]:
    chosen = [int(np.linalg.norm(x - x.mean(0), axis=1).argmin())]
    while len(chosen) < ipc:
        left = [i for i in range(len(x)) if i not in chosen]
        chosen.append(max(left, key=lambda i: min(np.linalg.norm(x[i] - x[j]) for j in chosen)))
    return chosen


@pytest.mark.parametrize(
    ("name", "brute"), [("herding", brute_herding), ("k_center", brute_k_center)]
)
@pytest.mark.parametrize("block", [1, 2**26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_selections_equal_brute_force(name, brute, block, dtype, monkeypatch):
    monkeypatch.setattr(coresets, "BLOCK_ELEMENTS", block)
    features, labels = problem((7, 13, 9))
    found = select(name, features.to(dtype), labels, 6, KEY).view(3, 6)
    for label in range(3):
        rows = rows_of(labels, label)
        assert found[label].tolist() == [rows[i] for i in brute(features[rows].double().numpy(), 6)]


def test_k_means_finds_separated_clusters_and_takes_their_middles():
    g = torch.Generator().manual_seed(1)
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
    group = torch.arange(4).repeat(12)
    features = torch.cat(
        [centres[group] + torch.randn(48, 2, generator=g), 7.0 + torch.randn(5, 2, generator=g)]
    )
    labels = torch.cat([torch.zeros(48, dtype=torch.int64), torch.ones(5, dtype=torch.int64)])
    found = select("k-means", features, labels, 4, KEY)[:4]
    assert sorted(group[found].tolist()) == [0, 1, 2, 3]
    for row in found.tolist():
        members = features[:48][group == group[row]]
        assert (
            torch.linalg.norm(features[row] - members.mean(0))
            <= torch.linalg.norm(members - members.mean(0), dim=1).min() + 1e-5
        )


@pytest.mark.parametrize("name", sorted(SELECTIONS))
@pytest.mark.parametrize("ipc", [1, 3, 5])
def test_balanced_class_major_without_repetition_and_deterministic(name, ipc):
    features, labels = problem((5, 12, 8), seed=2)
    found = select(name, features, labels, ipc, KEY)
    assert found.dtype == torch.int64 and labels[found].tolist() == [
        c for c in range(3) for _ in range(ipc)
    ]
    assert len(set(found.tolist())) == 3 * ipc
    assert torch.equal(found, select(name, features, labels, ipc, KEY))


@pytest.mark.parametrize("name", ["random", "herding", "k_center"])
def test_fewer_images_are_a_prefix(name):
    features, labels = problem((6, 6))
    many, few = (
        select(name, features, labels, 5, KEY).view(2, 5),
        select(name, features, labels, 2, KEY).view(2, 2),
    )
    assert torch.equal(many[:, :2], few)


@pytest.mark.parametrize("name", sorted(SELECTIONS))
def test_copies_of_one_image_do_not_end_the_search(name):
    features, labels = torch.ones(8, 3), torch.tensor([0, 1] * 4)
    found = select(name, features, labels, 4, KEY)
    assert sorted(found.tolist()) == list(range(8)) and labels[found].tolist() == [0] * 4 + [1] * 4


def test_random_follows_the_key_only():
    features, labels = problem((40, 40))
    draws = [
        select("random", x, labels, 10, key).tolist()
        for x, key in itertools.product((features, -features), (1, 2))
    ]
    assert draws[0] == draws[2] and draws[1] == draws[3] and draws[0] != draws[1]
    before = torch.get_rng_state()
    select("k_means", features, labels, 3, KEY)
    assert torch.equal(before, torch.get_rng_state())


def test_random_is_uniform():
    labels = torch.tensor([0] * 5 + [1] * 5)
    hits = torch.zeros(10)
    for key in range(2000):
        hits[select("random", labels[:, None].float(), labels, 2, key)] += 1
    assert (hits - 800).abs().max() < 6 * (2000 * 0.4 * 0.6) ** 0.5  # six standard deviations


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"name": "hearding"}, ConfigError, "did you mean 'herding'"),
        ({"ipc": 0}, ConfigError, "at least 1"),
        ({"ipc": 8}, DataError, r"ipc=8 images of class 0, got 5; lower ipc"),
        ({"ipc": 8, "classes": ("cat", "dog")}, DataError, r"class 0 \('cat'\)"),
        ({"num_classes": 3}, DataError, "ipc=2 images of class 2, got 0"),
        ({"num_classes": 1}, DataError, r"labels in 0\.\.0, got 0\.\.1"),
        ({"labels": torch.full((12,), -1)}, DataError, "number the classes from 0"),
        (
            {"labels": torch.zeros(0, dtype=torch.int64), "features": torch.zeros(0, 3)},
            DataError,
            "number the classes",
        ),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ShapeError, r"flatten\(1\)"),
        ({"features": torch.zeros(12, 1, 3, 3)}, ShapeError, r"features \[N, F\]"),
        (
            {"features": torch.full((12, 3), torch.nan)},
            DataError,
            "finite features, got NaN or infinity in row 0",
        ),
    ],
)
def test_refusals(change, error, says):
    features, labels = problem((5, 7))
    call = {
        "name": "herding",
        "features": features,
        "labels": labels,
        "ipc": 2,
        "key": KEY,
        **change,
    }
    with pytest.raises(error, match=says):
        select(**call)


@pytest.mark.parametrize("name", ["random", "herding", "k_center", "k_means"])
def test_a_small_class_gives_all_it_has_in_turn(name):
    features, labels = problem((3, 9))
    rows = select(name, features, labels, 7, KEY)
    small, large = rows[:7].tolist(), rows[7:].tolist()
    assert sorted(torch.bincount(labels[rows]).tolist()) == [7, 7] and len(set(large)) == 7
    assert len(set(small)) == 3 and max(small.count(row) for row in set(small)) == 3
