"""SIGKILL while a generator is saved: whatever the moment, one that loads is left.

Nothing is lost, and the same command succeeds.

``python -m tests.api.test_kills`` kills each 25 times, at moments spread over its whole duration.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kdistill
from kdistill.priors.network_files import convert_network, load_generator
from tests.priors.original_files import tiny_stylegan2, tiny_stylegan3, write
from tests.priors.test_prior_training import TINY

KILLS = 8


STEPS = ("open", "replace", "fsync", "mkdir", "rmdir", "unlink")


def in_a_child(
    act: Callable[[], object], *, after: float | None = None, at_step: int | None = None
) -> tuple[float, int]:
    """Do ``act`` in a child process that is killed after some seconds or before a step on the disk.

    Return its seconds and steps.
    """
    began, (reader, writer) = time.monotonic(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of threads: the child uses none of them
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            done = _counted(at_step)
            act()
            os.write(writer, str(len(done)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    said = os.read(reader, 99)
    os.close(reader)
    assert os.WIFSIGNALED(status) or status == 0, "the child failed"
    return time.monotonic() - began, int(said or 0)


def _counted(at_step: int | None) -> list[str]:
    """Count steps on the disk, and end this process as SIGKILL does before step ``at_step``."""
    done: list[str] = []

    def counting(real):
        def call(*args, **kwargs):
            if len(done) == at_step:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(real.__name__)
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, counting(getattr(os, name)))
    return done


def kill(act: Callable[[], object], number: int, kills: int, seconds: float, steps: int) -> None:
    """Kill ``act`` for the ``number``-th time: by turns after a time and before a step."""
    share = (number + 1) / (kills + 1)
    if number % 2:
        in_a_child(act, after=seconds * share)
    else:
        in_a_child(act, at_step=round(steps * share))


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder but the log, which has times, and the older checkpoint."""
    varying = ("metrics.jsonl", "checkpoint.safetensors.prev")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in varying}


def same(one, other) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(x, other.tensors[n]) for n, x in one.tensors.items()
    )


def kill_convert(root: Path, kills: int) -> int:
    """Kill ``prior convert`` over a generator; return how many kills left the earlier one."""
    old, new = write(root / "old.pkl", tiny_stylegan2()), write(root / "new.pkl", tiny_stylegan3())
    wanted = {"old": convert_network(old, root / "old"), "new": convert_network(new, root / "new")}
    left_old = 0
    shutil.copytree(root / "old", root / "timed")
    seconds, steps = in_a_child(lambda: convert_network(new, root / "timed"))
    for number in range(kills):
        folder = root / f"killed-{number}"
        shutil.copytree(root / "old", folder)
        kill(lambda folder=folder: convert_network(new, folder), number, kills, seconds, steps)
        left = load_generator(folder)
        is_old = same(left, wanted["old"])
        assert is_old or same(left, wanted["new"])
        left_old += is_old
        convert_network(new, folder)
        assert content(folder) == content(root / "new")
    return left_old


def kill_train(root: Path, kills: int) -> int:
    """Kill the end of ``prior train``; return how many kills left the generator before it."""
    data = kdistill.load_data("digits", quiet=True)

    def train(folder: Path, iterations: int) -> None:
        options = {**TINY, "iterations": iterations}
        kdistill.train_prior(data, out=folder, options=options, resume=folder.exists(), quiet=True)

    train(root / "old", 2)
    shutil.copytree(root / "old", root / "new")
    seconds, steps = in_a_child(lambda: train(root / "new", 3))
    wanted = {name: load_generator(root / name) for name in ("old", "new")}
    left_old = 0
    for number in range(kills):
        folder = root / f"killed-{number}"
        shutil.copytree(root / "old", folder)
        kill(lambda folder=folder: train(folder, 3), number, kills, seconds, steps)
        left = load_generator(folder)
        is_old = same(left, wanted["old"])
        assert is_old or same(left, wanted["new"])
        left_old += is_old
        train(folder, 3)
        assert content(folder).keys() == content(root / "new").keys()
        for name in ("generator.safetensors", "config.json", "metrics.json", "samples.png"):
            assert (folder / name).read_bytes() == (root / "new" / name).read_bytes(), name
    return left_old


@pytest.mark.parametrize("scenario", [kill_convert, kill_train])
def test_a_generator_survives_kills(tmp_path, scenario):
    scenario(tmp_path, KILLS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for scenario in (kill_convert, kill_train):
        with tempfile.TemporaryDirectory() as place:
            earlier = scenario(Path(place), 25)
            sys.stdout.write(
                f"{scenario.__name__}: 25 kills, nothing lost; {earlier} left the earlier "
                "generator\n"
            )
