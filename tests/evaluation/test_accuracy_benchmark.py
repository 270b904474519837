"""The accuracy benchmark: what it writes, skips and replaces."""

from dataclasses import replace

import pytest

import kdistill
from benchmarks import accuracy
from benchmarks.accuracy import Plan
from kdistill.evaluation.trainer import Trainer


@pytest.fixture
def plan(tiny, tmp_path):
    return Plan(
        data=("digits",),
        ipc=(1,),
        seeds=(0, 1),
        options={"iterations": 2, "batch_real": 8, "width": 8},
        protocol=replace(tiny, nets=1),
        results=tmp_path / "accuracy.csv",
        runs=tmp_path / "runs",
        commit="abc123",
        command="python -m benchmarks.accuracy",
    )


@pytest.fixture
def work(monkeypatch):
    """Names of the sets that were distilled or trained on, in order."""
    done, distill, row = [], kdistill.distill, Trainer.row

    def watched_distill(data, **options):
        done.append(f"distill {options['seed']}")
        return distill(data, **options)

    def watched_row(self, task):
        done.append(task.name)
        return row(self, task)

    monkeypatch.setattr(kdistill, "distill", watched_distill, raising=False)
    monkeypatch.setattr(Trainer, "row", watched_row)
    return done


def test_rows_pool_the_seeds_and_name_their_conditions(plan):
    lines = {line.method: line for line in accuracy.run(plan)}
    assert list(lines) == ["dm", "random", "herding", "k-center", "full"]
    assert lines["dm"].seeds == "2 distillation seeds × 1 net"
    assert lines["random"].seeds == "2 subsets × 1 net"
    assert (lines["full"].seeds, lines["full"].ipc) == ("1 net", "all")
    assert lines["dm"].gap_closed and not lines["random"].gap_closed
    assert lines["dm"].options == "batch_real=8 iterations=2 width=8"
    for line in lines.values():
        assert (line.commit, line.command, line.data) == (
            "abc123",
            "python -m benchmarks.accuracy",
            "digits",
        )
        assert (
            float(line.mean) > 0
            and line.machine
            and "torch" in line.versions
            and float(line.seconds) >= 0
        )
    assert sorted(accuracy.read(plan.results), key=str) == sorted(lines.values(), key=str)


def test_what_is_there_for_the_commit_is_skipped_unless_forced(plan, work):
    accuracy.run(plan)
    before = plan.results.read_bytes()
    work.clear()
    assert accuracy.run(plan) == []
    assert work == []
    assert plan.results.read_bytes() == before
    accuracy.run(replace(plan, force=True))
    assert work.count("distill 0") == work.count("distill 1") == 1
    work.clear()
    accuracy.run(replace(plan, commit="def456"))
    assert "distill 0" in work


def test_a_killed_run_continues_with_what_it_had(plan, work, monkeypatch):
    accuracy.run(replace(plan, seeds=(0,)))
    work.clear()
    accuracy.run(plan)
    assert work == ["distill 1", "dm", "random"]


def test_uncommitted_changes_are_marked_and_never_skipped(plan, work):
    dirty = replace(plan, commit="abc123+", seeds=(0,))
    accuracy.run(dirty)
    work.clear()
    lines = accuracy.run(dirty)
    assert "distill 0" in work
    assert {line.commit for line in lines} == {"abc123+"}


def test_a_rerun_replaces_its_rows_and_keeps_the_others(plan):
    accuracy.run(replace(plan, seeds=(0,)))
    other = replace(plan, seeds=(0,), ipc=(2,))
    accuracy.run(other)
    assert len(accuracy.read(plan.results)) == 9  # the full data are one row
    accuracy.run(replace(plan, seeds=(0,), commit="def456"))
    lines = accuracy.read(plan.results)
    assert len(lines) == 9
    assert {line.ipc for line in lines if line.commit == "abc123"} == {"2"}


def test_from_fifty_images_per_class_on_one_seed_is_enough():
    assert Plan().seeds_for(10) == (0, 1, 2)
    assert Plan().seeds_for(50) == (0,)
    assert Plan(seeds=(4, 5)).seeds_for(50) == (4, 5)


def test_the_command_line(tmp_path):
    plan = accuracy.parsed(
        ["--data", "digits", "--ipc", "1", "10", "--set", "iterations=5", "--seeds", "3"]
    )
    assert (plan.data, plan.ipc, plan.options, plan.seeds) == (
        ["digits"],
        [1, 10],
        {"iterations": 5},
        [3],
    )
    assert (
        plan.command
        == "python -m benchmarks.accuracy --data digits --ipc 1 10 --set iterations=5 --seeds 3"
    )
