"""Runs side by side: lines, spreads, intervals, files, and what is left out."""

import csv
import io
import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import kdistill
from kdistill.cli import app
from kdistill.errors import ConfigError, DataError
from kdistill.evaluation import Evaluation, Protocol, Row

TINY = Protocol(name="tiny", nets=2)


def a_run(
    folder,
    *,
    accuracy,
    seed=0,
    method="dm",
    ipc=1,
    options=None,
    baselines=(),
    protocol=TINY,
    models=("convnet",),
):
    """Save an artefact with a made-up evaluation: two nets, 0.01 below and above ``accuracy``."""

    def row(name, kind, model, mean, source):
        return Row(
            name=name, model=model, kind=kind, accuracies=(mean - 0.01, mean + 0.01),
            validation=(mean,), lr=(0.01,), epochs=1, images=3 * ipc, nbytes=1, seconds=1.0,
            unit="distillation seed" if kind == "distilled" else "subset", sources=(source,),
        )  # fmt: skip

    rows = [row(method, "distilled", model, accuracy, f"{folder} {model}") for model in models]
    rows += [row(name, "baseline", models[0], value, f"{name} {seed}") for name, value in baselines]
    found = Evaluation(
        rows=tuple(rows), protocol=protocol, data={"name": "toy", "fingerprint": "f"}, seeds=(seed,)
    )
    run = {
        "data": "toy",
        "method": method,
        "ipc": ipc,
        "seed": seed,
        "preset": "fast",
        "options": options or {"width": 4},
    }
    kdistill.DistilledDataset(
        images=torch.zeros(3 * ipc, 1, 4, 4),
        labels=torch.arange(3).repeat_interleave(ipc),
        classes=("a", "b", "c"),
        config={"run": run, "environment": {"torch": "2"}},
        metrics={
            "distillation": {
                "seconds": 10.0 + seed,
                "peak_bytes": 2**30 * (1 + seed),
                "finished": True,
            }
        },
    ).with_metrics(evaluation=found.to_dict()).save_pretrained(folder)
    return folder


@pytest.fixture
def three_seeds(tmp_path):
    for seed, (low, high) in enumerate([(0.50, 0.56), (0.60, 0.67), (0.70, 0.75)]):
        a_run(
            tmp_path / f"a{seed}",
            accuracy=low,
            seed=seed,
            baselines=[("random", 0.3 + 0.1 * seed), ("full", 0.9)],
        )
        a_run(
            tmp_path / f"b{seed}",
            accuracy=high,
            seed=seed,
            options={"width": 8},
            baselines=[("random", 0.3 + 0.1 * seed)],
        )
    return tmp_path


def test_seeds_become_one_line_and_equal_baselines_count_once(three_seeds):
    found = {entry.name: entry for entry in kdistill.compare(three_seeds).entries}
    assert list(found) == ["dm (width=4)", "dm (width=8)", "random", "full"]
    first, second, chance, full = found.values()
    assert (
        first.mean == pytest.approx(0.6)
        and first.std == pytest.approx(0.1)
        and first.seeds == "3 × 2"
    )
    assert chance.seeds == full.seeds == "3 × 2"
    assert (first.seconds, first.peak_bytes, chance.seconds) == (11.0, 3 * 2**30, None)
    assert first.against is None
    assert second.against.test == "paired t"
    assert second.against.mean == pytest.approx(0.06)
    assert second.against.is_clear  # 0.06 ± 0.0248, though each line spreads by 0.1
    assert second.against.high - second.against.mean == pytest.approx(4.302653 * 0.01 / 3**0.5)


def test_the_reference_can_be_named(three_seeds):
    found = kdistill.compare([three_seeds], against="random")
    assert found.entries[0].name == "random"
    assert found.entries[1].against.mean == pytest.approx(0.2)
    with pytest.raises(
        ConfigError, match=r"expected the name of a line, got 'randon'; did you mean 'random'"
    ):
        kdistill.compare(three_seeds, against="randon")


def test_networks_and_images_per_class_are_compared_apart(tmp_path):
    for ipc in (1, 2):
        for seed in (0, 1):
            a_run(
                tmp_path / f"{ipc}{seed}",
                accuracy=0.5 + 0.1 * ipc,
                seed=seed,
                ipc=ipc,
                models=("convnet", "mlp"),
            )
            a_run(
                tmp_path / f"m{ipc}{seed}",
                accuracy=0.6,
                seed=seed,
                ipc=ipc,
                method="mtt",
                models=("convnet", "mlp"),
            )
    found = kdistill.compare(tmp_path)
    assert [(e.ipc, e.model, e.name, e.against is None) for e in found.entries] == [
        (ipc, model, name, name == "dm")
        for ipc in (1, 2)
        for model in ("convnet", "mlp")
        for name in ("dm", "mtt")
    ]
    assert "ipc" in str(found).splitlines()[0] and "network" in str(found).splitlines()[0]


def test_every_part_of_a_divided_table_names_the_line(tmp_path):
    networks = ("convnet", "a-network-of-my-own-with-a-long-name")
    for n, (ipc, seed) in enumerate([(1, 10), (1, 11), (10, 10), (10, 12)]):
        for width in (64, 128):
            options = {"width": width, "strategy": "color_crop_cutout_scale_rotate"[: width // 4]}
            a_run(
                tmp_path / f"{n} {width}",
                accuracy=0.5,
                seed=seed,
                ipc=ipc,
                options=options,
                models=networks,
            )
    text = str(kdistill.compare(tmp_path))
    heads = [line for line in text.splitlines() if line.startswith("ipc  ")]
    assert len(heads) > 1 and all("network" in line and "set" in line for line in heads)
    assert max(len(line) for line in text.splitlines() if "  " in line) <= 80


def test_one_seed_gets_no_test(tmp_path):
    found = kdistill.compare(
        [a_run(tmp_path / "a", accuracy=0.5), a_run(tmp_path / "b", accuracy=0.6, method="mtt")]
    )
    assert found.entries[1].against.test == "none"
    assert "+10.00" in str(found) and "low, high" not in str(found)
    assert any("one seed on a side" in note for note in found.notes)


def test_the_notes_say_which_test_and_how_few_seeds(three_seeds):
    text = str(kdistill.compare(three_seeds))
    for words in (
        "3 × 2 nets",
        "95 % interval, paired t over 3 seeds",
        "not corrected for 3 comparisons",
        "few seeds",
        "[low, high]",
    ):
        assert words in text


def test_networks_that_did_not_train_are_marked(tmp_path):
    small = kdistill.DistilledDataset.from_pretrained(a_run(tmp_path / "a", accuracy=0.5))
    record = small.metrics["evaluation"]
    record["rows"][0]["untrained"] = 2
    small.with_metrics(evaluation=record).save_pretrained(tmp_path / "a")
    text = str(kdistill.compare(tmp_path))
    assert "50.00†" in text and "dm (convnet: 2 of 2)" in text


def test_a_pipe_gets_every_column_and_one_line_per_row(three_seeds):
    shown = CliRunner().invoke(app, ["compare", str(three_seeds)])
    assert any(
        line.split()[:2] == ["dm", "(width=8)"] and line.endswith("3.00 GiB")
        for line in shown.output.splitlines()
    )
    assert "lack of width" not in shown.output
    assert (
        max(
            len(line)
            for line in str(kdistill.compare(three_seeds)).splitlines()
            if set(line) == {"-"}
        )
        <= 80
    )


def test_files(three_seeds):
    found = kdistill.compare(three_seeds)
    markdown = found.save(three_seeds / "t.md").read_text()
    assert (
        "| dm (width=8) | 66.00 ± 9.54 | 66.00 | +6.00 [+3.52, +8.48]* | 11.0 s | 3.00 GiB |"
        in markdown.splitlines()
    )
    rows = list(csv.DictReader(io.StringIO(found.save(three_seeds / "t.csv").read_text())))
    assert [row["set"] for row in rows] == [entry.name for entry in found.entries]
    assert float(rows[1]["low"]) == pytest.approx(3.516, abs=1e-3) and rows[0]["low"] == ""
    entries = json.loads(found.save(three_seeds / "t.json").read_text())["entries"]
    assert entries[1]["test_of_seed"] == {"0": 0.56, "1": 0.67, "2": 0.75}
    with pytest.raises(ConfigError, match=r"ends in \.md, \.csv, \.json, got t\.txt"):
        found.save(three_seeds / "t.txt")


def test_what_cannot_be_used_is_named(tmp_path):
    a_run(tmp_path / "good", accuracy=0.5)
    small = kdistill.DistilledDataset.from_pretrained(a_run(tmp_path / "raw", accuracy=0.5))
    replace(small, metrics={"distillation": {"finished": False}}).save_pretrained(tmp_path / "raw")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/checkpoint.safetensors").write_text("")
    record = {
        "runs": [{"folder": "lost", "variant": "x", "status": "failed", "reason": "out of memory"}]
    }
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    notes = "\n".join(kdistill.compare(tmp_path).notes)
    assert f"not evaluated: {tmp_path / 'raw'}" in notes
    assert f"not finished: {tmp_path / 'cut'}" in notes
    assert "failed: lost: out of memory" in notes


def test_different_environments_are_said(tmp_path):
    small = kdistill.DistilledDataset.from_pretrained(a_run(tmp_path / "a", accuracy=0.5))
    other = replace(
        small,
        config={
            **small.config,
            "run": {**small.config["run"], "seed": 1},
            "environment": {"torch": "3"},
        },
    )
    other.save_pretrained(tmp_path / "b")
    assert any(
        "different environments (torch)" in note for note in kdistill.compare(tmp_path).notes
    )


def test_two_runs_of_one_seed_are_refused(tmp_path):
    a_run(tmp_path / "a", accuracy=0.5), a_run(tmp_path / "b", accuracy=0.6)
    with pytest.raises(
        DataError, match=r"one run of dm with seed 0, got two .*; name one of the folders"
    ):
        kdistill.compare(tmp_path)
    assert (
        len(kdistill.compare([tmp_path / "a", tmp_path / "a"]).entries) == 1
    )  # the same folder twice is one run


def test_nothing_to_compare(tmp_path):
    with pytest.raises(
        DataError, match=r"expected evaluated runs, got none in .*run kdistill evaluate"
    ):
        kdistill.compare(tmp_path)
    with pytest.raises(DataError, match="expected a folder, got nothing at"):
        kdistill.compare(tmp_path / "no")


def test_names_of_a_sweep_are_the_lines(tmp_path):
    a_run(tmp_path / "z", accuracy=0.5), a_run(tmp_path / "a", accuracy=0.6, options={"width": 8})
    rows = [
        {"folder": name, "variant": variant, "status": "there", "reason": ""}
        for name, variant in (("z", "plain"), ("a", "+ x"))
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": rows}))
    assert [entry.name for entry in kdistill.compare(tmp_path).entries] == ["plain", "+ x"]


def test_the_command(three_seeds):
    table = three_seeds / "table.md"
    shown = CliRunner().invoke(
        app, ["compare", str(three_seeds), "--against", "random", "--to", str(table)]
    )
    assert shown.exit_code == 0, shown.output
    assert "[low, high]" in shown.output  # no markup of the terminal
    assert table.read_text().count("| random |") == 1
    refused = CliRunner().invoke(app, ["compare", str(three_seeds / "no")])
    assert refused.exit_code == 2 and "check the path" in refused.output
