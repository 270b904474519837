"""The command line as a user types it."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
import typer
from typer.testing import CliRunner

import kdistill
from kdistill.api.run_file import read_run
from kdistill.cli import app
from kdistill.cli.terminal import FLAGS, as_flags

TINY = ["--set", "iterations=20", "--set", "batch_real=12", "--set", "width=8"]


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_does_not_import_torch():
    code = (
        "import sys, kdistill.cli as c, typer.testing as t; t.CliRunner().invoke(c.app, ['--help'])"
    )
    command = [sys.executable, "-c", code + "; print('torch' in sys.modules)"]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


def test_help_takes_under_half_a_second():
    best = min(_seconds([sys.executable, "-m", "kdistill", "--help"]) for _ in range(4))
    assert best < 0.5 * max(
        1.0, _seconds([sys.executable, "-c", "pass"]) / 0.05
    )  # a slow machine starts Python slowly too


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "distill",
        "evaluate",
        "experts",
        "plan",
        "sweep",
        "compare",
        "methods",
        "export",
        "doctor",
        "bench",
    ],
)
def test_every_command_has_two_examples(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.output
    assert result.output.split("Examples")[1].count("kdistill") >= 2


def test_distill_evaluate_export(tmp_path):
    out = str(tmp_path / "run")
    assert invoke("distill", "digits", "--ipc", "1", "--out", out, *TINY).exit_code == 0
    shown = invoke("evaluate", out, "--protocol", "quick", "--nets", "1", "--baselines", "random")
    assert shown.exit_code == 0
    assert "random" in shown.output
    assert "evaluation" in json.loads((tmp_path / "run/metrics.json").read_text())
    assert invoke("export", out, str(tmp_path / "png")).exit_code == 0
    assert len(list((tmp_path / "png").rglob("*.png"))) == 10
    assert (
        f"wrote {tmp_path / 'd.npz'}\n"
        in invoke("export", out, str(tmp_path / "d"), "--to", "npz").output
    )


def test_the_config_of_an_artefact_runs_it_again(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    assert (
        invoke(
            "distill", "digits", "--ipc", "1", "--seed", "5", "--out", str(first), *TINY
        ).exit_code
        == 0
    )
    assert (
        invoke("distill", "--config", str(first / "config.json"), "--out", str(second)).exit_code
        == 0
    )
    assert (first / "data.safetensors").read_bytes() == (second / "data.safetensors").read_bytes()


def test_a_toml_file_and_an_override(tmp_path):
    (tmp_path / "run.toml").write_text(
        'data = "digits"\nipc = 1\n[options]\niterations = 900\nbatch_real = 12\nwidth = 8\n'
    )
    result = invoke(
        "distill",
        "--config",
        str(tmp_path / "run.toml"),
        "--set",
        "iterations=10",
        "--out",
        str(tmp_path / "o"),
    )
    assert result.exit_code == 0
    assert (
        json.loads((tmp_path / "o/config.json").read_text())["run"]["options"]["iterations"] == 10
    )


@pytest.mark.parametrize("line", ["run = 3", "options = 3", "[run]\noptions = 3"])
def test_a_file_without_tables_is_refused(tmp_path, line):
    (tmp_path / "run.toml").write_text(line)
    result = invoke("distill", "digits", "--config", str(tmp_path / "run.toml"))
    assert result.exit_code == 2
    assert "to be a table, got 3; write its keys below [" in result.output


def test_another_method_or_preset_leaves_the_files_options_out(tmp_path, capsys):
    options = {"iterations": 900, "batch_real": 12}
    (tmp_path / "run.json").write_text(
        json.dumps({"data": "digits", "method": "dm", "options": options})
    )

    def run(**given):
        empty = dict.fromkeys(("data", "method", "ipc", "preset", "seed", "size", "normalisation"))
        return read_run(
            tmp_path / "run.json", {**empty, **given}, ["width=8"]
        ).options, capsys.readouterr().err

    assert run(seed=1) == ({**options, "width": 8}, "")
    assert run(method="dm", preset="fast") == ({**options, "width": 8}, "")
    for given, words in (
        ({"method": "dc"}, "for method dm, not dc"),
        ({"preset": "paper"}, "for preset fast, not paper"),
    ):
        found, said = run(**given)
        assert found == {"width": 8}
        assert words in said and said.count("\n") == 1


def a_saved_set(folder, data, spec):
    config = {"run": {"data": spec}, "source": {"fingerprint": data.fingerprint}}
    images, labels = data.train.images[:20], data.train.labels[:20]
    kdistill.DistilledDataset(
        images=images, labels=labels, classes=data.classes, config=config, transform=data.transform
    ).save_pretrained(folder)


def test_an_evaluation_on_other_data_is_shown_and_not_saved(tmp_path):
    a_saved_set(tmp_path / "set", kdistill.load_data("digits", quiet=True), "digits")
    half = kdistill.load_data("digits", quiet=True)
    torch.save((half.train.images[::2], half.train.labels[::2]), tmp_path / "half.pt")
    brief = [
        "evaluate",
        str(tmp_path / "set"),
        "--protocol",
        "quick",
        "--nets",
        "1",
        "--baselines",
        "random",
        "--models",
        "mlp",
    ]
    shown = invoke(*brief, "--data", str(tmp_path / "half.pt"))
    assert shown.exit_code == 0, shown.output
    assert "random" in shown.output and "not saved in" in shown.output
    assert json.loads((tmp_path / "set/metrics.json").read_text()) == {}
    assert "not saved" not in invoke(*brief).output
    assert "evaluation" in json.loads((tmp_path / "set/metrics.json").read_text())


def test_a_set_made_from_arrays_asks_for_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_saved_set(tmp_path / "set", kdistill.load_data("digits", quiet=True), "arrays")
    result = invoke("evaluate", "set")
    assert result.exit_code == 2
    assert (
        "expected data that can be loaded again, got 'arrays' in set; pass --data" in result.output
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "no/such/folder"], "no/such/folder"),
        (["distill", "mnist5"], "mnist5k"),
        (["distill"], "expected data, got none"),
        (["distill", "digits", "--method", "dmm"], "did you mean 'dm'"),
        (["distill", "digits", "--set", "iteration=3"], "did you mean 'iterations'"),
        (["distill", "digits", "--set", "iterations"], "iterations"),
        (
            ["evaluate", ".", "--data", "digits", "--lr", "small"],
            "lr: expected a number or auto, got 'small'",
        ),
        (["evaluate", "no/such/artefact"], "expected an artefact, got nothing at no/such/artefact"),
        (["export", "no/such/artefact", "x"], "no/such/artefact"),
        (["methods", "dn"], "did you mean 'dm'"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "foo"], "method: expected a known name, got 'foo'"),
        (["--method", "DM"], "did you mean 'dm'"),
        (["--ipc", "-1"], "ipc: expected at least 1 image per class, got -1"),
        (["--threads", "0"], "threads: expected a whole number of at least 1, got 0"),
        (["--threads", "4000"], "on this machine, got 4000"),
        (["--size", "1"], "size: expected a side that convnet takes, got 1; 32 is usual"),
        (["--set", "iteratons=3"], "did you mean 'iterations'"),
        (["--set", "lr"], "write for example --set lr_images=1.0"),
        (["--out", "file/run"], "out: expected a folder that can be written, got file/run"),
        (["--out", "x" * 300], "got: File name too long"),
        (["--device", "3.5"], "device: expected one that this torch can use, got '3.5'"),
        (["--validation", "2"], "validation: expected a share in [0, 1), got 2.0"),
    ],
)
def test_what_a_run_cannot_do_is_said_before_its_images_are_read(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    result = invoke("distill", "no/such/folder", *arguments)  # which would be the next complaint
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experts", "--method", "DATM"], "did you mean 'datm'"),
        (["experts", "--threads", "4000"], "threads: expected at most"),
        (["plan", "--ipc", "0"], "ipc: expected at least 1 image per class, got 0"),
        (["plan", "--size", "1"], "size: expected a side that convnet takes, got 1"),
        (["score", "--set", "epoch=1"], "did you mean 'epochs'"),
        (["score", "--validation", "1"], "validation: expected a share in [0, 1), got 1.0"),
    ],
)
def test_other_commands_check_their_settings_first_too(arguments, message):
    result = invoke(arguments[0], "no/such/folder", *arguments[1:])
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "foo=1"], "options of prior train"),
        (
            ["--size", "33"],
            "expected square images of a side that is a power of two from 8 to 256, got 33x33",
        ),
        (["--threads", "0"], "threads: expected a whole number of at least 1, got 0"),
        (["--out", "full"], "expected a new or empty folder, got full with notes.txt"),
    ],
)
def test_prior_train_checks_its_settings_before_it_reads_images(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("")
    result = invoke("prior", "train", "no/such/folder", *arguments)
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output


def test_evaluate_checks_its_settings_before_it_loads_data(tmp_path):
    a_saved_set(tmp_path / "set", kdistill.load_data("digits", quiet=True), "digits")
    for given, message in (
        (["--models", "convnt"], "did you mean 'convnet'"),
        (["--baselines", "randm"], "did you mean 'random'"),
        (["--protocol", "benc"], "did you mean 'bench'"),
        (["--nets", "0"], "nets"),
    ):
        result = invoke("evaluate", str(tmp_path / "set"), "--data", "no/such/folder", *given)
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output


def test_a_key_in_the_wrong_table_of_a_file_is_sent_to_the_right_one(tmp_path):
    for line, words in (
        ("iterations = 5", "write it below [options]"),
        ("iteratons = 5", "did you mean 'iterations'"),
    ):
        (tmp_path / "run.toml").write_text(f'data = "digits"\n{line}\n')
        result = invoke("distill", "--config", str(tmp_path / "run.toml"))
        assert result.exit_code == 2 and words in " ".join(result.output.split())


def test_bench_runs_from_anywhere(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "kdistill", "bench", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "benchmarks.run" in result.stdout or "--op" in result.stdout


def test_hints_name_flags_on_the_command_line():
    said = "lower ipc=10, try validation=, or lr='auto' and resume=True; /x/out=3/x, n=2"
    shown = "lower --ipc 10, try --validation, or --lr auto and --resume; /x/out=3/x, n=2"
    assert as_flags(said) == shown
    commands = typer.main.get_command(app).commands.values()
    there = {name for command in commands for option in command.params for name in option.opts}
    assert {f"--{name.replace('_', '-')}" for name in FLAGS} - there <= {"--force"}
    assert "hold out less with --validation" in " ".join(
        invoke("distill", "digits", "--ipc", "5000").output.split()
    )


def test_a_time_limit_is_said_and_sigterm_saves(tmp_path, interrupted):
    out = tmp_path / "run"
    shown = invoke(
        "distill", "digits", "--ipc", "1", "--out", str(out), "--max-minutes", "0", "--quiet", *TINY
    )
    assert "of a run that --max-minutes stopped after 10 iterations (--resume goes on)" in " ".join(
        shown.output.split()
    )
    command = ["-m", "kdistill", "distill", "digits", "--ipc", "1", "--out", str(out / "b")]
    command += ["--set", "iterations=1000000", "--set", "width=8"]
    status, said = interrupted(command, out / "b/metrics.jsonl", signal.SIGTERM)
    assert status == 143
    assert "is saved in" in said and "continue with --resume" in said


def test_doctor_names_every_op_and_backend():
    result = invoke("doctor", "--verbose")
    assert result.exit_code == 0
    for word in (
        "torch",
        "class_mean_sqdist",
        "diff_augment",
        "norm_act_pool",
        "reference",
        "triton",
        "cuda",
    ):
        assert word in result.output


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path, interrupted):
    out = tmp_path / "run"
    command = ["-m", "kdistill", "distill", "digits", "--ipc", "1", "--out", str(out)]
    command += ["--set", "iterations=1000000", "--set", "width=8"]
    status, said = interrupted(command, out / "metrics.jsonl")
    assert status == 130
    assert "continue with --resume" in said
    assert (out / "checkpoint.safetensors").exists()
