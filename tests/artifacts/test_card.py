import json

import pytest
import torch

from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.dataset_card import card
from kdistill.transforms import Standardise

CONFIG = {
    "run": {"method": "dm", "ipc": 2, "seed": 7, "normalisation": "standard"},
    "source": {"name": "digits", "licence": "cc-by-4.0", "fingerprint": "abc123"},
    "method": {"title": "distribution matching", "paper": "Zhao and Bilen, WACV 2023"},
    "environment": {"kdistill": "0.1.0", "torch": "2.13.0"},
}


def row(name, kind, mean, **more):
    fields = {
        "model": "convnet",
        "std": 0.004,
        "seeds": "3 distillation seeds × 5 nets",
        "images": 6,
        "nbytes": 2048,
        "best_on_test": None,
    }
    return {"name": name, "kind": kind, "mean": mean, **fields, **more}


def evaluation(*rows, lr="auto", **scores):
    rows = rows or (
        row("dm", "distilled", 0.90),
        row("random", "baseline", 0.70),
        row("full", "baseline", 0.95),
    )
    scores = {
        "gap_closed": 0.8,
        "eight_bit_cost": 0.012,
        "hlr": 0.05,
        "ior": 0.2,
        "lrs": 0.34,
        **scores,
    }
    protocol = {"name": "bench", "epochs": 300}
    return {
        "rows": list(rows),
        "scores": {"convnet": scores},
        "protocol": {**protocol, "lr": lr},
        "data": {"name": "digits"},
    }


def a_set(**fields):
    defaults = {
        "images": torch.linspace(-0.1, 1.1, 6 * 16).view(6, 1, 4, 4),
        "labels": torch.tensor([0, 0, 1, 1, 2, 2]),
        "classes": ["a: b", 'c"d', "é | f"],
        "transform": Standardise(torch.tensor([0.3]), torch.tensor([0.25])),
        "config": CONFIG,
    }
    return DistilledDataset(**{**defaults, **fields})


def header(text):
    """Read the YAML of a header without a YAML library: ``key: value`` lines and lists."""
    top = {}
    for line in text.split("---\n")[1].splitlines():
        if line and line[0] not in " -":
            key, _, value = line.partition(":")
            top[key] = json.loads(value) if value.strip().startswith('"') else value.strip() or []
        elif line.startswith("- "):
            top[key].append(line[2:])
    return top


def test_header():
    top = header(card(a_set()))
    assert top["license"] == "cc-by-4.0" and "license_name" not in top
    assert top["pretty_name"] == "digits distilled to 2 images per class"
    assert top["task_categories"] == ["image-classification"]
    assert top["tags"] == ["dataset-distillation", "ipc-2", "kdistill"]
    assert top["size_categories"] == ["n<1K"]
    text = card(a_set())
    assert (
        '          \'1\': "c\\"d"' in text
        and "    num_examples: 6" in text
        and "label_logits" not in header(text)["dataset_info"]
    )


def test_a_licence_that_the_hub_does_not_know_keeps_its_words():
    licence = 'disputed: "CC BY-SA 3.0" | MIT'
    text = card(a_set(config={**CONFIG, "source": {"licence": licence}}))
    assert header(text)["license"] == "other" and header(text)["license_name"] == licence
    assert header(card(a_set(config={})))["license"] == "unknown"
    assert "its licence is not recorded" in card(a_set(config={}))


def test_origin_and_limits():
    text = card(
        a_set(
            metrics={
                "distillation": {
                    "iterations": 300,
                    "finished": False,
                    "seconds": 12.34,
                    "peak_bytes": 5e8,
                }
            }
        )
    )
    for sentence in (
        "`dm` distribution matching",
        "Zhao and Bilen, WACV 2023",
        "`abc123`",
        "- **seed**: 7",
        "kdistill 0.1.0, torch 2.13.0",
    ):
        assert sentence in text
    assert "300 iterations (stopped early), 12.3 s, peak memory 500.0 MB" in text
    assert '"seed": 7' in text and "--config config.json" in text
    assert (
        "not anonymous" in text and "The terms of the source data apply to it (cc-by-4.0)." in text
    )
    assert "Some pixels lie outside [0, 1]" in text
    assert "mean (0.3000), std (0.2500)" in text


def test_nothing_is_claimed_before_it_is_measured():
    text = card(a_set())
    assert "Not measured yet" in text and "accuracy %" not in text


def test_scores_with_spread_seeds_and_distance_from_full_data():
    text = card(a_set(metrics={"evaluation": evaluation()}))
    assert (
        "| **dm** | convnet | 90.00 ± 0.40 | 3 distillation seeds × 5 nets | 6 | 2.0 kB |" in text
    )
    assert (
        "convnet: closes 80 % of the gap between random selection and full data." in text
        and "convnet: 5.00 points below the full data (95.00 %)." in text
    )
    assert (
        "an 8-bit export costs 1.20 points of accuracy: keep the float images, or use npz." in text
    )
    assert "HLR 5.0 % (hard-label recovery: full data minus" in text
    assert (
        "IOR 20.0 % (improvement over random: the small set minus 'random'; larger is better)."
        in text
    )
    assert "the learning rate is chosen on held out training images." in text
    assert "the learning rate is 0.01." in card(a_set(metrics={"evaluation": evaluation(lr=0.01)}))
    assert "protocol `bench` (300 epochs)" in text and "best on test" not in text


@pytest.mark.parametrize(
    ("cost", "sentence"),
    [
        (0.001, "an 8-bit export costs 0.10 points of accuracy."),
        (-0.0722, "an 8-bit export gains 7.22 points of accuracy."),
        (None, "accuracy lost by an 8-bit export not measured."),
        ("nan", "accuracy lost by an 8-bit export not measured."),
    ],
)
def test_the_cost_of_eight_bits(cost, sentence):
    assert sentence in card(a_set(metrics={"evaluation": evaluation(eight_bit_cost=cost)}))


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (
            {"mean": -0.032, "low": -0.041, "high": -0.023},
            "BELOW 'random': as many real images chosen at random train better networks than this "
            "set (-3.20 points, 95 % interval -4.10 to -2.30).",
        ),
        (
            {"mean": -0.01, "low": -0.03, "high": 0.01},
            "not better than 'random', as many real images chosen at random (-1.00 points, 95 % "
            "interval -3.00 to +1.00).",
        ),
        (
            {"mean": -0.01, "low": None, "high": None},
            "not better than 'random', as many real images chosen at random (-1.00 points; too "
            "few networks for an interval).",
        ),
        ({"mean": 0.01, "low": -0.02, "high": 0.04}, None),
        ({"mean": "nan"}, None),
        (3, None),
    ],
)
def test_a_set_that_is_worse_than_random_images_is_not_praised(difference, sentence):
    text = card(a_set(metrics={"evaluation": evaluation(over_random={"random": difference})}))
    assert sentence in text if sentence else "chosen at random" not in text
    assert ("better networks than this set (convnet).**" in text.split("![All")[0]) is bool(
        sentence and "BELOW" in sentence
    )


def test_a_set_that_is_worse_than_random_images_with_labels_of_a_teacher_alone_is_told_so():
    against = {
        "random": {"mean": 0.1, "low": 0.05, "high": 0.15},
        "random, teacher labels": {"mean": -0.1, "low": -0.15, "high": -0.05},
    }
    text = card(a_set(metrics={"evaluation": evaluation(over_random=against)}))
    images = (
        "s many real images chosen at random and labelled by a network that was trained on all "
        "the data train better networks"
    )
    assert f"**A{images} than this set (convnet).**" in text.split("![All")[0]
    assert f"BELOW 'random, teacher labels': a{images} than this set (-10.00 points" in text
    assert "chosen at random train better" not in text


def test_a_network_that_did_not_train_is_marked():
    rows = (row("dm", "distilled", 0.9), row("random", "baseline", 0.1, model="vgg11", untrained=5))
    text = card(a_set(metrics={"evaluation": evaluation(*rows)}))
    assert (
        "| random | vgg11 | 10.00 ± 0.40† |" in text
        and "- † did not train: no better than chance" in text
    )
    assert "†" not in card(a_set(metrics={"evaluation": evaluation()}))


def test_a_gap_that_is_not_closed_is_put_into_words():
    text = card(a_set(metrics={"evaluation": evaluation(gap_closed=-0.53)}))
    assert (
        "closes nothing of the gap between random selection and full data: it falls behind random "
        "selection by 53 %" in text
    )
    assert "-53" not in text


def test_best_on_test_is_apart_and_named():
    rows = (row("dm", "distilled", 0.9, best_on_test=[0.91, 0.93]), row("random", "baseline", 0.7))
    text = card(a_set(metrics={"evaluation": evaluation(*rows)}))
    assert (
        "| best on test % |" in text
        and "| 92.00 |" in text
        and "chosen by looking at the test set" in text
    )
    assert "distance from the full data not measured" in text


@pytest.mark.parametrize(
    "metrics",
    [{"evaluation": 3}, {"evaluation": {"rows": [3, {}, {"mean": "nan"}]}}, {"distillation": []}],
)
def test_unknown_metrics_do_not_break_a_card(metrics):
    assert "Not measured yet" in card(a_set(metrics=metrics))


def test_soft_labels_and_step_size():
    text = card(a_set(label_logits=torch.zeros(6, 3), learned_lr=0.02))
    assert (
        "softmax of `label_logits` [6, 3]" in text
        and "to_torch(normalised=True, soft=True)" in text
    )
    assert "**learned learning rate**: 0.02" in text and "  - name: label_logits" in text


def test_the_loading_lines_run(tmp_path, monkeypatch):
    a_set().save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    lines = text.split("## How to use it")[1].split("```python\n")[1].split("```")[0]
    scope = {}
    exec(lines.replace("import kdistill\n", "import kdistill.artifacts as kdistill\n"), scope)
    assert len(scope["train_set"]) == 6
