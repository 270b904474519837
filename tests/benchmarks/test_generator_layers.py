import pytest
import torch

from benchmarks import generator_layers as benchmark
from benchmarks.generator_layers import Sizes
from benchmarks.peers.generator_layers import PEERS, grouped
from kdistill.testing.backends import runnable_backends

CPU = torch.device("cpu")
SIZES = [
    Sizes(6, 5, 8, False),
    Sizes(6, 5, 8, True),
    Sizes(48, 48, 8, False),
    Sizes(48, 48, 8, True),
]  # the last two by Winograd


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_our_layer_is_the_published_one(sizes, dtype):
    given = benchmark.inputs(sizes, CPU, dtype)
    for backend in runnable_backends():
        if backend in ("cpu", "reference"):
            assert benchmark.check(benchmark.ours_on(backend, given[-1]), given, sizes) == "ok"


@pytest.mark.parametrize("sizes", SIZES[:2], ids=str)
def test_peers_agree(sizes):
    given, wrt = benchmark.inputs(sizes, CPU, torch.float64), benchmark.METRICS["training"]
    for layer in PEERS.values():
        for a, b in zip(
            benchmark.gradients(layer, given, wrt),
            benchmark.gradients(grouped, given, wrt),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_no_activation_is_near_the_kink():
    for sizes in SIZES:
        assert grouped(*benchmark.inputs(sizes, CPU, torch.float64)).abs().min() > 0.05


def test_a_wrong_gradient_is_found():
    given = benchmark.inputs(SIZES[0], CPU, torch.float32)

    def wrong(x, *others):
        return grouped(x * 1.0001, *others)

    assert benchmark.check(wrong, given, SIZES[0]).startswith(
        "wrong: stylegan2_layer n10_6to5_8px: "
    )
