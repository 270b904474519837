"""The script that checks a GPU: stages end in time, none stops the next, the status is honest."""

import importlib
import json
import os
import subprocess
import sys
import time

import pytest

from tests import gpu_check
from tests.gpu_check import Outcome, Stage
from tests.gpu_suite.report import ROWS, Report, read_rows

SLEEPERS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_the_plan_fits_into_its_time_and_every_stage_is_there(capsys):
    assert gpu_check.main(["--dry-run"]) == 0
    listed = capsys.readouterr().out
    for stage in gpu_check.STAGES:
        assert f"{stage.name:<14}{stage.seconds:4} s" in listed
        assert importlib.util.find_spec(f"tests.gpu_suite.{stage.module or stage.name}"), stage
    for part in "AB":
        assert (
            sum(s.seconds for s in gpu_check.STAGES if part in s.parts)
            <= gpu_check.PART_SECONDS
            <= 9 * 60
        )


def test_a_stage_is_cut_off_with_all_that_it_started(tmp_path):
    with (tmp_path / "log").open("w+") as log:
        began = time.monotonic()
        assert (
            gpu_check.limited([sys.executable, "-c", SLEEPERS], 0.5, log, {})
            == "failed: cut off after 0 s"
        )
        assert time.monotonic() - began < 10
        log.seek(0)
        pid = int(log.read())
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    assert state == "" or state.startswith("Z")


def outcome(name, status="ok", *rows):
    return Outcome(
        Stage(name, "A", 5, ""),
        status,
        0.1,
        [dict(zip(("what", "status"), row, strict=True)) for row in rows],
    )


def checked(monkeypatch, tmp_path, outcomes, device):
    made = iter(outcomes)
    monkeypatch.setattr(gpu_check, "STAGES", [o.stage for o in outcomes])
    monkeypatch.setattr(gpu_check, "run", lambda stage, seconds, options, device: next(made))
    return gpu_check.main(["--out", str(tmp_path), "--part", "A", "--device", device])


def test_a_failure_does_not_stop_the_next_and_is_the_exit_status(monkeypatch, tmp_path, capsys):
    outcomes = [
        outcome("environment"),
        outcome(
            "smoke",
            "failed: see its rows",
            ("some_op cuda", "failed: ToleranceError: off"),
            ("other", "ok"),
        ),
        outcome("ceilings"),
    ]
    assert checked(monkeypatch, tmp_path, outcomes, "cuda") == 1
    said = capsys.readouterr().out
    assert "    some_op cuda: failed: ToleranceError: off\n" in said
    assert "3 stages on cuda, 1 failed: smoke\n" in said
    assert (tmp_path / "summary.txt").read_text() in said.replace(
        f"rows and logs: {tmp_path}\n", ""
    )


@pytest.mark.parametrize(("device", "status"), [("cuda", 0), ("cpu", gpu_check.NO_GPU)])
def test_without_a_gpu_nothing_is_claimed(monkeypatch, tmp_path, capsys, device, status):
    outcomes = [outcome("environment"), outcome("gpu_tests", "skipped: no GPU that torch can use")]
    assert checked(monkeypatch, tmp_path, outcomes, device) == status
    said = capsys.readouterr().out
    assert "skipped: gpu_tests" in said
    assert ("there was no GPU: nothing is said about one" in said) == (device == "cpu")


def test_a_part_that_runs_out_of_time_says_what_it_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "PART_SECONDS", 0)
    assert checked(monkeypatch, tmp_path, [outcome("environment"), outcome("smoke")], "cuda") == 1
    assert "failed: no time was left for it" in capsys.readouterr().out


def test_a_stage_runs_as_a_process_and_its_rows_are_read(tmp_path):
    Report(tmp_path, "earlier").row("not of this stage", "failed: long ago")
    options = type("Options", (), {"out": tmp_path})
    outcome = gpu_check.run(gpu_check.STAGES[0], 100, options, "cpu")
    assert outcome.status == "ok"
    assert gpu_check.device_in(outcome) == "cpu"
    assert {row["stage"] for row in outcome.rows} == {"environment"}
    assert "environment: device: ok" in (tmp_path / "log.txt").read_text()


def test_stages_look_for_programs_of_cuda_where_its_installer_puts_them(monkeypatch, tmp_path):
    environments = []
    monkeypatch.setattr(
        gpu_check,
        "limited",
        lambda command, seconds, log, environment: environments.append(environment) or "ok",
    )
    gpu_check.run(gpu_check.STAGES[0], 100, type("Options", (), {"out": tmp_path}), "cpu")
    assert environments[0]["PATH"].split(os.pathsep)[-1] == "/usr/local/cuda/bin"


def test_an_environment_that_cannot_be_read_does_not_make_a_gpu_a_cpu(monkeypatch, tmp_path):
    devices = []

    def run(stage, seconds, options, device):
        devices.append(device)
        return outcome(
            stage.name, "failed: cut off after 60 s" if stage.name == "environment" else "ok"
        )

    monkeypatch.setattr(
        gpu_check, "STAGES", [Stage("environment", "A", 5, ""), Stage("smoke", "A", 5, "")]
    )
    monkeypatch.setattr(gpu_check, "run", run)
    assert gpu_check.main(["--out", str(tmp_path), "--part", "A"]) == 1
    assert devices == ["auto", "auto"]


def test_an_unknown_stage_is_named(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "smok"])
    assert (
        "--only: expected a stage, got 'smok'; one of environment, build" in capsys.readouterr().err
    )


def test_a_line_that_a_kill_cut_off_is_no_row(tmp_path):
    report = Report(tmp_path, "smoke")
    with report.trying("one", size=3) as values:
        values["ms"] = 1.5
    with report.trying("two"):
        raise RuntimeError("CUDA error\nat some line")
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"stage": "smoke", "wh')
    report.row("three")
    first, second, third = read_rows(tmp_path)
    assert third["what"] == "three"
    assert (first["status"], first["size"], first["ms"]) == ("ok", 3, 1.5)
    assert second["status"] == "failed: RuntimeError: CUDA error at some line"
    assert report.failures == 1
    assert json.loads((tmp_path / ROWS).read_text().splitlines()[0]) == first
