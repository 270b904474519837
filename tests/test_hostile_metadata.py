"""Every field of what kdistill reads, replaced by something of another type: one sentence or a result, never a traceback."""

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save

import kdistill
from kdistill.api.sweep import RECORD, read_record
from kdistill.artifacts import DistilledDataset, load_checkpoint, save_checkpoint
from kdistill.artifacts.dataset_card import card
from kdistill.artifacts.tensors import decode, encode, jsonable, to_json
from kdistill.config import load_file, parse_overrides
from kdistill.errors import ConfigError, DataError, KDistillError, ShapeError
from kdistill.evaluation import Evaluation, protocols
from kdistill.evaluation.rows import Row
from kdistill.experts import TrajectoryStore
from kdistill.methods import Problem, Step, optimize
from kdistill.methods.stages import Stage, Stages
from kdistill.ops import conv_grad_sqnorm
from kdistill.optim import by_name, sgd
from kdistill.priors import PixelPrior
from kdistill.priors.network_files import load_generator, save_generator
from kdistill.runner import Checkpoints
from kdistill.selection.score_table import ScoreTable, load_scores
from kdistill.transforms import Standardise
from tests.priors.original_files import tiny_stylegan2

DEEP: Any = 0
for _ in range(150):
    DEEP = [DEEP]
WRONG = (None, "abc", -1, 10**400, 1.5, [], {}, [[1]], True, {"a": {"b": [1]}}, DEEP)
DEEP_JSON = "[" * 100_000 + "]" * 100_000


def mutants(value: Any, path: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Yield ``value`` with each of its parts replaced by some wrong values, and with each of them left out."""
    entries = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, entry in entries:
        for place in range(2):  # every value meets many places, and no place all values
            changed = copy.copy(value)
            changed[key] = WRONG[(len(str(key)) + len(path) + 4 * place) % len(WRONG)]
            yield changed
        if isinstance(value, dict):
            yield {name: x for name, x in value.items() if name != key}
        for inner in mutants(entry, (*path, key)):
            changed = copy.copy(value)
            changed[key] = inner
            yield changed


def can_be_written(value: Any) -> bool:
    return not refused_or_fine(jsonable, value)


def refused_or_fine(function, *arguments) -> bool:
    """Call, and return whether it raised one of our errors; a longer message than a screen is a fault too."""
    try:
        function(*arguments)
    except KDistillError as error:
        assert len(str(error)) < 3000, str(error)[:300]
        return True
    return False


def row(kind: str, name: str) -> Row:
    return Row(
        name=name, model="convnet", kind=kind, accuracies=(0.5, 0.6), validation=(0.5,), lr=(0.01,), epochs=3, images=4,
        nbytes=99, seconds=1.0, unit="subset", sets=1, sources=("a",), best_on_test=(0.6, 0.7),
    )  # fmt: skip


def small_set() -> DistilledDataset:
    rows = (row("distilled", "dm"), row("baseline", "random"), row("baseline", "full"))
    found = Evaluation(
        rows=rows,
        protocol=protocols.get("quick"),
        data={"name": "d", "fingerprint": "f"},
        environment={"t": "1"},
    )
    return DistilledDataset(
        images=torch.rand(4, 1, 4, 4),
        labels=torch.tensor([0, 0, 1, 1]),
        label_logits=torch.rand(4, 2),
        learned_lr=0.1,
        classes=["a", "b"],
        transform=Standardise(torch.tensor([0.5]), torch.tensor([0.2])),
        config={
            "run": {
                "data": "d",
                "method": "dm",
                "ipc": 2,
                "seed": 3,
                "options": {"lr": 1.0},
                "validation": 0.1,
            },
            "source": {"name": "d", "licence": "mit", "fingerprint": "f"},
            "environment": {"torch": "2"},
            "method": {"title": "t", "paper": "p"},
        },
        metrics={
            "evaluation": found.to_dict(),
            "distillation": {"seconds": 1.0, "peak_bytes": 9, "iterations": 3, "finished": True},
        },
    )


def use(folder, draws: bool = True) -> None:
    small = DistilledDataset.from_pretrained(folder)
    card(small), repr(small)
    if draws:
        small.preview()
    kdistill.compare(folder).to_markdown()


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    return small_set().save_pretrained(tmp_path_factory.mktemp("set") / "a")


def test_the_whole_artefact_is_fine(artefact):
    assert not refused_or_fine(use, artefact)


def test_every_field_of_the_config(artefact, tmp_path):
    folder = shutil.copytree(artefact, tmp_path / "a")
    count = 0
    for changed in mutants(json.loads((folder / "config.json").read_text())):
        about = changed.get("artifact")
        if isinstance(about, dict):  # a stranger can compute the checksum as well as we
            about = changed["artifact"] = {
                key: value for key, value in about.items() if key != "checksum"
            }
            about["checksum"] = hashlib.sha256(
                json.dumps(changed, sort_keys=True, indent=2).encode() + b"\n"
            ).hexdigest()
        (folder / "config.json").write_text(json.dumps(changed, sort_keys=True, indent=2) + "\n")
        count += refused_or_fine(use, folder)
    assert count > 20


def test_every_field_of_the_metrics(artefact, tmp_path, monkeypatch):
    folder = shutil.copytree(artefact, tmp_path / "a")
    count, small, read = 0, small_set(), DistilledDataset.from_pretrained
    for number, changed in enumerate(mutants(small.metrics)):
        text = json.dumps(changed)
        if number % 10 == 0:  # files cost more than everything else here
            (folder / "metrics.json").write_text(text)
            monkeypatch.setattr(DistilledDataset, "from_pretrained", read)
        else:
            monkeypatch.setattr(
                DistilledDataset,
                "from_pretrained",
                lambda path, text=text: replace(small, metrics=json.loads(text)),
            )
        count += refused_or_fine(use, folder, False)
    monkeypatch.undo()
    assert count > 20
    (folder / "metrics.json").write_text(f'{{"a": {DEEP_JSON}}}')
    with pytest.raises(
        DataError,
        match=r"metrics\.json: expected at most 100 tables or lists in one another, got more; the file",
    ):
        use(folder)


def with_data(folder, tensors, metadata) -> None:
    """Write the tensors and the metadata of an artefact, and the checksums that belong to them."""
    data = encode(tensors, metadata)
    (folder / "data.safetensors").write_bytes(data)
    config = json.loads((folder / "config.json").read_text())
    config["artifact"]["files"]["data.safetensors"] = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    config["artifact"].pop("checksum")
    config["artifact"]["checksum"] = hashlib.sha256(to_json(config)).hexdigest()
    (folder / "config.json").write_bytes(to_json(config))


TENSORS = {
    "several": torch.rand(3),
    "none": torch.rand(0),
    "float8": torch.rand(4, 1, 4, 4).to(torch.float8_e4m3fn),
    "uint16": torch.zeros(4, dtype=torch.uint16),
    "complex": torch.zeros(4, dtype=torch.complex64),
    "bool": torch.zeros(4, dtype=torch.bool),
    "bytes": torch.zeros(4, 1, 4, 4, dtype=torch.uint8),
    "nan": torch.full((4, 1, 4, 4), float("nan")),
}


def test_every_tensor_and_its_metadata(artefact, tmp_path):
    folder = shutil.copytree(artefact, tmp_path / "a")
    tensors, metadata = decode((artefact / "data.safetensors").read_bytes(), "a")
    for changed in mutants(metadata):
        if can_be_written(changed):
            with_data(folder, tensors, changed)
            refused_or_fine(use, folder)
    for name in tensors:
        for wrong in TENSORS.values():
            with_data(folder, {**tensors, name: wrong}, metadata)
            refused_or_fine(use, folder)
    with_data(folder, {**tensors, "learned_lr": torch.rand(3)}, metadata)
    with pytest.raises(
        DataError,
        match=r"data\.safetensors: expected one number as learned_lr, got \[3\]; write the file again",
    ):
        use(folder)
    with_data(folder, {**tensors, "images": TENSORS["float8"]}, metadata)
    with pytest.raises(
        DataError,
        match=r"expected tensors of plain numbers, got 'images' of torch\.float8_e4m3fn; write",
    ):
        use(folder)


def test_tensors_of_other_dtypes_in_memory():
    images, labels = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])
    assert (
        DistilledDataset(images=images.to(torch.float8_e4m3fn), labels=labels.to(torch.uint16)).ipc
        == 2
    )
    with pytest.raises(ShapeError, match=r"labels: expected int64 \[4\], got torch\.complex64"):
        DistilledDataset(images=images, labels=labels.to(torch.complex64))
    with pytest.raises(
        DataError,
        match=r"expected at most 100 tables or lists in one another, got more; flatten them",
    ):
        DistilledDataset(images=images, labels=labels, config={"a": DEEP})


def test_an_evaluation_of_other_types_is_refused():
    record = small_set().metrics["evaluation"]
    record["rows"][0]["best_on_test"] = "abc"
    with pytest.raises(ConfigError, match=r"evaluation\.rows\.best_on_test: expected .* got 'abc'"):
        Evaluation.from_dict(record)


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
        match=r"its metadata: expected at most 100 tables or lists in one another, got more; restore",
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


def test_every_field_of_the_record_of_a_sweep(artefact, tmp_path):
    shutil.copytree(artefact, tmp_path / "a")
    whole = {
        "runs": [
            {"folder": "a", "variant": "v", "status": "failed", "reason": "r", "run": {"ipc": 1}}
        ]
    }
    for changed in mutants(whole):
        (tmp_path / RECORD).write_text(json.dumps(changed))
        refused_or_fine(kdistill.compare, tmp_path)
    (tmp_path / RECORD).write_text(DEEP_JSON)
    with pytest.raises(
        DataError,
        match=r"expected the record of a sweep, got: .*in one another.*; delete it and sweep again",
    ):
        read_record(tmp_path)


@pytest.mark.parametrize("name", ["grid.json", "grid.toml"])
@pytest.mark.parametrize("depth", [150, 100_000])
def test_a_configuration_nested_without_end(name, depth, tmp_path):
    nested = "[" * depth + "]" * depth
    (tmp_path / name).write_text(f'{{"a": {nested}}}' if name.endswith("json") else f"a = {nested}")
    with pytest.raises(ConfigError, match=r"expected (valid|at most 100)"):
        load_file(tmp_path / name)
    with pytest.raises(
        ConfigError, match="--set: expected a value, got lists nested too deeply; flatten them"
    ):
        parse_overrides([f"a={nested}"])


def test_no_image_and_no_channel_have_no_gradient():
    for n, c, k in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        for form in ("gram", "products"):
            assert torch.equal(
                conv_grad_sqnorm(torch.zeros(n, c, 5, 5), torch.zeros(n, k, 5, 5), form=form),
                torch.zeros(n),
            )
