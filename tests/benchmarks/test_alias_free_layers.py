import pytest
import torch

from benchmarks import alias_free_layers as benchmark
from benchmarks.alias_free_layers import SIZES, Sizes
from kdistill.testing.backends import runnable_backends

CPU = torch.device("cpu")
SMALL = [
    Sizes(6, 5, 8, 8, 2),
    Sizes(6, 5, 8, 10, 4),
    Sizes(48, 48, 8, 5, 2),
]  # the last one by Winograd's convolution


@pytest.mark.parametrize("sizes", SMALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_our_layer_and_the_peers_are_the_published_one(sizes, dtype):
    given = benchmark.inputs(sizes, CPU, dtype)
    for name, layer in benchmark.PEERS.items():
        assert (
            benchmark.check(lambda *tensors, f=layer: f(*tensors, sizes=sizes), given, sizes)
            == "ok"
        ), name
    for backend in runnable_backends():
        if backend in ("cpu", "reference"):
            assert (
                benchmark.check(
                    lambda *tensors, b=backend: benchmark.ours(b, *tensors, sizes), given, sizes
                )
                == "ok"
            ), backend


def test_the_sizes_are_those_of_the_published_networks():
    assert [s.padding[:2] for s in SIZES] == [(9, 8), (-6, -9), (-11, -12)]


def test_a_wrong_gradient_is_found():
    given = benchmark.inputs(SMALL[0], CPU, torch.float32)

    def wrong(x, *others):
        return benchmark.grouped(x * 1.0001, *others, sizes=SMALL[0])

    assert benchmark.check(wrong, given, SMALL[0]).startswith(
        "wrong: stylegan3_layer n4_6to5_8to8px_up2: "
    )
