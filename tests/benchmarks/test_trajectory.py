import pytest
import torch

from benchmarks import exactness, trajectory
from benchmarks.peers import trajectory_matching as peer

CPU = torch.device("cpu")


@pytest.fixture
def small():
    return trajectory.Problem(CPU, torch.float64, steps=3, width=4, batch=4)


@pytest.mark.parametrize("name", peer.EXACT)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_exact_peers_compute_our_gradient(small, name):
    for ours, theirs in zip(small.ours(), small.published(name), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_compiled_peer_compiles_both_passes_once_per_network(small, monkeypatch):
    # tracing alone takes ten seconds; the benchmark checks what the compiler makes before it times
    # it
    compiled = []
    monkeypatch.setattr(
        torch, "compile", lambda function, backend: compiled.append(backend) or function
    )
    for _ in range(2):
        for ours, theirs in zip(small.ours(), small.published(peer.COMPILED), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert compiled == ["inductor"] * 2


def test_peers_that_are_absent_wrong_or_broken_are_named(small, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no\nkernel")

    def wrong(*arguments):
        return tuple(2 * x for x in peer.unroll(*arguments))

    monkeypatch.setattr(
        peer, "EXACT", {"published unroll": peer.unroll, "wrong": wrong, "broken": broken}
    )
    monkeypatch.setattr(
        peer.libraries,
        "ABSENT",
        {"higher": "absent: No module named 'higher'; pip install -e '.[peers]'"},
    )
    found = trajectory.contestants(small, quick=True)
    assert found["published unroll"] == "ok"
    assert found["wrong"].startswith("wrong: differs from ours by 1.0e+00")
    assert found["broken"] == "failed: RuntimeError: no kernel"
    assert found["higher"].startswith("absent: ")
    assert found[peer.COMPILED].startswith("left out: ")


def test_the_tesla_peer_computes_our_truncated_gradient(small):
    for ours, theirs in zip(small.ours("tesla"), small.published("published TESLA"), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_wrong_gradient_is_found(monkeypatch):
    monkeypatch.setattr(trajectory, "WIDTH", 8)
    monkeypatch.setattr(trajectory, "STEPS", 2)
    assert trajectory.check(CPU, torch.float32) == "ok"
    right = trajectory.Problem.ours

    def wrong(self, *arguments):
        loss, images, slope = right(self, *arguments)
        return loss, images * 1.0001, slope

    monkeypatch.setattr(trajectory.Problem, "ours", wrong)
    assert trajectory.check(CPU, torch.float32).startswith("wrong: image gradient")


def test_a_large_batch_is_timed_beside_every_exact_peer_that_agrees(monkeypatch):
    for name, value in {"WIDTH": 4, "STEPS": 2, "LARGE_BATCH": 12, "FEW_STEPS": 2}.items():
        monkeypatch.setattr(trajectory, name, value)
    rows = list(trajectory.run_large_batch(CPU, torch.float32, 0.001, False, False))
    timed = {row.backend for row in rows if row.status == "ok"}
    assert {"cpu", "published unroll"} <= timed
    assert {row.shape for row in rows} == {"b12_n2_3x32x32_w4"}


def test_a_training_step_that_differs_is_found(small):
    eager = trajectory.eager_step(peer.Flat(small.net), small.start, small.images, small.labels)
    assert trajectory.agree(small, eager) == "ok"
    assert trajectory.agree(small, eager.roll(1)).startswith("wrong")


def test_exactness_is_beside_eager():
    rows = exactness.summary(seeds=2, steps=2, width=6)
    assert rows["ours"][0] < 1e-4
    assert rows["eager"][0] < 1e-4
    assert min(rows["ours"][2], rows["eager"][2]) > 0.9999


def test_precisions_are_checked_against_the_float32_gradient(monkeypatch):
    problem = trajectory.Problem(CPU, torch.float32, steps=2, width=8, batch=4)
    assert list(trajectory.replayed(problem, ("fp32", "bf16"))) == [
        ("cpu with one graph", "fp32", "ok"),
        ("cpu with one graph, bf16", "bf16", "ok"),
    ]
    monkeypatch.setattr(
        trajectory, "one_graph", lambda problem, precision: (None, -problem.ours()[1], None)
    )
    ((_, _, state),) = trajectory.replayed(problem, ("fp32",))
    assert state == "wrong: the image gradient has cosine -1.00000"
