"""Rows, tables and merging, on made-up numbers."""

import json
import math
from io import StringIO

import pytest
from rich.console import Console

from kdistill.errors import ConfigError
from kdistill.evaluation import PROTOCOLS, Evaluation, Row, merge, metrics


def row(name="dm", kind="distilled", accuracies=(0.9, 0.94), source="a", **changes):
    unit = {"distilled": "distillation seed", "variant": "distillation seed"}.get(
        kind, "" if name == "full" else "subset"
    )
    fields = {
        "model": "convnet",
        "validation": (0.9,) * len(accuracies),
        "lr": (0.01,),
        "epochs": 3,
        "images": 10,
        "nbytes": 3200,
    }
    fields |= {"seconds": 1.5, "unit": unit, "sources": (source,), **changes}
    return Row(name=name, kind=kind, accuracies=accuracies, **fields)


def evaluation(*rows, **changes):
    fields = {
        "protocol": PROTOCOLS["bench"],
        "data": {"name": "digits"},
        "seconds": 2.0,
        "peak_bytes": 2**30,
        **changes,
    }
    return Evaluation(rows=rows or (row(),), **fields)


BASELINES = (
    row("random", "baseline", (0.8, 0.8), "r", sets=2),
    row("herding", "baseline", (0.85, 0.85), "h"),
    row("full", "baseline", (1.0, 1.0), "f"),
)


def test_mean_and_sample_standard_deviation():
    assert row().mean == pytest.approx(0.92)
    assert row().std == pytest.approx(0.02 * math.sqrt(2.0))
    assert math.isnan(row(accuracies=(0.9,)).std)
    assert row(accuracies=(0.9,)).to_dict()["std"] is None


def test_every_row_says_what_its_spread_is_over():
    assert row().seeds == "1 distillation seed × 2 nets"
    assert [r.seeds for r in BASELINES] == ["2 subsets × 1 net", "1 subset × 2 nets", "2 nets"]


def test_scores():
    rounded = row("dm, 8 bits", "variant", (0.9, 0.9))
    result = evaluation(row(), rounded, *BASELINES)
    assert result.gap_closed() == pytest.approx(0.6)
    assert result.eight_bit_cost() == pytest.approx(0.02)
    assert result.scores() == pytest.approx({"hlr": 0.08, "ior": 0.12, "lrs": 0.2775}, abs=5e-5)
    assert evaluation().gap_closed() is None
    assert evaluation().eight_bit_cost() is None
    assert evaluation().scores() == {}


def test_hlr_takes_the_hard_labels_of_a_soft_set():
    result = evaluation(row(), row("dm, hard labels", "variant", (0.6, 0.6)), *BASELINES)
    assert result.scores()["hlr"] == pytest.approx(0.4)
    assert result.scores()["ior"] == pytest.approx(0.12)


def test_the_augmentation_robust_score():
    plain = (
        row("dm, no augmentation", "variant", (0.7, 0.7)),
        row("random, no augmentation", "variant", (0.7, 0.7)),
    )
    assert evaluation(row(), *plain, *BASELINES).scores()["ars"] == pytest.approx(
        (math.exp(0.06) - 1 / math.e) / (math.e - 1 / math.e)
    )


def test_the_difference_to_random_images_has_an_interval_that_fits_what_was_measured():
    worse = evaluation(
        row(accuracies=(0.70, 0.71, 0.72)),
        row("random", "baseline", (0.80, 0.82, 0.81), "r", sets=3),
    )
    gap = worse.over_random()["random"]  # network i starts like network i of the other row
    assert gap.test == "paired t" and gap.mean == pytest.approx(-0.1) and gap.is_clear
    assert "BELOW 'random'" in str(worse) and "-10.00 points, 95 % interval -12.48 to -7.52" in str(
        worse
    )
    noise = evaluation(
        row(accuracies=(0.70, 0.90, 0.70)),
        row("random", "baseline", (0.80, 0.78, 0.80), "r", sets=3),
    )
    assert "not better than 'random'" in str(noise) and "BELOW" not in str(noise)
    several = evaluation(
        row(accuracies=(0.6, 0.8, 0.7, 0.7), sets=2),
        row("random", "baseline", (0.9, 0.9), "r", sets=2),
    )
    assert (
        several.over_random()["random"].test == "Welch t"
    )  # two sets against two subsets: nothing belongs together
    assert several.over_random()["random"].is_clear
    assert several.to_dict()["scores"]["convnet"]["over_random"]["random"]["high"] < 0
    assert "chosen at random" not in str(evaluation(row(), *BASELINES))
    json.dumps(
        evaluation(row(accuracies=(0.9,)), row("random", "baseline", (0.8,))).to_dict(),
        allow_nan=False,
    )


def test_improvement_over_random_compares_equal_kinds_of_labels():
    teacher = row("random, teacher labels", "baseline", (0.85, 0.85), "t", sets=2, soft=True)
    soft = evaluation(
        row(soft=True), row("dm, hard labels", "variant", (0.6, 0.6)), *BASELINES, teacher
    )
    assert soft.scores() == pytest.approx({"hlr": 0.4, "ior": 0.07, "lrs": metrics.lrs(0.4, 0.07)})
    assert "the small set minus 'random, teacher labels'" in str(soft)
    without = evaluation(row(soft=True), *BASELINES)
    assert set(without.scores()) == {"hlr"}  # hard-labelled random images are no measure of it
    assert set(soft.over_random()) == {"random", "random, teacher labels"}


def test_a_network_that_did_not_train_is_left_out_of_the_mean_over_networks():
    rows = (
        row(accuracies=(0.9, 0.9)), row(model="mlp", accuracies=(0.6, 0.6)),
        row(model="vgg11", accuracies=(0.1, 0.1), untrained=2),
        row("random", "baseline", (0.5, 0.5)), row("random", "baseline", (0.4, 0.4), model="mlp"),
        row("random", "baseline", (0.8, 0.8), model="vgg11"),
    )  # fmt: skip
    text = str(evaluation(*rows, student="convnet"))
    across = text.split("\n\n")[-1]
    assert "10.0 ± 0.0†" in across and "left out of the last column in every row: vgg11" in across
    assert [line.split()[-1] for line in across.splitlines()[2:4]] == ["60.0", "40.0"]
    assert "† vgg11 did not train (2 of 2 on 'dm')" in text and "10.00 ± 0.00†" in text
    assert (
        merge(
            [evaluation(row(untrained=1)), evaluation(row(source="b", untrained=1))]
        ).small.untrained
        == 2
    )


def test_counts_per_class_are_pooled_over_seeds_and_come_back_from_json():
    one = row(balanced=(0.5, 0.75), per_class=(1.0, 0.25), confusion=((4, 0), (3, 1)))
    two = row(
        accuracies=(0.9,),
        source="b",
        balanced=(0.5,),
        per_class=(0.5, 0.5),
        confusion=((1, 1), (1, 1)),
    )
    data = {"name": "digits", "classes": ["cat", "dog"], "test_per_class": [2, 2], "test": 4}
    both = merge([evaluation(one, data=data), evaluation(two, data=data)])
    assert both.small.balanced == (0.5, 0.75, 0.5) and both.small.confusion == ((5, 1), (4, 2))
    assert both.small.per_class == pytest.approx((2.5 / 3, 1 / 3))
    assert Evaluation.from_dict(json.loads(json.dumps(both.to_dict()))) == both
    text = both.per_class()
    assert "cat              2  83.3" in text and "67   33" in text
    with pytest.raises(ConfigError, match="got a record without them; evaluate again"):
        evaluation().per_class()


LONG = "my-method-with-a-long-name-and-many-words-in-it"
MODELS = ("convnet", "resnet18", "NetworkOfAUserWithALongName")


def long_evaluation(name: str):
    counts = {
        "balanced": (0.5,) * 20,
        "per_class": (0.5,) * 12,
        "confusion": ((3,) * 12,) * 12,
        "best_on_test": (0.6,) * 20,
    }
    rows = [
        row(
            title,
            kind,
            tuple(0.5 + 0.01 * n for n in range(20)),
            source=title,
            model=model,
            lr=(0.003, 0.01),
            **counts,
        )
        for model in MODELS
        for title, kind in (
            (name, "distilled"),
            (f"{name}, 8 bits", "variant"),
            ("random, teacher labels", "baseline"),
        )
    ]
    data = {
        "name": "d",
        "classes": [f"a class with a long name {n}" for n in range(12)],
        "test_per_class": [1, 2] * 6,
        "test": 18,
    }
    return evaluation(*rows, data=data, seeds=tuple(range(10, 22)))


@pytest.mark.parametrize("name", ["dm", LONG])
@pytest.mark.parametrize("width", [60, 80])
def test_tables_keep_to_the_width_with_long_names_many_networks_and_classes(name, width):
    result, stream = long_evaluation(name), StringIO()
    Console(file=stream, width=width).print(result.table(width))
    tables = [
        line
        for text in (result.to_text(width), result.per_class(width=width))
        for line in text.splitlines()
        if "  " in line
    ]
    assert max(map(len, [*tables, *stream.getvalue().splitlines()])) <= width
    assert not [
        line for line in stream.getvalue().splitlines() if line.strip() in ("8 bits", "labels")
    ]  # no cell is folded
    assert [
        line for line in result.to_text(None).splitlines() if line.startswith(f"{name}, 8 bits  ")
    ]


def test_every_part_of_a_divided_table_names_set_and_network():
    parts = [line for line in str(long_evaluation("dm")).splitlines() if line.startswith("set  ")]
    rows = [
        line for line in str(long_evaluation("dm")).splitlines() if line.startswith("dm, 8 bits")
    ]
    own = [line for line in parts if "network" in line]
    assert len(own) > 1 and all("%" in line or "lr" in line for line in own)
    assert len(rows) == len(MODELS) * len(own) and all(
        any(model in line for model in MODELS) for line in rows
    )


def test_print_shows_every_row_and_what_follows():
    text = str(evaluation(row(), row("dm, 8 bits", "variant", (0.9, 0.9)), *BASELINES))
    for part in (
        "92.00 ± 2.83",
        "random",
        "herding",
        "2 subsets × 1 net",
        "closes 60 %",
        "8-bit export costs 2.00 points of accuracy",
        "LRS 27.8 %",
    ):
        assert part in text, part
    assert "best on test" not in text
    header, _, first, *_ = text.splitlines()
    assert len(header) == len(first) <= 80


def test_best_on_test_is_a_column_of_its_own():
    result = evaluation(row(best_on_test=(0.95, 0.97)))
    assert "best on test %" in str(result)
    assert "papers report the best over the iterations of the distillation" in " ".join(
        str(result).split()
    )
    assert "96.00 ± 1.41" in str(result)
    assert result.row("dm").mean == pytest.approx(0.92)


def shown(result, width):
    buffer = StringIO()
    Console(file=buffer, width=width).print(result.table(width))
    return buffer.getvalue()


def words(text):
    return [line.split() for line in text.splitlines() if line.strip(" -─")]


def test_the_table_for_terminals_has_the_same_cells():
    result = evaluation(row(), row(model="mlp", lr=(0.1,)), *BASELINES)
    assert words(shown(result, 250)) == words(result.to_text())
    assert "dm, 8 bits  92.00 ± 2.83" in shown(
        evaluation(*BASELINES, row(), row("dm, 8 bits", "variant", nbytes=316_000)), 80
    )
    header = str(result).splitlines()[0].split()
    assert "network" in header and "lr" in header
    assert "network" not in str(evaluation()).splitlines()[0]


@pytest.mark.parametrize("width", [80, 60])
def test_a_table_keeps_to_the_width_and_names_what_it_leaves_out(width):
    models = ("convnet", "alexnet", "vgg11", "resnet18", "vit")
    names = ("random, teacher labels", "random, teacher labels, no augmentation", "full")
    result = evaluation(
        *(row(model=model, lr=(0.003,)) for model in models),
        *(
            row(name, "baseline", model=model, source=name + model)
            for name in names
            for model in models
        ),
        student="convnet",
    )
    text = result.to_text(width)
    assert max(len(line) for line in text.splitlines() if set(line) == {"-"}) <= width
    assert max(map(len, shown(result, width).splitlines())) <= width
    assert (
        "left out for lack of width: seconds, size" in text
        and "seconds" not in text.splitlines()[0]
    )
    for name in (*names, "alexnet", "vgg11", "resnet18"):  # nothing is torn apart
        assert name in text and name in shown(result, width)
    assert "seconds" in result.to_text().splitlines()[0] and "lack of width" not in result.to_text()
    assert str(result) == result.to_text(80)


def test_to_dict_is_json_and_has_what_the_card_reads():
    content = json.loads(json.dumps(evaluation(row(), *BASELINES).to_dict(), allow_nan=False))
    assert content["rows"][0]["mean"] == pytest.approx(0.92)
    assert content["rows"][0]["seeds"] == "1 distillation seed × 2 nets"
    assert content["scores"]["convnet"]["gap_closed"] == pytest.approx(0.6)
    assert content["protocol"]["name"] == "bench"
    assert content["peak_bytes"] == 2**30


def test_what_to_dict_wrote_comes_back():
    result = evaluation(
        row(best_on_test=(0.95, 0.97)), *BASELINES, notes=("n",), environment={"threads": 2}
    )
    again = Evaluation.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again == result
    assert str(again) == str(result)
    with pytest.raises(ConfigError, match="evaluate again"):
        Evaluation.from_dict({"rows": []})


def test_merge_pools_distillation_seeds_and_counts_a_cached_baseline_once():
    first = evaluation(row(), *BASELINES, seeds=(0,), notes=("n",))
    second = evaluation(
        row(accuracies=(0.8, 0.8), source="b"),
        BASELINES[0],
        seeds=(0,),
        notes=("n",),
        peak_bytes=2**31,
    )
    merged = merge([first, second])
    assert merged.small.accuracies == (0.9, 0.94, 0.8, 0.8)
    assert merged.small.seeds == "2 distillation seeds × 2 nets"
    assert merged.row("random").accuracies == (0.8, 0.8)
    assert merged.row("full").seeds == "2 nets"
    assert (merged.seconds, merged.peak_bytes, merged.notes) == (4.0, 2**31, ("n",))
    again = merge([merged, evaluation(row(accuracies=(0.7, 0.7), source="c"))])
    assert again.small.seeds == "3 distillation seeds × 2 nets"


def test_merge_keeps_the_learning_rates_that_were_chosen():
    merged = merge([evaluation(row()), evaluation(row(source="b", lr=(0.03,)))])
    assert merged.small.lr == (0.01, 0.03)
    assert "0.01, 0.03" in str(merged)


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ([], "at least one evaluation"),
        ([evaluation(), evaluation(protocol=PROTOCOLS["quick"])], "one protocol"),
        ([evaluation(), evaluation(data={"name": "mnist5k"})], "one data"),
        ([evaluation(), evaluation(row(images=100, source="b"))], "sets of the same size"),
    ],
)
def test_merge_refuses_what_does_not_belong_together(evaluations, message):
    with pytest.raises(ConfigError, match=message):
        merge(evaluations)


def test_an_unknown_row_is_named():
    with pytest.raises(ConfigError, match="evaluate with that baseline"):
        evaluation().row("full")


def test_across_architectures_the_same_network_is_first_and_the_others_are_summed_up():
    rows = (
        row(model="mlp", accuracies=(0.6, 0.7)),
        row(model="vit", accuracies=(0.8, 0.9)),
        row(accuracies=(0.9, 1.0)),
        row("dm, 8 bits", "variant", (0.1, 0.1)),
        row("random", "baseline", (0.5, 0.5), model="vit"),
    )
    result = evaluation(*rows, student="convnet")
    lines = str(result).split("\n\n")[-1].splitlines()
    assert lines[0].split() == ["set", "convnet", "(same)", "mlp", "vit", "others"]
    assert lines[2].split() == [
        "dm",
        "95.0",
        "±",
        "7.1",
        "65.0",
        "±",
        "7.1",
        "85.0",
        "±",
        "7.1",
        "75.0",
        "±",
        "14.1",
    ]
    assert lines[3].split() == ["random", "-", "-", "50.0", "±", "0.0", "50.0"]
    assert "8 bits" not in "".join(lines)
    again = Evaluation.from_dict(json.loads(json.dumps(result.to_dict())))
    assert str(again) == str(result)
    assert len(result.tables()) == 2
    assert len(evaluation(row(), student="convnet").tables()) == 1
    assert "no column is marked" in str(evaluation(row(), row(model="mlp")))
