import hashlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from kdistill.artifacts import DistilledDataset, check_output
from kdistill.artifacts.tensors import to_json
from kdistill.config import load_file as load_config
from kdistill.errors import DataError, ShapeError
from kdistill.transforms import Identity, Standardise, Zca

FILES = {"data.safetensors", "config.json", "metrics.json", "README.md", "preview.png"}
CONFIG = {
    "run": {"method": "dm", "ipc": 2, "seed": 0},
    "source": {"name": "digits", "licence": "mit"},
}


def a_set(ipc=2, k=3, channels=1, size=8, seed=0, transform=None, **fields):
    randn = torch.randn(
        ipc * k, channels, size, size, generator=torch.Generator().manual_seed(seed)
    )
    transform = transform or Standardise(
        torch.full((channels,), 0.3), torch.full((channels,), 0.25)
    )
    labels = torch.arange(k).repeat_interleave(ipc)
    return DistilledDataset(
        **{
            "images": 0.5 + randn,
            "labels": labels,
            "transform": transform,
            "config": CONFIG,
            **fields,
        }
    )


def zca(d):
    q = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(1)))[0]
    return Zca(
        torch.rand(d),
        q @ torch.diag(torch.linspace(0.5, 2, d)) @ q.T,
        q @ torch.diag(1 / torch.linspace(0.5, 2, d)) @ q.T,
    )


def assert_same(one, other):
    assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert (one.label_logits is None) == (other.label_logits is None)
    assert one.label_logits is None or torch.equal(one.label_logits, other.label_logits)
    assert one.learned_lr == other.learned_lr and one.classes == other.classes
    assert one.config == other.config and one.metrics == other.metrics
    assert one.transform.kind == other.transform.kind
    for name, tensor in one.transform.state().items():
        assert torch.equal(tensor, other.transform.state()[name])


@st.composite
def sets(draw):
    classes, channels, size = (
        draw(st.integers(1, 4)),
        draw(st.sampled_from([1, 3])),
        draw(st.integers(1, 5)),
    )
    labels = torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=6)))
    kinds = [
        Identity(),
        Standardise(torch.rand(channels), torch.rand(channels) + 0.1),
        zca(channels * size * size),
    ]
    return DistilledDataset(
        images=torch.randn(len(labels), channels, size, size),
        labels=labels,
        label_logits=torch.randn(len(labels), classes) if draw(st.booleans()) else None,
        learned_lr=draw(st.none() | st.floats(0, 1)),
        classes=draw(st.lists(st.text(max_size=6), min_size=classes, max_size=classes)),
        config=draw(
            st.dictionaries(
                st.text(max_size=4), st.integers(-9, 9) | st.text(max_size=4), max_size=3
            )
        ),
        metrics=draw(
            st.dictionaries(
                st.text(max_size=4), st.floats(allow_nan=False, allow_infinity=False), max_size=3
            )
        ),
        transform=draw(st.sampled_from(kinds)),
    )


@given(small=sets())
def test_round_trip(tmp_path_factory, small):
    folder = tmp_path_factory.mktemp("a") / "set"
    assert small.save_pretrained(folder) == folder
    assert set(os.listdir(folder)) == FILES
    assert_same(small, DistilledDataset.from_pretrained(folder))


def test_properties_and_views():
    small = a_set(ipc=2, k=3, channels=3, size=8)
    assert (small.ipc, small.num_classes, small.channels, small.size, len(small)) == (2, 3, 3, 8, 6)
    assert small.counts == (2, 2, 2) and small.classes == ("0", "1", "2")
    assert small.nbytes == 6 * 3 * 64 * 4 + 6 * 8
    assert repr(small) == "DistilledDataset(6 images 3×8×8, 3 classes, ipc 2, hard labels)"
    images, labels = small.to_torch().tensors
    assert torch.equal(images, small.images) and torch.equal(labels, small.labels)
    assert torch.equal(
        small.to_torch(normalised=True).tensors[0], small.transform.apply(small.images)
    )
    unequal = a_set(labels=torch.tensor([0, 0, 0, 1, 1, 2]))
    assert unequal.ipc == 3 and unequal.counts == (3, 2, 1)


def test_soft_labels_are_probabilities_for_torch():
    logits = torch.randn(6, 3)
    _, labels = a_set(label_logits=logits).to_torch(soft=True).tensors
    torch.testing.assert_close(labels, logits.softmax(1))
    with pytest.raises(DataError, match="expected learned soft labels"):
        a_set().to_torch(soft=True)


def test_the_set_is_its_own_copy():
    images, labels = torch.rand(2, 1, 4, 4, requires_grad=True), torch.tensor([0, 1])
    small = DistilledDataset(images=images, labels=labels)
    with torch.no_grad():
        images.zero_()
    labels.zero_()
    assert (
        not small.images.requires_grad
        and small.images.abs().sum() > 0
        and small.labels.tolist() == [0, 1]
    )
    small.to_torch().tensors[0].zero_()
    assert small.images.abs().sum() > 0


def test_metrics_can_be_added():
    small = a_set(metrics={"a": 1})
    more = small.with_metrics(evaluation={"x": (1, 2)}, a=2)
    assert more.metrics == {"a": 2, "evaluation": {"x": [1, 2]}} and small.metrics == {"a": 1}
    assert torch.equal(more.images, small.images)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"images": torch.zeros(6, 8, 8)},
            ShapeError,
            r"images: expected float \[N, C, H, W\], got torch\.float32 \[6, 8, 8\]",
        ),
        ({"images": torch.zeros(6, 1, 8, 8).byte()}, ShapeError, "divide bytes by 255"),
        (
            {"images": torch.zeros(0, 1, 8, 8), "labels": torch.zeros(0).long()},
            DataError,
            "at least one image",
        ),
        (
            {"images": torch.full((6, 1, 8, 8), torch.nan)},
            DataError,
            "images: expected finite numbers",
        ),
        (
            {"labels": torch.zeros(5).long()},
            ShapeError,
            r"labels: expected int64 \[6\], got torch\.int64 \[5\]",
        ),
        ({"labels": torch.zeros(6)}, ShapeError, "soft labels go to label_logits"),
        (
            {"labels": torch.arange(6), "classes": "ab"},
            DataError,
            r"labels: expected values in 0\.\.1 for 2 classes, got 0\.\.5",
        ),
        ({"labels": torch.full((6,), -1)}, DataError, r"got -1\.\.-1"),
        (
            {"label_logits": torch.zeros(6, 2), "classes": "abc"},
            ShapeError,
            r"label_logits: expected float \[6, 3\]",
        ),
        (
            {"label_logits": torch.full((6, 3), torch.inf)},
            DataError,
            "label_logits: expected finite numbers",
        ),
        ({"config": {"artifact": 1}}, DataError, "expected no key 'artifact'"),
        (
            {"config": {"a": {"b": object()}}},
            DataError,
            r"config\.a\.b: expected something that JSON can hold, got a object",
        ),
    ],
)
def test_wrong_content_is_refused(fields, error, message):
    with pytest.raises(error, match=message):
        a_set(**fields)


def test_equal_sets_give_equal_bytes_in_another_process_too(tmp_path):
    small = a_set(metrics={"seconds": 1.0})
    small.save_pretrained(tmp_path / "a")
    small.with_metrics(seconds=2.0).save_pretrained(tmp_path / "b")  # times differ from run to run
    DistilledDataset.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "c")
    code = f"""
        from kdistill.artifacts import DistilledDataset
        small = DistilledDataset.from_pretrained({str(tmp_path / "a")!r})
        small.save_pretrained({str(tmp_path / "d")!r})
    """
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=env)
    for name in ("data.safetensors", "config.json"):
        assert len({(tmp_path / folder / name).read_bytes() for folder in "abcd"}) == 1


def test_what_the_files_say(tmp_path):
    small = a_set(
        channels=3,
        size=2,
        transform=zca(12),
        learned_lr=0.02,
        label_logits=torch.randn(6, 3),
        metrics={"nan": float("nan")},
    )
    small.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "data.safetensors")  # without kdistill
    assert set(tensors) == {
        "images",
        "labels",
        "label_logits",
        "learned_lr",
        "transform.mean",
        "transform.matrix",
        "transform.inverse",
    }
    assert (
        tensors["images"].dtype == torch.float32
        and tensors["images"].min() < 0
        and tensors["images"].max() > 1
    )
    data = (tmp_path / "data.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header["__metadata__"]) == ["kdistill"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["artifact"]["schema_version"] == 1
    assert (
        config["artifact"]["files"]["data.safetensors"]["sha256"]
        == hashlib.sha256(data).hexdigest()
    )
    assert {**config, "artifact": None} == {**CONFIG, "artifact": None}
    assert load_config(tmp_path / "config.json")["run"] == CONFIG["run"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"nan": "nan"}
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.format == "PNG" and picture.size == small.preview().size


@given(
    position=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
    name=st.sampled_from(["data.safetensors", "config.json"]),
)
def test_a_changed_byte_is_found(tmp_path_factory, position, flip, name):
    folder = a_set().save_pretrained(tmp_path_factory.mktemp("a"))
    data = bytearray((folder / name).read_bytes())
    data[int(position * len(data))] ^= flip
    (folder / name).write_bytes(data)
    try:
        loaded = DistilledDataset.from_pretrained(folder)
    except DataError as error:
        assert str(folder / name) in str(error) or "data.safetensors" in str(error)
    else:  # white space of the JSON
        assert name == "config.json"
        assert_same(a_set(), loaded)


def test_damage_is_named(tmp_path):
    folder = a_set().save_pretrained(tmp_path / "set")

    def after(change, message):
        a_set().save_pretrained(folder)
        change()
        with pytest.raises(DataError, match=message) as caught:
            DistilledDataset.from_pretrained(folder)
        assert "\n" not in str(caught.value) and str(caught.value).count("expected") == 1

    data, config, metrics = (
        folder / "data.safetensors",
        folder / "config.json",
        folder / "metrics.json",
    )
    text = config.read_text()
    after(
        lambda: data.write_bytes(data.read_bytes()[:-10]),
        r"data\.safetensors: expected \d+ bytes, got \d+; it was cut off",
    )
    after(lambda: data.write_bytes(data.read_bytes()[:-1] + b"!"), "it was damaged or changed")
    after(data.unlink, r"data\.safetensors: expected a file of the artefact, got: No such file")
    after(
        lambda: config.write_text(text.replace('"seed": 0', '"seed": 1')),
        r"config\.json: .* it was changed after saving",
    )
    after(lambda: config.write_text(text[:50]), r"config\.json: expected valid JSON")
    after(lambda: config.write_text("[]"), r"config\.json: expected a table, got a list")
    after(lambda: config.write_text("{}"), r"config\.json: expected the description of an artefact")
    after(
        lambda: config.write_text(text.replace('"schema_version": 1', '"schema_version": 2')),
        "expected schema version 1, got 2",
    )
    after(lambda: metrics.write_text("{"), r"metrics\.json: expected valid JSON")
    a_set().save_pretrained(tmp_path / "other")
    config.unlink()
    with pytest.raises(DataError, match=r"config\.json: expected a file of the artefact"):
        DistilledDataset.from_pretrained(folder)
    for place, got in ((tmp_path / "missing", "nothing there"), (data, "a file")):
        with pytest.raises(DataError, match=f"expected an artefact folder, got {got}"):
            DistilledDataset.from_pretrained(place)


def test_names_of_files_that_are_not_utf8(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")  # what os.listdir gives for Latin-1 bytes
    small = a_set(classes=["a", "b", name], config={"run": {"data": Path(name), name: name}})
    assert_same(small, DistilledDataset.from_pretrained(small.save_pretrained(tmp_path)))
    assert small.classes[2] == "caf?"


def test_metrics_are_not_needed(tmp_path):
    a_set(metrics={"a": 1}).save_pretrained(tmp_path)
    (tmp_path / "metrics.json").unlink()
    assert DistilledDataset.from_pretrained(tmp_path).metrics == {}


def test_an_artefact_is_replaced_and_other_files_stay(tmp_path):
    a_set(seed=1).save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    a_set(seed=2, k=4).save_pretrained(tmp_path)
    assert_same(a_set(seed=2, k=4), DistilledDataset.from_pretrained(tmp_path))
    assert set(os.listdir(tmp_path)) == FILES | {"notes.txt"}


@pytest.mark.parametrize(
    "names",
    [
        ["holiday.jpg"],
        ["config.json"],
        ["README.md"],
        ["metrics.jsonl", "README.md"],
        ["data.safetensors"],
    ],
)
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("{}")
    for act in (check_output, a_set().save_pretrained):
        with pytest.raises(
            DataError, match="expected a new or empty folder or an earlier artefact, got one with"
        ):
            act(tmp_path)
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == dict.fromkeys(
        names, "{}"
    )


@pytest.mark.parametrize(
    "names",
    [[], [".gitkeep"], ["metrics.jsonl"], ["checkpoint.safetensors", "metrics.jsonl", "notes.txt"]],
)
def test_the_folder_of_a_run_is_accepted(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("")
    check_output(tmp_path)
    a_set().save_pretrained(tmp_path)
    check_output(tmp_path)
    check_output(tmp_path / "not" / "yet")


def test_a_full_disk_and_an_unwritable_place_change_nothing(tmp_path, disk_with_room_for):
    folder = a_set(seed=1).save_pretrained(tmp_path / "set")
    with disk_with_room_for(2000), pytest.raises(DataError, match="free disk space"):
        a_set(seed=2, size=32).save_pretrained(folder)
    assert set(os.listdir(folder)) == FILES
    assert_same(a_set(seed=1), DistilledDataset.from_pretrained(folder))
    with pytest.raises(DataError, match="expected a folder, got a file"):
        a_set().save_pretrained(folder / "README.md")
    with pytest.raises(DataError, match="expected a place that can be written"):
        a_set().save_pretrained(folder / "README.md" / "below")


@pytest.mark.parametrize(
    "step", range(0, 24, 2)
)  # tests/files/test_folder_layout.py has every step of a smaller folder
def test_killed_at_any_step_the_folder_holds_the_old_set_or_the_new_one(tmp_path, killed_at, step):
    old, new = (a_set(seed=seed, files={f"{seed}.png": b"x"}) for seed in (1, 2))
    folder = old.save_pretrained(tmp_path / "set")
    was_killed = killed_at(step, lambda: new.save_pretrained(folder))
    loaded = DistilledDataset.from_pretrained(folder)
    is_new = torch.equal(loaded.images, new.images)
    assert_same(new if is_new else old, loaded)
    assert was_killed or is_new
    a_set(seed=3).save_pretrained(folder)
    assert_same(a_set(seed=3), DistilledDataset.from_pretrained(folder))
    assert set(os.listdir(folder)) == FILES


def test_a_link_in_a_strangers_folder_moves_nothing(tmp_path):
    victim, folder = (
        a_set(seed=1).save_pretrained(tmp_path / "victim"),
        a_set(seed=2).save_pretrained(tmp_path / "set"),
    )
    (folder / ".next").symlink_to(victim)
    words = (
        r"set/\.next: expected a folder that an interrupted save left, got a symbolic link; delete "
        "it"
    )
    for act in (DistilledDataset.from_pretrained, a_set(seed=3).save_pretrained):
        with pytest.raises(DataError, match=words):
            act(folder)
    assert set(os.listdir(victim)) == FILES
    assert_same(a_set(seed=1), DistilledDataset.from_pretrained(victim))


@pytest.mark.parametrize("name", ["/dev/zero", "../victim", ".hidden", "a/b"])
def test_a_config_that_names_a_file_elsewhere_is_refused(tmp_path, name):
    folder = a_set().save_pretrained(tmp_path / "set")
    (tmp_path / "victim").write_bytes(b"12345")
    described = json.loads((folder / "config.json").read_text())
    described["artifact"]["files"][name] = {"bytes": 1, "sha256": ""}
    del described["artifact"]["checksum"]
    described["artifact"]["checksum"] = hashlib.sha256(to_json(described)).hexdigest()
    (folder / "config.json").write_bytes(to_json(described))
    with pytest.raises(
        DataError,
        match=r"config\.json: expected plain names of files in the same folder, got .*restore it",
    ) as caught:
        DistilledDataset.from_pretrained(folder)
    assert "5 bytes" not in str(caught.value)  # the size of a foreign file is nobody's business


@pytest.mark.parametrize("name", ["config.json", "data.safetensors", "metrics.json", "extra.png"])
def test_a_pipe_or_a_link_in_the_place_of_a_file_is_refused(tmp_path, name):
    folder = a_set(files={"extra.png": b"x"}).save_pretrained(tmp_path / "set")
    (folder / name).rename(tmp_path / "moved")
    (folder / name).symlink_to(tmp_path / "moved")
    with pytest.raises(
        DataError,
        match=rf"{name}: expected a file of the artefact, got: a symbolic link, which is not "
        "followed",
    ):
        DistilledDataset.from_pretrained(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(
        DataError, match=rf"{name}: expected a file of the artefact, got: a named pipe; restore it"
    ):
        DistilledDataset.from_pretrained(folder)


def test_nothing_in_a_folder_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    folder = a_set().save_pretrained(tmp_path / "set")
    (folder / "data.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError):
        DistilledDataset.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_show_without_a_notebook_uses_the_viewer(monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda self, title=None: shown.append(title))
    small = a_set()
    small.show()
    assert shown == [repr(small)]
    assert small._repr_png_().startswith(b"\x89PNG")
