"""Snapshots of a run: they change nothing, survive interrupts, are bounded, and are tested."""

import json
import os
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import kdistill
from kdistill.api.evaluate_snapshots import SnapshotEvaluation, SnapshotRow
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.snapshots import snapshot_iterations
from kdistill.artifacts.tensors import decode, digest, encode
from kdistill.cli import app
from kdistill.errors import ConfigError, DataError
from kdistill.evaluation import PROTOCOLS

SMALL = {"iterations": 25, "width": 4, "batch_real": 8}
QUICK = replace(PROTOCOLS["quick"], width=4, epochs=5, nets=2)


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


def run(digits, out, **given):
    options = {**SMALL, **given.pop("options", {})}
    return kdistill.distill(digits, method="dm", ipc=1, options=options, out=out, **given)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "snapshots").iterdir()}


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshots") / "run"
    run(digits, folder, snapshot_every=7)
    return folder


def test_a_run_has_the_same_bits_with_and_without(digits, finished, tmp_path):
    run(digits, tmp_path / "plain")
    for name in ("data.safetensors", "config.json"):
        assert (finished / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert not (tmp_path / "plain" / "snapshots").exists()


def test_a_snapshot_is_the_set_of_a_shorter_run(digits, finished):
    assert snapshot_iterations(finished) == [7, 14, 21]
    shorter = run(digits, None, options={"iterations": 14})
    at = DistilledDataset.from_pretrained(finished, iteration=14)
    assert torch.equal(at.images, shorter.images)
    assert at.classes == shorter.classes
    assert at.metrics == {"distillation": {"iterations": 14, "snapshot": True}}


def test_a_resumed_run_keeps_its_snapshots_and_makes_the_rest(digits, finished, tmp_path):
    def stop(progress):
        if progress.iteration == 14:  # between the checkpoint and the snapshot of one iteration
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path, snapshot_every=7, callbacks=[stop])
    assert snapshot_iterations(tmp_path) == [7]
    with pytest.raises(DataError):  # there is no set yet that it belongs to
        DistilledDataset.from_pretrained(tmp_path, iteration=7)
    run(digits, tmp_path, snapshot_every=7, resume=True)
    assert bytes_of(tmp_path) == bytes_of(finished)
    run(digits, tmp_path, resume=True)  # finished: nothing to do, nothing is lost
    assert bytes_of(tmp_path) == bytes_of(finished)


def test_a_new_run_removes_the_snapshots_of_the_old_one(digits, tmp_path):
    run(digits, tmp_path, snapshot_every=7)
    (tmp_path / "snapshots" / "mine.txt").write_text("stays")
    run(digits, tmp_path, snapshot_every=20, seed=1, force=True)
    assert snapshot_iterations(tmp_path) == [20]
    assert (tmp_path / "snapshots" / "mine.txt").exists()


def test_learned_labels_and_rates_are_kept_too(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))
    options = {
        "iterations": 4, "syn_steps": 2, "max_start_epoch": 1, "first_max_start_epoch": None,
        "num_experts": 1, "width": 4, "batch_syn": None, "skip_move": None,
        "skip_above": None, "lr_init": 0.02,
    }  # fmt: skip
    last = kdistill.distill(
        digits, method="datm", ipc=1, options=options, out=tmp_path / "run", snapshot_every=2
    )
    at = DistilledDataset.from_pretrained(tmp_path / "run", iteration=2)
    assert at.learned_lr not in (None, last.learned_lr)
    assert at.label_logits.shape == last.label_logits.shape
    assert not torch.equal(at.label_logits, last.label_logits)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"snapshot_every": 0},
            "snapshot_every: expected at least 1 iteration between snapshots, got 0",
        ),
        ({"snapshot_every": 2.5}, "snapshot_every: expected at least 1"),
        (
            {"snapshot_every": 1, "options": {"iterations": 1000}},
            "at most 100 snapshots of 1000 iterations, got 999; take 10 or",
        ),
    ],
)
def test_snapshots_are_bounded(digits, tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        run(digits, tmp_path, **given)


def test_an_iteration_without_a_snapshot_is_refused_with_those_that_there_are(finished):
    with pytest.raises(ConfigError, match=r"holds one \(7, 14, 21\), got 8"):
        DistilledDataset.from_pretrained(finished, iteration=8)


def test_a_damaged_or_foreign_snapshot_is_refused(digits, tmp_path):
    run(digits, tmp_path / "a", snapshot_every=20)
    run(digits, tmp_path / "b", snapshot_every=20, seed=1)
    mine, theirs = (tmp_path / name / "snapshots" / "00000020.safetensors" for name in "ab")
    whole = mine.read_bytes()
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises(
        DataError, match=r"expected a snapshot of the run in .*, got one of another run"
    ):
        DistilledDataset.from_pretrained(tmp_path / "a", iteration=20)
    mine.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="it was damaged"):
        DistilledDataset.from_pretrained(tmp_path / "a", iteration=20)
    tensors, about = decode(whole, mine)
    del about["sha256"]
    strange = {"images": tensors["images"][:3], "learned_lr": torch.ones(3)}
    mine.write_bytes(encode(strange, {**about, "sha256": digest(strange, about)}))
    with pytest.raises(DataError, match="expected the tensors of a snapshot"):
        DistilledDataset.from_pretrained(tmp_path / "a", iteration=20)
    for make in (
        lambda: mine.write_bytes(whole + bytes(1 << 17)),
        lambda: os.mkfifo(mine),
        lambda: mine.symlink_to(theirs),
    ):
        mine.unlink()
        make()
        with pytest.raises(
            DataError,
            match=r"expected a snapshot, got: "
            r"(a symbolic link|a named pipe|[0-9,]+ bytes, more than)",
        ):
            DistilledDataset.from_pretrained(tmp_path / "a", iteration=20)
    mine.unlink()
    mine.parent.rmdir()
    mine.parent.symlink_to(tmp_path / "b" / "snapshots")
    with pytest.raises(DataError, match="got a link to another place"):
        run(digits, tmp_path / "a", snapshot_every=20, force=True)
    assert theirs.exists()


# ---- which was best


def rows(*accuracies, validation=True):
    return tuple(
        SnapshotRow(
            iteration=10 * (i + 1),
            validation=(held, held) if validation else (),
            accuracies=(tested, tested),
        )
        for i, (held, tested) in enumerate(accuracies)
    )


def judged(*accuracies, validation=True):
    return SnapshotEvaluation(
        rows=rows(*accuracies, validation=validation),
        protocol=QUICK,
        model="convnet",
        data="x",
        seed=0,
    )


def test_the_best_are_named_and_the_first_of_equals_wins():
    found = judged((0.5, 0.6), (0.7, 0.8), (0.7, 0.9), (0.6, 0.9))
    assert (found.best_on_validation, found.best_on_test) == (20, 30)
    lines = str(found).splitlines()
    assert lines[2:6] == [
        "       10  50.00 ± 0.00  60.00 ± 0.00",
        "       20  70.00 ± 0.00  80.00 ± 0.00  best on validation",
        "       30  70.00 ± 0.00  90.00 ± 0.00  best on test",
        "       40  60.00 ± 0.00  90.00 ± 0.00  last",
    ]
    assert "over the iterations of the distillation" in str(found)
    assert all(len(line) <= 80 for line in lines)


def test_nothing_is_chosen_on_validation_images_where_none_were_held_out():
    found = judged((0.5, 0.6), (0.7, 0.8), validation=False)
    assert (found.best_on_validation, found.best_on_test) == (None, 20)
    assert "best on validation" not in str(found).splitlines()[3]
    assert "the run held no images out" in str(found)


def test_snapshots_are_evaluated_like_sets(digits, finished):
    found = kdistill.evaluate_snapshots(finished, digits, protocol=QUICK)
    assert [row.iteration for row in found.rows] == [7, 14, 21, 25]
    plain = kdistill.evaluate(str(finished), digits, protocol=QUICK, baselines=())
    assert found.rows[-1].accuracies == plain.rows[0].accuracies
    assert found.rows[-1].validation == plain.rows[0].validation
    assert found.rows[0] != found.rows[-1]
    assert json.loads(json.dumps(found.to_dict()))["best_on_test"] == found.best_on_test


def test_a_run_without_a_validation_part_has_no_validation_column(digits, tmp_path):
    run(digits, tmp_path, snapshot_every=20, validation=0.0)
    found = kdistill.evaluate_snapshots(tmp_path, digits, protocol=QUICK, nets=1)
    assert found.best_on_validation is None
    assert [row.validation for row in found.rows] == [(), ()]


def test_a_run_without_snapshots_is_refused(digits, tmp_path):
    run(digits, tmp_path)
    with pytest.raises(
        ConfigError, match=r"expected snapshots in .*, got none; distill with --snapshot-every"
    ):
        kdistill.evaluate_snapshots(tmp_path, digits)


def test_the_command_line_prints_a_row_per_snapshot_and_keeps_the_numbers(tmp_path):
    out = str(tmp_path / "run")
    settings = [
        "--set",
        "iterations=25",
        "--set",
        "width=4",
        "--set",
        "batch_real=8",
        "--snapshot-every",
        "10",
    ]
    made = CliRunner().invoke(app, ["distill", "digits", "--ipc", "1", "--out", out, *settings])
    assert made.exit_code == 0, made.output
    shown = CliRunner().invoke(
        app, ["evaluate", out, "--snapshots", "--protocol", "quick", "--nets", "1"]
    )
    assert shown.exit_code == 0, shown.output
    assert [
        line.split()[0]
        for line in shown.output.splitlines()
        if line.strip()[:2] in ("10", "20", "25")
    ] == ["10", "20", "25"]
    assert "best on test" in shown.output
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    kept = DistilledDataset.from_pretrained(out).metrics["snapshots"]
    assert [row["iteration"] for row in kept["rows"]] == [10, 20, 25]
    assert kept["best_on_validation"] in (10, 20, 25)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--models", "convnet,mlp"], "got the networks convnet, mlp"),
        (["--lr", "auto"], "got lr auto"),
    ],
)
def test_the_command_line_refuses_what_snapshots_cannot_have(finished, given, message):
    shown = CliRunner().invoke(app, ["evaluate", str(finished), "--snapshots", *given])
    assert shown.exit_code == 2
    assert message in " ".join(shown.output.split())
