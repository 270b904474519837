"""A run that evaluates its set on its way: the same bits, one curve, nothing measured twice."""

import json
import logging
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import kdistill
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.conclusions import snapshot_conclusions
from kdistill.cli import app
from kdistill.data import Split
from kdistill.errors import ConfigError, DataError
from kdistill.evaluation import PROTOCOLS

SMALL = {"iterations": 12, "width": 4, "batch_real": 8}
QUICK = replace(PROTOCOLS["quick"], width=4, epochs=3)
ASKED = {"evaluate_every": 5, "evaluate_protocol": QUICK, "evaluate_nets": 2}


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


def run(digits, out, **given):
    return kdistill.distill(
        digits, method="dm", ipc=1, options=SMALL, out=out, quiet=True, **{**ASKED, **given}
    )


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve") / "run"
    run(digits, folder)
    return folder


def measured(folder):
    """Return the files beside the snapshots, which hold the seconds too."""
    return {path.name: path.read_text() for path in (folder / "snapshots").glob("*.json")}


def curve(folder, *, seconds=False):
    """Return what the artefact records of its snapshots."""
    curve = DistilledDataset.from_pretrained(folder).metrics["snapshots"]
    for row in curve["rows"]:
        assert row["seconds"] > 0.0
        if not seconds:
            del row["seconds"]
    return curve


def test_the_run_has_the_same_bits_with_and_without(digits, finished, tmp_path):
    run(digits, tmp_path, evaluate_every=None, evaluate_protocol=None, evaluate_nets=None)
    for name in ("data.safetensors", "config.json"):
        assert (finished / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_curve_is_what_an_evaluation_of_the_snapshots_gives(digits, finished, tmp_path):
    run(digits, tmp_path, snapshot_every=5, **dict.fromkeys(ASKED))
    assert not measured(tmp_path)
    later = kdistill.evaluate_snapshots(tmp_path, digits, protocol=QUICK, nets=2).to_dict()
    rows = [{**row, "seconds": 0.0} for row in later["rows"]]
    earlier = curve(finished)
    ours = [{**row, "seconds": 0.0} for row in earlier["rows"]]
    assert json.loads(json.dumps({**later, "rows": rows})) == {**earlier, "rows": ours}
    assert [row["iteration"] for row in rows] == [5, 10, 12]
    assert earlier["best_on_test"] in (5, 10, 12) and earlier["last"] == 12
    assert earlier["best_on_validation"] in (5, 10, 12)
    card = (finished / "README.md").read_text()
    assert "Over the iterations of the distillation" in card
    assert "chosen on the test images as papers do" in card


def test_what_a_run_measured_is_not_measured_again(digits, finished):
    found = kdistill.evaluate_snapshots(finished, digits, protocol=QUICK, nets=2)
    assert [row.seconds for row in found.rows] == [
        row["seconds"] for row in curve(finished, seconds=True)["rows"]
    ]
    other = kdistill.evaluate_snapshots(finished, digits, protocol=QUICK, nets=1, seed=1)
    assert [len(row.accuracies) for row in other.rows] == [1, 1, 1]


def test_a_stopped_run_goes_on_with_its_curve(digits, finished, tmp_path):
    def stop(progress):
        if progress.iteration == 10:  # before this iteration's snapshot is evaluated
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path, callbacks=[stop])
    first = measured(tmp_path)
    assert list(first) == ["00000005.json"]
    run(digits, tmp_path, resume=True)
    assert curve(tmp_path) == curve(finished)
    everything = measured(tmp_path)
    assert everything["00000005.json"] == first["00000005.json"]
    again = run(digits, tmp_path, resume=True)  # finished: nothing to do, nothing is lost
    assert measured(tmp_path) == everything
    assert again.metrics["snapshots"]["last"] == 12
    for name in ("data.safetensors", "config.json"):
        assert (finished / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_run_whose_time_is_up_records_what_it_reached(digits, finished, tmp_path):
    run(digits, tmp_path, max_minutes=0.0)
    assert [row["iteration"] for row in curve(tmp_path)["rows"]] == [5]
    run(digits, tmp_path, resume=True)
    assert curve(tmp_path) == curve(finished)


def test_an_artefact_without_its_curve_gets_it_on_resuming(digits, finished, tmp_path):
    run(digits, tmp_path, snapshot_every=5, **dict.fromkeys(ASKED))
    run(digits, tmp_path, resume=True)
    assert curve(tmp_path) == curve(finished)


def test_files_that_cannot_be_used_are_measured_again(digits, finished, tmp_path, caplog):
    run(digits, tmp_path)
    before = curve(tmp_path)
    damaged, foreign, edited = (
        tmp_path / "snapshots" / f"{iteration:08d}.json" for iteration in (5, 10, 12)
    )
    damaged.write_text("{")
    content = json.loads(foreign.read_text())
    foreign.write_text(json.dumps({**content, "identity": "of another set"}))
    content = json.loads(edited.read_text())
    edited.write_text(json.dumps({**content, "facts": {**content["facts"], "accuracies": [2, 2]}}))
    with caplog.at_level(logging.WARNING, "kdistill"):
        run(digits, tmp_path, resume=True)
    assert curve(tmp_path) == before
    assert [record.getMessage() for record in caplog.records] == [
        f"{damaged}: expected valid JSON, got: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1); the set is evaluated again"
    ]


def test_networks_that_blow_up_do_not_end_the_run(digits, finished, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "kdistill"):
        small = run(digits, tmp_path, evaluate_protocol=replace(QUICK, lr=1e30))
    assert (tmp_path / "data.safetensors").read_bytes() == (
        finished / "data.safetensors"
    ).read_bytes()
    assert "snapshots" not in small.metrics
    messages = [record.getMessage() for record in caplog.records]
    assert [text.split(":")[0] for text in messages] == [
        "iteration 5 is left out",
        "iteration 10 is left out",
        "the set is finished, but not evaluated",
    ]


def test_without_held_out_images_no_iteration_is_best_on_validation(digits, tmp_path):
    run(digits, tmp_path, validation=0.0, evaluate_nets=1)
    assert curve(tmp_path)["best_on_validation"] is None
    assert "best on validation" not in (tmp_path / "README.md").read_text()
    run(digits, tmp_path, validation=0.0, force=True, **dict.fromkeys(ASKED))
    assert not measured(tmp_path)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"snapshot_every": 3}, ConfigError, "evaluate_every: expected no other interval"),
        ({"evaluate_every": 0}, ConfigError, "evaluate_every: expected at least 1 iteration"),
        ({"evaluate_every": None}, ConfigError, "evaluate_protocol: expected an interval"),
        ({"out": None}, ConfigError, "evaluate_every: expected a folder to keep snapshots in"),
        ({"evaluate_protocol": "quik"}, ConfigError, "protocol: expected a known name, got 'quik'"),
        ({"evaluate_nets": 0}, ConfigError, "protocol.nets: expected at least 1"),
        (
            {"evaluate_protocol": replace(QUICK, precision="tf32")},
            ConfigError,
            "expected fp32 or bf16 on the CPU",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_once(digits, tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        run(digits, **{"out": tmp_path / "run", **given})
    assert not (tmp_path / "run").exists()


def test_data_without_test_images_is_refused_at_once(digits, tmp_path):
    none = replace(digits, test=Split(digits.test.images[:0], digits.test.labels[:0]))
    with pytest.raises(DataError, match="expected test images in digits, got none"):
        run(none, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_which_iterations_were_best(tmp_path):
    out, sets = tmp_path / "run", [f"{name}={value}" for name, value in SMALL.items()]
    arguments = ["distill", "digits", "--ipc", "1", "--out", str(out), "--evaluate-every", "5"]
    arguments += ["--evaluate-nets", "1", *(word for text in sets for word in ("--set", text))]
    made = CliRunner().invoke(app, arguments)
    assert made.exit_code == 0, made.output
    assert "best on validation: iteration" in made.stdout
    assert "compare it with papers only" in " ".join(made.stdout.split())
    assert all(len(line) <= 80 for line in made.stdout.splitlines()[:-1])  # the last has a path
    assert "iteration 10: validation" in made.stderr
    refused = CliRunner().invoke(app, [*arguments, "--snapshot-every", "5", "--force"])
    assert refused.exit_code == 2
    assert "got --snapshot-every 5; leave it out" in " ".join(refused.output.split())


def test_sentences_are_made_of_whatever_a_file_holds():
    rows = [{"iteration": 5, "validation": [0.5, 0.6], "accuracies": [0.4]}, {"iteration": "x"}, 3]
    assert snapshot_conclusions({"rows": rows, "best_on_validation": 5, "best_on_test": 7}) == [
        "best on validation: iteration 5 (validation 55.00 %, test 40.00 %), chosen on images that "
        "the run held out"
    ]
    for junk in (None, [], {"rows": 3, "last": 1}, {"rows": rows, "last": [5]}):
        assert snapshot_conclusions(junk) == []
