"""A run without a folder of its own: what a signal or a kill leaves, and how it goes on."""

import os
import re
import signal
import time
from dataclasses import replace

import pytest
import torch

import kdistill
from kdistill import methods
from kdistill.errors import NonFiniteError
from tests.prepared_process import PreparedPython, run_prepared

ITERATIONS = 150
RUN = f"""
import torch, kdistill
torch.set_num_threads(1)
data = kdistill.load_data("digits", quiet=True)
options = {{"iterations": {ITERATIONS}, "batch_real": 8, "width": 4, "lr_images": 1.0}}
how = {{"checkpoint_minutes": 0, "resume": RESUME, "threads": 1}}
small = kdistill.distill(data, ipc=1, options=options, **how)
torch.save(small.images, "small.pt")
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/runs"


@pytest.fixture
def digits():
    return kdistill.load_data("digits", quiet=True)


def quick(digits, **changes):
    options = {"iterations": 20, "width": 4, "batch_real": 8, **changes.pop("options", {})}
    return kdistill.distill(digits, ipc=1, options=options, **changes)


def stop(progress):
    raise KeyboardInterrupt


def started(tmp_path, cache):
    """Start the script and return it when its first checkpoint is there."""
    process = PreparedPython("-c", RUN.replace("RESUME", "False"), cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(cache.glob("*/checkpoint.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_killed_script_goes_on_with_the_same_bits(tmp_path, cache, number):
    with started(tmp_path, cache) as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == -number, said
    folder = next(cache.iterdir())
    assert f"checkpoints are kept in {folder}" in said and "resume=True goes on from there" in said
    if number == signal.SIGTERM:
        words = (
            rf"kdistill: terminated; iteration ([\d,]+) of {ITERATIONS:,} is saved in {folder}; "
            "continue with resume=True"
        )
        assert 0 < int(re.search(words, said)[1].replace(",", "")) < ITERATIONS
    resumed = run_prepared("-c", RUN.replace("RESUME", "True"), cwd=tmp_path)
    assert re.search(rf"going on from iteration [\d,]+, kept in {folder}\n", resumed.stderr), (
        resumed.stderr
    )
    assert not list(cache.iterdir())
    options = {"iterations": ITERATIONS, "batch_real": 8, "width": 4, "lr_images": 1.0}
    whole = kdistill.distill(
        kdistill.load_data("digits", quiet=True), ipc=1, options=options, quiet=True
    )
    assert torch.equal(torch.load(tmp_path / "small.pt"), whole.images)


def test_an_interrupt_says_where_the_state_is_and_a_finished_run_leaves_nothing(
    digits, cache, capsys
):
    with pytest.raises(
        KeyboardInterrupt,
        match=r"iteration 10 of 20 is saved in .*runs/digits-dm-ipc1-seed0-\w+; continue with",
    ):
        quick(digits, callbacks=[stop])
    with pytest.raises(KeyboardInterrupt):  # afresh: beside what is there
        quick(digits, callbacks=[stop])
    assert "an earlier attempt stopped at iteration 10" in capsys.readouterr().err
    assert len(list(cache.iterdir())) == 2
    resumed = quick(digits, resume=True)
    assert not list(cache.iterdir())
    assert torch.equal(resumed.images, quick(digits).images)
    assert not list(cache.iterdir())


def test_other_settings_data_and_seeds_have_other_folders(digits, cache, caplog):
    with pytest.raises(KeyboardInterrupt):
        quick(digits, callbacks=[stop])
    quick(digits, seed=1, resume=True)
    assert "no checkpoint of these settings, data and seed" in caplog.text
    assert len(list(cache.iterdir())) == 1


def test_an_interrupt_before_the_first_iteration_leaves_no_folder(digits, cache, monkeypatch):
    def build(*arguments):
        raise KeyboardInterrupt

    dm = methods.get("dm")
    monkeypatch.setattr(methods, "get", lambda name: replace(dm, build=build))
    with pytest.raises(KeyboardInterrupt):
        quick(digits)
    assert not list(cache.iterdir())


def test_a_run_that_blows_up_at_once_leaves_no_folder(digits, cache):
    with pytest.raises(NonFiniteError, match="pass out= to keep the last good state"):
        quick(digits, options={"lr_images": 1e30, "norm": "none"})
    assert not list(cache.iterdir())


def test_a_time_limit_keeps_the_state(digits, cache):
    assert not quick(digits, max_minutes=0).metrics["distillation"]["finished"]
    assert torch.equal(quick(digits, resume=True).images, quick(digits).images)


def test_a_failing_callback_notes_where_the_state_is(digits, cache):
    with pytest.raises(ZeroDivisionError) as caught:
        quick(digits, callbacks=[lambda progress: 1 / 0])
    assert "is saved in" in caught.value.__notes__[0]


def test_two_runs_at_once_have_two_folders(digits, cache):
    folders = []

    def start_another(progress):
        if not folders:
            folders.extend(cache.iterdir())
            quick(
                digits,
                callbacks=[lambda progress: folders.extend(set(cache.iterdir()) - set(folders))],
            )

    quick(digits, callbacks=[start_another])
    assert len(folders) == 2 and not list(cache.iterdir())


def test_a_cache_that_cannot_be_used_costs_the_checkpoint_alone(digits, cache, monkeypatch, capsys):
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file")
    assert len(quick(digits).images) == 10
    assert "no checkpoint is kept, as the cache cannot be used" in capsys.readouterr().err


def test_checkpoints_that_nobody_came_back_for_are_removed(digits, cache):
    with pytest.raises(KeyboardInterrupt):
        quick(digits, callbacks=[stop])
    (folder,) = cache.iterdir()
    for path in (*folder.iterdir(), folder):
        os.utime(path, (0, 0))
    quick(digits, seed=1)
    assert not list(cache.iterdir())
