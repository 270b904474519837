"""Every field of stores, checkpoints, tables and generators, replaced by another type."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from kdistill.artifacts import load_checkpoint, save_checkpoint
from kdistill.artifacts.tensors import encode
from kdistill.errors import DataError
from kdistill.experts import TrajectoryStore
from kdistill.methods import Problem, Step, optimize
from kdistill.methods.stages import Stage, Stages
from kdistill.optim import by_name, sgd
from kdistill.priors import PixelPrior
from kdistill.priors.network_files import load_generator, save_generator
from kdistill.runner import Checkpoints
from kdistill.selection.score_table import ScoreTable, load_scores
from tests.hostile_input.test_hostile_metadata import (
    DEEP_JSON,
    can_be_written,
    mutants,
    refused_or_fine,
)
from tests.priors.original_files import tiny_stylegan2


def test_every_field_of_an_expert_store(tmp_path):
    store = TrajectoryStore(
        tmp_path / "e",
        {"settings": {"epochs": 2}, "data": {}, "student": "s"},
        num_params=3,
        epochs=2,
    )
    snapshots = torch.rand(3, 3)
    store.add(0, snapshots)
    index = tmp_path / "e" / "experts.json"
    whole = json.loads(index.read_text())

    def read() -> None:
        opened = TrajectoryStore(tmp_path / "e")
        assert opened.nbytes >= 0 and len(opened) >= 0
        opened.snapshot(0, 1)

    assert not refused_or_fine(read)
    assert (
        sum(
            refused_or_fine(read)
            for changed in mutants(whole)
            if index.write_text(json.dumps(changed))
        )
        > 5
    )
    index.write_text(DEEP_JSON)
    with pytest.raises(DataError, match=r"expected a trajectory index in .* in one another"):
        read()
    for tensors in (
        {"other": snapshots},
        {"snapshots": snapshots[:2]},
        {"snapshots": snapshots.double()},
        {},
    ):
        shard = tmp_path / "e" / "expert-00000.safetensors"
        shard.write_bytes(encode(tensors, {}))
        index.write_text(
            json.dumps(
                {**whole, "shards": {shard.name: hashlib.sha256(shard.read_bytes()).hexdigest()}}
            )
        )
        with pytest.raises(
            DataError,
            match=r"experts: expected .*; delete the file and run `kdistill experts` again",
        ):
            read()


def test_every_field_of_a_checkpoint(tmp_path):
    prior, path = PixelPrior(), tmp_path / "checkpoint.safetensors"
    stages = Stages(
        stages=tuple(Stage(str(end), end, ("images",), lambda x, i: x) for end in (2, 4)),
        prior=prior,
        check_every=1,
        distance=lambda images: float(images.sum()),
        choose="distance",
        to_pixels=lambda images: images,
        labels=torch.zeros(1, dtype=torch.int64),
        hint="lower it",
    )
    problem = Problem(
        prior=prior,
        state={"images": torch.rand(1, 1, 4, 4)},
        labels=stages.labels,
        objective=lambda _, images, state: Step(images.sum(), torch.ones_like(images)),
        optimizer=by_name({"images": sgd(0.1)}),
        iterations=4,
        stages=stages,
    )
    checkpoints = Checkpoints(tmp_path, {"run": {"ipc": 3}})
    optimize(replace(problem, iterations=3), checkpoints)
    state, numbers = load_checkpoint(path)
    assert set(numbers["stages"]) == {"distances", "finished", "best", "winner"}
    for meta in mutants(numbers):
        if can_be_written(meta):
            save_checkpoint(path, state, meta)
            refused_or_fine(lambda: optimize(problem, checkpoints, resume=True))
    path = tmp_path / "alone.safetensors"  # without a previous one, which would be read instead
    for envelope in mutants({"schema_version": 1, "meta": {"a": 1}, "sha256": "x"}):
        if can_be_written(envelope):
            path.write_bytes(encode(state, envelope))
            assert refused_or_fine(load_checkpoint, path)
    path.write_bytes(save(state, {"kdistill": DEEP_JSON}))
    with pytest.raises(
        DataError,
        match=r"its metadata: expected at most 100 tables or lists in one another, got more; "
        "restore",
    ):
        load_checkpoint(path)


def test_every_field_of_a_score_table(tmp_path):
    path, labels = tmp_path / "scores.csv", torch.tensor([0, 1, 0])
    table = ScoreTable(
        labels, {"el2n": torch.rand(3)}, ("a", "b"), "digest", {"settings": {"runs": 1}}
    )
    table.save(path)
    first, _, rest = path.read_text().partition("\n")
    for head in mutants(json.loads(first[1:])):
        path.write_text(f"# {json.dumps(head)}\n{rest}")
        refused_or_fine(load_scores, path)
    cells = rest.replace("\n", ",").split(",")
    for cell in dict.fromkeys(cells):
        for wrong in ("", "abc", "-1", "1" * 30, "1" * 5000, "nan", '"', "x" * 200_000):
            path.write_text(f"{first}\n{rest.replace(cell, wrong, 1)}")
            refused_or_fine(load_scores, path)
    path.write_text(f"# {DEEP_JSON}\n{rest}")
    with pytest.raises(
        DataError, match=r"scores: expected a table of kdistill score, got .*in one another"
    ):
        load_scores(path)


def test_every_field_of_a_generator(tmp_path):
    save_generator(tiny_stylegan2(), tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    for changed in mutants(whole):
        (tmp_path / "config.json").write_text(json.dumps(changed))
        refused_or_fine(load_generator, tmp_path)
    (tmp_path / "config.json").write_text(DEEP_JSON)
    with pytest.raises(DataError, match="in one another, got more; convert the network again"):
        load_generator(tmp_path)
