"""The prior of H-GLaD: going down layer by layer keeps the images."""

import pytest
import torch

from kdistill.errors import ConfigError
from kdistill.priors import PIXELS, GeneratorAdapter, HierarchicalPrior
from tests.priors.original_files import tiny_stylegan2, tiny_stylegan3


@pytest.mark.parametrize(
    "network", [tiny_stylegan2(), tiny_stylegan3()], ids=["stylegan2", "stylegan3"]
)
@pytest.mark.parametrize("noise", ["const", "random"])
def test_going_down_keeps_the_images(network, noise):
    prior = HierarchicalPrior(network, GeneratorAdapter(size=12), chunk=2, key=3, noise=noise)
    state = prior.init(torch.tensor([0, 1, 2]), average=4)
    images = prior.render(state, 7)
    seen = [prior.depth(state)]
    for stage in [*range(1, network.num_layers + 1), PIXELS]:
        state = prior.descend(state, stage, 7)
        seen.append(prior.depth(state))
        torch.testing.assert_close(prior.render(state, 7), images, rtol=1e-5, atol=1e-5)
        grads = prior.vjp(state, torch.ones_like(images), 7)
        assert {name: x.shape for name, x in grads.items()} == {
            name: x.shape for name, x in state.items()
        }
    assert seen == [None, *range(1, network.num_layers + 1), PIXELS]
    assert list(state) == ["images"]
    with pytest.raises(
        ConfigError, match="expected a stage below pixels, got 2; stages only go down"
    ):
        prior.descend(state, 2, 7)


def test_a_stage_may_skip_layers_and_feature_maps_are_cleaned():
    network = tiny_stylegan2()
    prior = HierarchicalPrior(network, GeneratorAdapter(), chunk=2, key=3)
    state = prior.init(torch.tensor([0, 1]))
    torch.testing.assert_close(
        prior.descend(state, 3, 0)["f.3"], network.to_f(state["ws"], 3).clamp(-10, 10)
    )
    deep = prior.descend(prior.descend(state, 1, 0), 3, 0)
    torch.testing.assert_close(deep["f.3"], prior.descend(state, 3, 0)["f.3"])
    wild = {**deep, "f.3": torch.full_like(deep["f.3"], torch.nan)}
    assert torch.isfinite(prior.descend(wild, 4, 0)["f.4"]).all()
