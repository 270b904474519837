import pytest
import torch

from benchmarks import gradient_matching as benchmark
from benchmarks.peers import gradient_matching as peer

CPU = torch.device("cpu")


@pytest.fixture
def small():
    return benchmark.Problem(CPU, torch.float64, 4, (3, 4, 2, 16))


@pytest.mark.parametrize("name", peer.EXACT)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_peers_compute_our_gradient(small, name):
    for step in (1, 2):
        for ours, theirs in zip(
            small.ours(small.images, step), small.published(name, step), strict=True
        ):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["ours", *peer.EXACT])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_an_iteration_moves_the_images(small, name):
    iteration = small.call(name)
    iteration()
    assert not torch.equal(iteration.images, small.images)


def test_a_wrong_gradient_is_found(monkeypatch):
    for name, value in {"WIDTH": 4, "CHECK_WIDTH": 4, "CLASSES": 2, "REAL": 3, "IPC": 2}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark.Problem.__init__, "__defaults__", ((2, 3, 2, 16),))
    assert benchmark.check(CPU, torch.float32) == "ok"
    right = benchmark.Problem.ours

    def wrong(self, images, step):
        loss, grad = right(self, images, step)
        return loss, grad * 1.0001

    monkeypatch.setattr(benchmark.Problem, "ours", wrong)
    assert benchmark.check(CPU, torch.float32).startswith("wrong: image gradient")
