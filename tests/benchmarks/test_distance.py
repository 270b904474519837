"""The study of the distance: ranks, intervals, snapshots, file and table."""

import pytest
import torch
from safetensors.torch import save

import kdistill
from benchmarks import distance
from benchmarks.distance import FORMS, Plan, interval, read, spearman, table, write

TINY = Plan(ipc=(1,), nets=1, epochs=1, width=4, num_nets=1, net_epochs=1, looks=(10,))


@pytest.fixture(scope="module")
def digits():
    data = kdistill.load_data("digits", quiet=True)
    rows = torch.cat([(data.train.labels == k).nonzero()[:12, 0] for k in range(10)])
    return kdistill.load_data((data.train.images[rows], data.train.labels[rows]), quiet=True)


def test_ranks_with_ties():
    x = torch.tensor([1.0, 2.0, 2.0, 10.0, 0.5], dtype=torch.float64)
    assert float(spearman(x, x.exp())) == pytest.approx(1.0)
    assert float(spearman(x, -x)) == pytest.approx(-1.0)
    # Pearson's correlation of the ranks
    ranked = torch.tensor([[2, 3.5, 3.5, 5, 1], [1, 2, 3, 4, 5]], dtype=torch.float64)
    assert float(spearman(x, ranked[1])) == pytest.approx(float(torch.corrcoef(ranked)[0, 1]))
    assert float(spearman(x, torch.ones(5))) == 0.0


def test_the_interval_surrounds_the_correlation():
    x = torch.randn(40, generator=torch.Generator().manual_seed(0))
    y = x + torch.randn(40, generator=torch.Generator().manual_seed(1))
    low, high = interval(x, y)
    assert -1.0 < low < float(spearman(x, y)) < high < 1.0
    assert (low, high) == interval(x, y)


def test_every_snapshot_has_a_line_and_forms_agree_with_the_table(digits, tmp_path, monkeypatch):
    errors = iter(torch.linspace(0.1, 0.9, 100).tolist())
    monkeypatch.setattr(distance, "error_of", lambda *_: next(errors))
    lines = distance.measured(digits, TINY)
    assert len(lines) == 16  # 20 with three looks at DM: 60 for three numbers of images per class
    assert len({(line["kind"], line["seed"]) for line in lines}) == 16
    by_kind = {line["kind"]: line for line in lines}
    for form in FORMS[:-1]:
        assert 0 < by_kind["means of 8"][" ".join(form)] < by_kind["noise"][" ".join(form)]
    write(tmp_path / "a.csv", lines)
    again = read(tmp_path / "a.csv")
    assert table(again).splitlines()[2:] == table(lines).splitlines()[2:]
    assert len(table(again).splitlines()) == 2 + len(FORMS)
    assert float(again[0]["trained cam all"]) == pytest.approx(
        lines[0]["trained cam all"], rel=1e-5
    )


def test_only_unlike_networks_set_images_apart_from_themselves(digits):
    real, labels = digits.transform.apply(digits.train.images), digits.train.labels
    found = {
        name: float(form(real, labels)) for name, form in distance.distances(digits, TINY).items()
    }
    assert found.pop("unlike none all") > 0.1
    assert max(found.values()) < 1e-6


def test_the_error_is_that_of_networks_trained_on_the_snapshot(digits):
    rows = torch.cat([(digits.train.labels == k).nonzero()[:2, 0] for k in range(10)])
    images = digits.transform.apply(digits.train.images[rows])
    one = distance.Set("random", 0, 2, images, digits.train.labels[rows])
    assert 0.0 <= distance.error_of(one, digits, TINY) <= 1.0


def test_stages_of_finished_runs_are_snapshots_too(digits, tmp_path):
    images, labels = digits.train.images[:10], torch.arange(10)
    path = save({"images": torch.stack([images, images + 1.0, images + 2.0])})
    run = {
        "data": digits.name,
        "method": "hglad",
        "seed": 3,
        "ipc": 1,
        "options": {"objective": "dm"},
    }
    search = {"best": [{"stage": "W"}, {"stage": "pixels"}]}
    small = kdistill.DistilledDataset(
        images=images,
        labels=labels,
        config={"run": run},
        metrics={"search": search},
        files={"path.safetensors": path},
    )
    small.save_pretrained(tmp_path / "a")
    found = list(distance.finished(digits, Plan(sets=[tmp_path])))
    assert [one.kind for one in found] == ["hglad dm start", "hglad dm W", "hglad dm pixels"]
    torch.testing.assert_close(found[2].images, digits.transform.apply(images + 2.0))
