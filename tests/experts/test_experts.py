"""Expert training and the trajectory store."""

import json
import os
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kdistill.engine import build_student, loss_and_grad
from kdistill.errors import ConfigError, DataError
from kdistill.experts import (
    ExpertSpec,
    TrajectoryStore,
    estimate,
    train_expert,
    train_experts,
    trajectory_store,
)
from kdistill.experts import expert_training as training
from kdistill.experts.expert_training import gradient_of
from kdistill.experts.trajectory_store import INDEX
from kdistill.files.safe_files import temporary_name, write_new
from kdistill.keys import generator

SPEC = ExpertSpec(count=3, epochs=2, batch_size=8, strategy="color_crop")
STUDENT = build_student("convnet", channels=1, size=8, classes=3, width=4, depth=1)
IDENTITY = SPEC.identity({"fingerprint": "abc"}, "convnet of width 4")


@pytest.fixture
def images():
    g = torch.Generator().manual_seed(0)
    return torch.randn(20, 1, 8, 8, generator=g), torch.arange(20) % 3


def store_in(folder, identity=IDENTITY):
    return TrajectoryStore(folder, identity, num_params=STUDENT.num_params, epochs=SPEC.epochs)


def test_an_expert_is_sgd_from_fresh_weights(images):
    plain = ExpertSpec(epochs=1, batch_size=100, strategy="none")
    snapshots = train_expert(plain, STUDENT, *images, 0)
    _, grad = loss_and_grad(STUDENT, snapshots[0], *images)
    assert snapshots.shape == (2, STUDENT.num_params)
    torch.testing.assert_close(snapshots[1], snapshots[0] - 0.01 * grad)


def test_experts_differ_and_do_not_depend_on_their_number(images, tmp_path):
    few, many = (store_in(tmp_path / name) for name in ("few", "many"))
    train_experts(ExpertSpec(**{**vars(SPEC), "count": 1}), STUDENT, *images, few)
    train_experts(SPEC, STUDENT, *images, many)
    assert torch.equal(few.snapshot(0, 2), many.snapshot(0, 2))
    assert not torch.equal(many.snapshot(0, 2), many.snapshot(1, 2))
    assert not torch.equal(many.snapshot(0, 0), many.snapshot(0, 1))


def test_gsam_is_the_published_step(images):
    spec = ExpertSpec(optimiser="gsam", rho=0.05, surrogate=0.3, strategy="none")
    theta = STUDENT.init(generator(0)).double()
    x, y = images[0].double(), images[1]
    _, direction = gradient_of(spec, STUDENT)(theta, x, y)
    _, g = loss_and_grad(STUDENT, theta, x, y)
    e = 0.05 * theta**2 * g / ((theta.abs() * g).norm() + 1e-12)
    _, ahead = loss_and_grad(STUDENT, theta + e, x, y)
    cosine = torch.nn.functional.cosine_similarity(g, ahead, 0)
    torch.testing.assert_close(
        direction, ahead - 0.3 * (g - g.norm() * cosine * ahead / ahead.norm())
    )


def test_a_killed_training_goes_on_with_the_same_bits(images, tmp_path, capsys):
    whole = train_experts(SPEC, STUDENT, *images, store_in(tmp_path / "whole"))
    train_experts(
        ExpertSpec(**{**vars(SPEC), "count": 1}), STUDENT, *images, store_in(tmp_path / "parts")
    )
    parts = train_experts(SPEC, STUDENT, *images, store_in(tmp_path / "parts"))
    assert "2 experts to train" in capsys.readouterr().err
    assert all(torch.equal(whole.snapshot(i, 2), parts.snapshot(i, 2)) for i in range(3))
    files = [
        sorted(p.read_bytes() for p in (tmp_path / name).iterdir()) for name in ("whole", "parts")
    ]
    assert files[0] == files[1]


def test_the_estimate_is_the_size_on_the_disk(images, tmp_path):
    expected = estimate(SPEC, STUDENT, *images, 3)
    store = train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
    assert expected.nbytes == store.nbytes
    written = sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    assert store.nbytes <= written < store.nbytes + 3 * 2000
    assert "3 experts to train" in str(expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": {**IDENTITY["settings"], "lr": 0.1}}, r"settings.lr 0.1, got 0.01"),
        ({"data": {"fingerprint": "other"}}, "data.fingerprint 'other', got 'abc'"),
        ({"student": "mlp"}, "student 'mlp'"),
    ],
)
def test_trajectories_of_another_recipe_are_refused(images, tmp_path, change, words):
    train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
    with pytest.raises(ConfigError, match=words):
        store_in(tmp_path, {**IDENTITY, **change})


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_shard_is_refused_and_trained_again(images, tmp_path, damage, capsys):
    first = train_experts(SPEC, STUDENT, *images, store_in(tmp_path)).snapshot(1, 2)
    path = tmp_path / "expert-00001.safetensors"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-7] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match=r"expert-00001.*only this expert is trained anew"):
        store_in(tmp_path).snapshot(1, 2)
    again = train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
    assert "1 expert to train" in capsys.readouterr().err
    assert torch.equal(again.snapshot(1, 2), first)


def test_a_damaged_index_is_refused(images, tmp_path):
    train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
    (tmp_path / INDEX).write_text(json.dumps({"version": 9}))
    with pytest.raises(DataError, match="train the experts again"):
        store_in(tmp_path)
    with pytest.raises(DataError, match="kdistill experts"):
        TrajectoryStore(tmp_path / "nowhere")


@pytest.mark.parametrize("value", [None, "2", True, [2]])
@pytest.mark.parametrize("key", ["epochs", "num_params", "identity", "shards"])
def test_an_index_with_a_damaged_entry_is_refused(tmp_path, key, value):
    whole = {"version": 1, "identity": {}, "num_params": 3, "epochs": 2, "shards": {}}
    damaged = {**whole, key: value}
    if value is None:
        del damaged[key]
    (tmp_path / INDEX).write_text(json.dumps(damaged))
    with pytest.raises(DataError, match=f"got: no usable '{key}'; delete the folder"):
        TrajectoryStore(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({**whole, "shards": {"expert-00000.safetensors": 7}}))
    with pytest.raises(DataError, match="no usable 'shards'"):
        TrajectoryStore(tmp_path)


def test_two_processes_keep_each_others_experts(images, tmp_path):
    ours, theirs = store_in(tmp_path), store_in(tmp_path)
    ours.add(0, train_expert(SPEC, STUDENT, *images, 0))
    theirs.add(1, train_expert(SPEC, STUDENT, *images, 1))
    ours.add(2, train_expert(SPEC, STUDENT, *images, 2))
    assert len(ours) == len(store_in(tmp_path)) == 3
    assert torch.equal(ours.snapshot(1, 2), theirs.snapshot(1, 2))


def test_writers_at_the_same_time_lose_no_entry(tmp_path, monkeypatch):
    read = trajectory_store._read_index

    def slowly(path):  # between reading and writing is where another writer would be lost
        found = read(path)
        time.sleep(0.02)
        return found

    monkeypatch.setattr(trajectory_store, "_read_index", slowly)

    def write(first):
        store = TrajectoryStore(tmp_path, IDENTITY, num_params=2, epochs=1)
        for expert in range(first, 12, 4):
            store.add(expert, torch.tensor([[0.0, 1.0], [2.0, float(expert)]]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    monkeypatch.undo()
    store = TrajectoryStore(tmp_path, IDENTITY)
    assert [float(store.snapshot(expert, 1)[1]) for expert in range(12)] == [
        float(expert) for expert in range(12)
    ]


def test_processes_at_the_same_time_train_every_expert_once(images, tmp_path, monkeypatch):
    trained, real = [], training.train_expert

    def counted(spec, student, x, y, number, rows_of=None):
        trained.append(number)
        time.sleep(0.1)
        return real(spec, student, x, y, number, rows_of)

    monkeypatch.setattr(training, "train_expert", counted)
    stores = [store_in(tmp_path) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda store: train_experts(SPEC, STUDENT, *images, store), stores))
    assert sorted(trained) == [0, 1, 2]
    for store in stores:
        assert len(store) == 3 and bool(store.snapshot(2, 1).isfinite().all())
    assert not [*tmp_path.glob(".*")]  # neither locks nor temporary files


def test_a_killed_process_leaves_its_expert_to_the_others(images, tmp_path, monkeypatch):
    real = training.train_expert
    reader, writer = os.pipe()

    def stuck(*args):
        write_new(temporary_name(tmp_path / "expert-00000.safetensors"), b"a part")
        os.write(writer, b"x")
        time.sleep(60)

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of threads: the child uses none of them
        child = os.fork()
    if child == 0:
        training.train_expert = stuck
        train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
        os._exit(0)
    trained = []
    try:
        assert os.read(reader, 1) == b"x"  # the child holds expert 0

        def counted(spec, student, x, y, number, rows_of=None):
            trained.append(number)
            if len(trained) == 2:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return real(spec, student, x, y, number, rows_of)

        monkeypatch.setattr(training, "train_expert", counted)
        store = train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
    finally:
        if len(trained) < 2:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert trained == [1, 2, 0] and len(store) == 3
    assert not [*tmp_path.glob(".*")]  # neither locks nor what the killed one was writing


def test_an_expert_that_another_process_trained_again_is_taken_over(images, tmp_path):
    train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
    (tmp_path / "expert-00001.safetensors").write_bytes(b"")
    store, other = store_in(tmp_path), store_in(tmp_path)
    store.forget_missing()
    with store.claimed(1, wait=True) as is_missing:
        assert is_missing
    other.add(1, train_expert(SPEC, STUDENT, *images, 1))
    with store.claimed(1, wait=True) as is_missing:
        assert not is_missing and store.has(1)


@pytest.mark.parametrize(
    "name", ["/dev/zero", "../expert-00000.safetensors", "expert-0.safetensors", "notes.txt"]
)
def test_an_index_that_names_files_elsewhere_is_refused(images, tmp_path, name):
    train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
    index = json.loads((tmp_path / INDEX).read_text())
    index["shards"][name] = "0" * 64
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        DataError,
        match=r"expected a trajectory index in .*, got: a shard named '.*'; delete the folder",
    ):
        store_in(tmp_path)


@pytest.mark.parametrize("what", ["a symbolic link, which is not followed", "a named pipe"])
@pytest.mark.parametrize("name", ["expert-00001.safetensors", INDEX])
def test_a_link_or_a_pipe_in_the_place_of_a_file_is_refused(images, tmp_path, name, what):
    store = train_experts(SPEC, STUDENT, *images, store_in(tmp_path / "experts"))
    path = tmp_path / "experts" / name
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved") if "link" in what else os.mkfifo(path)
    with pytest.raises(DataError, match=f"got: {what}; delete the f"):
        store_in(tmp_path / "experts").snapshot(1, 2)
    assert torch.equal(store.snapshot(0, 2), store.snapshot(0, 2))


def test_a_shard_of_another_size_is_not_read(images, tmp_path):
    train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
    with (tmp_path / "expert-00001.safetensors").open("r+b") as file:
        file.truncate(1 << 40)  # a terabyte that no disk holds
    with pytest.raises(
        DataError,
        match=r"expected a little more than [\d,]+ bytes in .*, got 1,099,511,627,776; delete",
    ):
        store_in(tmp_path).snapshot(1, 2)


def test_a_forgotten_expert_does_not_come_back_from_the_disk(images, tmp_path):
    store = train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
    (tmp_path / "expert-00000.safetensors").unlink()
    (tmp_path / "expert-00001.safetensors").unlink()
    store = store_in(tmp_path)
    store.forget_missing()
    store.add(0, train_expert(SPEC, STUDENT, *images, 0))
    assert [store.has(i) for i in range(3)] == [True, False, True]
    assert not store_in(tmp_path).has(1)


@pytest.mark.parametrize("what", ["shape", "nan", "equal"])
def test_snapshots_that_cannot_be_used_are_refused(tmp_path, what):
    snapshots = torch.randn(SPEC.epochs + 1, STUDENT.num_params)
    words = {"shape": "store every epoch", "nan": "lower lr", "equal": "store clones"}[what]
    if what == "shape":
        snapshots = snapshots[:-1]
    elif what == "nan":
        snapshots[0, 0] = torch.nan
    else:
        snapshots[1] = snapshots[0]
    with pytest.raises(DataError, match=words):
        store_in(tmp_path).add(0, snapshots)


def test_what_is_not_there_is_refused(images, tmp_path):
    store = train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
    for expert, epoch in ((3, 0), (0, 3), (0, -1)):
        with pytest.raises(ConfigError, match="train more experts or longer"):
            store.snapshot(expert, epoch)


@pytest.mark.parametrize(
    "change", [{"count": 0}, {"lr": 0.0}, {"epochs": 0}, {"optimiser": "gsan"}]
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ConfigError):
        ExpertSpec(**change)


def half(epoch):
    """A curriculum: even rows first, then all."""
    return torch.arange(0, 20, 2) if epoch == 0 else torch.arange(20)


def test_a_curriculum_decides_what_an_epoch_sees(images):
    x, y = images
    plain = ExpertSpec(epochs=2, batch_size=100, strategy="none")
    snapshots = train_expert(plain, STUDENT, x, y, 0, half)
    for epoch in range(2):
        rows = half(epoch)
        _, grad = loss_and_grad(STUDENT, snapshots[epoch], x[rows], y[rows])
        torch.testing.assert_close(snapshots[epoch + 1], snapshots[epoch] - 0.01 * grad)
    spoilt = x.clone()
    spoilt[1::2] = 7.0
    assert torch.equal(snapshots[:2], train_expert(plain, STUDENT, spoilt, y, 0, half)[:2])


def test_a_curriculum_of_everything_changes_no_bit(images):
    whole = train_expert(SPEC, STUDENT, *images, 1)
    assert torch.equal(
        whole, train_expert(SPEC, STUDENT, *images, 1, lambda epoch: torch.arange(20))
    )


def test_a_killed_training_with_a_curriculum_goes_on_with_the_same_bits(images, tmp_path):
    identity = SPEC.identity({"fingerprint": "abc"}, "convnet of width 4", {"scores": "x"})
    whole = train_experts(
        SPEC, STUDENT, *images, store_in(tmp_path / "whole", identity), rows_of=half
    )
    parts = store_in(tmp_path / "parts", identity)
    train_experts(ExpertSpec(**{**vars(SPEC), "count": 1}), STUDENT, *images, parts, rows_of=half)
    parts = train_experts(
        SPEC, STUDENT, *images, store_in(tmp_path / "parts", identity), rows_of=half
    )
    assert all(torch.equal(whole.snapshot(i, 2), parts.snapshot(i, 2)) for i in range(3))


def test_a_shorter_epoch_is_a_shorter_estimate(images):
    spec = ExpertSpec(**{**vars(SPEC), "epochs": 1})
    assert (
        estimate(spec, STUDENT, *images, 3, half).nbytes
        == estimate(spec, STUDENT, *images, 3).nbytes
    )


def test_trajectories_of_another_selection_are_refused(images, tmp_path):
    ours = SPEC.identity(
        {"fingerprint": "abc"}, "convnet of width 4", {"scores": "x", "initial_ratio": 0.75}
    )
    train_experts(SPEC, STUDENT, *images, store_in(tmp_path, ours), rows_of=half)
    with pytest.raises(
        ConfigError, match=r"selection None, got \{'initial_ratio': 0.75, 'scores': 'x'\}"
    ):
        store_in(tmp_path)
    with pytest.raises(ConfigError, match=r"selection.initial_ratio 0.5, got 0.75"):
        store_in(tmp_path, {**ours, "selection": {**ours["selection"], "initial_ratio": 0.5}})


def test_trajectories_that_are_too_short_are_refused_with_both_numbers(images, tmp_path):
    train_experts(SPEC, STUDENT, *images, store_in(tmp_path))
    longer = ExpertSpec(**{**vars(SPEC), "epochs": 7}).identity(
        {"fingerprint": "abc"}, "convnet of width 4"
    )
    with pytest.raises(ConfigError, match=r"trajectories of 7 epochs .* got 2 in"):
        store_in(tmp_path, longer)
