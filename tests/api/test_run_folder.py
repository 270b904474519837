"""The folder of a run: nothing is replaced unasked, and two runs never share it."""

import json
import multiprocessing
import os
import shutil

import pytest
import torch
from typer.testing import CliRunner

import kdistill
from kdistill.api.run_folder import is_unfinished
from kdistill.cli import app
from kdistill.errors import ConfigError
from kdistill.files import sole_use

OPTIONS = {"iterations": 20, "width": 4, "batch_real": 8}


@pytest.fixture(scope="module")
def digits():
    data = kdistill.load_data("digits", quiet=True)
    rows = torch.cat([(data.train.labels == k).nonzero()[:8, 0] for k in range(10)])
    return kdistill.load_data(
        (data.train.images[rows], data.train.labels[rows]), quiet=True, test=0
    )


def run(data, out, **changes):
    given = {
        "method": "dm",
        "ipc": 1,
        "options": OPTIONS,
        "out": out,
        "quiet": True,
        "validation": 0.0,
        **changes,
    }
    return kdistill.distill(data, **given)


def interrupt(progress):
    if progress.iteration >= 10:
        raise KeyboardInterrupt


def test_a_finished_set_is_replaced_on_request_alone(digits, tmp_path):
    first = run(digits, tmp_path / "out")
    before = (tmp_path / "out/data.safetensors").read_bytes()
    with pytest.raises(ConfigError) as refusal:
        run(digits, tmp_path / "out", seed=1)
    assert str(refusal.value) == (
        f"out: expected a new folder, got {tmp_path / 'out'} with a finished set (dm, 1 per class, "
        "seed 0); replace it with force=True, or choose another folder"
    )
    assert (tmp_path / "out/data.safetensors").read_bytes() == before
    other = run(digits, tmp_path / "out", seed=1, force=True)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(
        kdistill.DistilledDataset.from_pretrained(tmp_path / "out").images, other.images
    )


def test_resume_without_a_checkpoint_does_not_replace_a_finished_set(digits, tmp_path):
    run(digits, tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    before = (tmp_path / "data.safetensors").read_bytes()
    words = (
        r"out: expected a checkpoint to go on from, got .* with a finished set "
        r"\(dm, 1 per class, seed 0\); replace it"
    )
    with pytest.raises(ConfigError, match=words):
        run(digits, tmp_path, seed=1, resume=True)
    assert (tmp_path / "data.safetensors").read_bytes() == before


def test_an_interrupted_run_is_replaced_on_request_alone(digits, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "out", callbacks=interrupt)
    with pytest.raises(
        ConfigError, match=r"without an interrupted run.*resume=True, replace it with force=True"
    ):
        run(digits, tmp_path / "out")
    fresh = run(digits, tmp_path / "out", force=True)
    assert torch.equal(fresh.images, run(digits, tmp_path / "other").images)


def test_a_copied_run_is_finished_whatever_the_times_of_its_files(digits, tmp_path):
    run(digits, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    os.utime(
        tmp_path / "copy/data.safetensors", (0, 0)
    )  # older than the checkpoint, as a copy in order of names may be
    assert not is_unfinished(tmp_path / "copy")


def test_an_interrupted_run_over_an_artefact_of_another_is_unfinished(digits, tmp_path):
    run(digits, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "out", seed=1, force=True, callbacks=interrupt)
    os.utime(tmp_path / "out/checkpoint.safetensors", (0, 0))
    assert is_unfinished(tmp_path / "out")
    resumed = run(digits, tmp_path / "out", seed=1, resume=True)
    assert torch.equal(resumed.images, run(digits, tmp_path / "whole", seed=1).images)
    assert not is_unfinished(tmp_path / "out")


def _hold(folder, is_held, may_go):
    with sole_use(folder):
        is_held.set()
        may_go.wait(60)


def test_two_runs_never_share_a_folder(digits, tmp_path):
    context = multiprocessing.get_context("spawn")
    is_held, may_go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "out", is_held, may_go))
    other.start()
    try:
        assert is_held.wait(60)
        with pytest.raises(
            ConfigError,
            match="a folder in which nothing else works, got one that another run is using",
        ):
            run(digits, tmp_path / "out")
        assert not (tmp_path / "out/metrics.jsonl").exists()
    finally:
        may_go.set()
        other.join()
    run(digits, tmp_path / "out")
    assert (tmp_path / "out/data.safetensors").exists()


@pytest.mark.parametrize("where", ["", "settings."])
def test_the_record_of_a_strangers_set_names_no_folder_to_write_to(tmp_path, where):
    elsewhere = tmp_path / "elsewhere"
    options = (
        {"experts": str(elsewhere)} if not where else {"settings": {"experts": str(elsewhere)}}
    )
    record = {
        "run": {"data": "digits", "method": "mtt" if not where else "glad", "options": options},
        "artifact": {},
    }
    (tmp_path / "config.json").write_text(json.dumps(record))
    command = ["distill", "--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "expected no folder to write experts to in the record of a set" in " ".join(
        result.stderr.split()
    )
    assert f"--set {where}experts=" in result.stderr and not elsewhere.exists()
