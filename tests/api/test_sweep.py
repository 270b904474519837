"""Grids of runs: what they expand to, and that a killed, failed or grown sweep goes on."""

import json
import signal
import time
from pathlib import Path

import pytest

import kdistill
from kdistill.api.grid import Grid, plan_runs
from kdistill.api.sweep import RECORD, read_record
from kdistill.errors import ConfigError, DataError
from kdistill.evaluation import Protocol
from kdistill.files import locked
from tests.prepared_process import PreparedPython, run_prepared

TINY = Protocol(name="tiny", width=4, epochs=2, full_epochs=1, nets=2, eight_bit=False)
GRID = {
    "data": "digits",
    "ipc": 1,
    "seed": [0, 1],
    "options": {"iterations": 5, "width": 4, "batch_real": 8},
    "evaluation": {"protocol": TINY, "baselines": "random"},
}


def grid(**changes):
    return {**GRID, **changes, "options": {**GRID["options"], **changes.get("options", {})}}


def contents(out: Path):
    return {path: path.stat().st_mtime_ns for path in sorted(out.glob("*/data.safetensors"))}


def test_a_grid_is_every_combination_seeds_slowest():
    runs = plan_runs(
        Grid(**grid(ipc=[1, 2], method=["dm", "dm"], options={"lr_images": [1.0, 10.0]})), Path("x")
    )
    points = [(run.config.seed, run.config.ipc, run.config.options["lr_images"]) for run in runs]
    assert points == [
        (s, i, lr) for s in (0, 1) for i in (1, 2) for lr in (1.0, 10.0)
    ]  # the method twice is one method
    assert len({run.folder for run in runs}) == 8


def test_variants_change_what_the_grid_says():
    exact, truncated = (
        {"name": "exact"},
        {"name": "truncated", "options": {"grad_mode": "tesla"}, "seed": [0, 1, 2]},
    )
    given = {**GRID, "method": "mtt", "options": {"iterations": 1}, "variant": [exact, truncated]}
    runs = plan_runs(kdistill.config.from_mapping(Grid, given), Path("x"))
    assert [(run.variant, run.config.seed) for run in runs] == [
        ("exact", 0), ("truncated", 0), ("exact", 1), ("truncated", 1), ("truncated", 2),
    ]  # fmt: skip
    assert runs[1].config.options == {"iterations": 1, "grad_mode": "tesla"}


def test_a_larger_grid_keeps_the_folders():
    small, large = (
        plan_runs(Grid(**grid(**more)), Path("x"))
        for more in ({}, {"seed": [2, 0, 1], "ipc": [1, 5]})
    )
    assert {run.folder for run in small} <= {run.folder for run in large}
    other = plan_runs(Grid(**grid(options={"lr_images": 2.0})), Path("x"))
    assert not {run.folder for run in small} & {run.folder for run in other}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": []}, "expected data, got none"),
        ({"seed": []}, "expected a value for seed, got an empty list"),
        ({"method": ["dm", "dmm"]}, "did you mean 'dm'"),
        ({"seeds": [1]}, "did you mean 'seed'"),
        ({"options": {"iteration": 3}}, "did you mean 'iterations'"),
        ({"ipc": 0}, "at least 1 image per class"),
        ({"ipc": "many"}, "sweep.ipc: expected an integer"),
        ({"evaluation": {"protocol": "bensh"}}, "did you mean 'bench'"),
        ({"evaluation": {"baselines": ["randon"]}}, "random"),
        ({"evaluation": {"models": "resnet"}}, "did you mean 'resnet18'"),
        (
            {"evaluation": {"models": ["mlp"], "precision": "bf16"}},
            "precision: expected fp32 or tf32 for mlp, got bf16",
        ),
        (
            {"evaluation": {"precision": "tf32"}},
            "precision: expected fp32 or bf16 on the CPU, got tf32",
        ),
        ({"variant": [{"options": {}}]}, "a name of its own for every variant"),
        (
            {"variant": [{"name": "a"}, {"name": "a"}]},
            "a name of its own for every variant, got 'a'",
        ),
        ({"variant": [{"name": "a", "evaluation": {}}]}, "set it for the whole sweep"),
        ({"variant": [{"name": "a", "ipcs": 1}]}, "sweep, variant a: .* did you mean 'ipc'"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        kdistill.sweep(grid(**changes), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_finished_runs_are_not_repeated_and_seeds_can_be_added(tmp_path):
    first = kdistill.sweep(grid(seed=0), out=tmp_path)
    before = contents(tmp_path)
    second = kdistill.sweep(grid(), out=tmp_path)
    assert [run.status for run in first.runs] == ["finished"]
    assert [run.status for run in second.runs] == ["there", "finished"]
    assert before.items() <= contents(tmp_path).items()
    assert str(second) == "2 runs: 1 were there, 1 finished, 0 failed"
    small = kdistill.DistilledDataset.from_pretrained(second.runs[1].folder)
    assert small.config["run"]["seed"] == 1
    assert small.metrics["evaluation"]["seeds"] == [1]


def test_another_evaluation_keeps_the_sets(tmp_path):
    done = kdistill.sweep(grid(seed=0), out=tmp_path)
    before = (done.runs[0].folder / "data.safetensors").read_bytes()
    again = kdistill.sweep(
        grid(
            seed=0,
            evaluation={
                "protocol": TINY,
                "models": ["mlp", "convnet"],
                "nets": 1,
                "eight_bit": True,
            },
        ),
        out=tmp_path,
    )
    assert again.runs[0].status == "finished"
    assert (done.runs[0].folder / "data.safetensors").read_bytes() == before
    rows = kdistill.DistilledDataset.from_pretrained(done.runs[0].folder).metrics["evaluation"][
        "rows"
    ]
    assert {(row["name"], row["model"]) for row in rows} == {
        (n, m) for n in ("dm", "dm, 8 bits", "random") for m in ("mlp", "convnet")
    }


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    from kdistill.api import sweep as sweeping

    right = sweeping.run

    def run(config, *arguments, **options):
        if config.seed == 0:
            raise RuntimeError("out of\nmemory")
        return right(config, *arguments, **options)

    monkeypatch.setattr(sweeping, "run", run)
    done = kdistill.sweep(grid(options={"norm": ["instance", "none"]}), out=tmp_path)
    assert [run.status for run in done.runs] == ["failed", "failed", "finished", "finished"]
    assert "failed: dm, digits, ipc 1, seed 0: RuntimeError: out of memory (see " in str(done)
    assert "out of\nmemory" in Path(done.runs[0].reason.rsplit("see ")[-1].rstrip(")")).read_text()
    monkeypatch.undo()
    again = kdistill.sweep(grid(options={"norm": ["instance", "none"]}), out=tmp_path)
    assert [run.status for run in again.runs] == ["finished", "finished", "there", "there"]
    assert not list(tmp_path.glob("*.failure.txt"))


def test_an_error_of_the_user_is_one_sentence(tmp_path):
    done = kdistill.sweep(grid(seed=0, data=["no/such/folder", "digits"]), out=tmp_path)
    assert [run.status for run in done.runs] == ["failed", "finished"]
    assert "no/such/folder" in done.runs[0].reason
    assert read_record(tmp_path)[done.runs[0].folder.name]["status"] == "failed"


def test_an_interrupted_run_goes_on(tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kdistill.sweep(grid(seed=0, options={"iterations": 20}), out=tmp_path / "cut", watch=stop)
    assert next((tmp_path / "cut").glob("*/checkpoint.safetensors"))
    whole, cut = (
        kdistill.sweep(grid(seed=0, options={"iterations": 20}), out=tmp_path / name)
        for name in ("whole", "cut")
    )
    first, second = (
        (done.runs[0].folder / "data.safetensors").read_bytes() for done in (whole, cut)
    )
    assert first == second


def test_a_run_of_another_process_is_left_to_it(tmp_path):
    (planned,) = plan_runs(Grid(**grid(seed=0)), tmp_path)
    with locked(planned.folder):
        done = kdistill.sweep(grid(seed=0), out=tmp_path)
    assert done.runs[0].status == "elsewhere"
    assert not planned.folder.exists()


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(DataError, match="delete it and sweep again"):
        kdistill.sweep(grid(seed=0), out=tmp_path)


@pytest.mark.parametrize("name", ["/etc", "../elsewhere", "..", ""])
def test_a_record_that_names_folders_elsewhere_is_refused(tmp_path, name):
    (tmp_path / RECORD).write_text(json.dumps({"runs": [{"folder": name, "status": "done"}]}))
    with pytest.raises(
        DataError,
        match=r"expected the record of a sweep, got: a folder named '.*', which is not in",
    ):
        read_record(tmp_path)


def command(out: Path, *more: str) -> list[str]:
    return [
        "-m", "kdistill", "sweep", "digits", "--out", str(out),
        "--protocol", "quick", "--nets", "1", "--baselines", "",
        "--set", "ipc=1", "--set", "width=4", "--set", "batch_real=8", *more,
    ]  # fmt: skip


def test_the_command_line_shows_the_grid(tmp_path):
    (tmp_path / "grid.toml").write_text(
        'seed = [0, 1]\n[options]\niterations = 5\n[[variant]]\nname = "plain"\n'
    )
    grid_file = ("--config", str(tmp_path / "grid.toml"))
    arguments = command(tmp_path, *grid_file, "--set", "strategy=none,auto", "--dry-run")
    shown = run_prepared(*arguments).stdout.splitlines()
    assert len(shown) == 4
    assert shown[0].startswith("plain, digits, ipc 1, seed 0  ")


def test_a_killed_sweep_goes_on(tmp_path):
    more = ("--set", "seed=0,1", "--set", "iterations=200")
    with PreparedPython(*command(tmp_path, *more)) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/data.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/data.safetensors")}
    done = run_prepared(*command(tmp_path, *more))
    assert "0 failed" in done.stdout
    assert before and all(path.read_bytes() == there for path, there in before.items())
    statuses = [row["status"] for row in json.loads((tmp_path / RECORD).read_text())["runs"]]
    assert len(statuses) == 2 and set(statuses) <= {"there", "finished"}
