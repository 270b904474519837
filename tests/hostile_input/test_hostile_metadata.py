"""Every field of what kdistill reads, replaced by another type: one sentence or a result."""

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import kdistill
from kdistill.api.sweep import RECORD, read_record
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.dataset_card import card
from kdistill.artifacts.tensors import decode, encode, jsonable, to_json
from kdistill.config import load_file, parse_overrides
from kdistill.errors import ConfigError, DataError, KDistillError, ShapeError
from kdistill.evaluation import Evaluation, protocols
from kdistill.evaluation.rows import Row
from kdistill.ops import conv_grad_sqnorm
from kdistill.transforms import Standardise

DEEP: Any = 0
for _ in range(150):
    DEEP = [DEEP]
WRONG = (None, "abc", -1, 10**400, 1.5, [], {}, [[1]], True, {"a": {"b": [1]}}, DEEP)
DEEP_JSON = "[" * 100_000 + "]" * 100_000


def mutants(value: Any, path: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Yield ``value`` with each of its parts replaced by wrong values, and left out."""
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
    """Call, and return whether it raised one of our errors, in a message shorter than a screen."""
    try:
        function(*arguments)
    except KDistillError as error:
        assert len(str(error)) < 3000, str(error)[:300]
        return True
    return False


def row(kind: str, name: str) -> Row:
    return Row(
        name=name,
        model="convnet",
        kind=kind,
        accuracies=(0.5, 0.6),
        validation=(0.5,),
        lr=(0.01,),
        epochs=3,
        images=4,
        nbytes=99,
        seconds=1.0,
        unit="subset",
        sets=1,
        sources=("a",),
        best_on_test=(0.6, 0.7),
    )


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
        match=r"metrics\.json: expected at most 100 tables or lists in one another, got more; the "
        "file",
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
        match=r"data\.safetensors: expected one number as learned_lr, got \[3\]; write the file "
        "again",
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
