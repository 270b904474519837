"""Costs that are counted without weights are those of the networks when they run."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdistill.errors import ConfigError
from kdistill.priors.diffusion.model_folder import load_diffusion_model
from kdistill.priors.diffusion.pretrained.assembly import networks_on_meta
from kdistill.priors.diffusion.pretrained.diffusers_folder import read_parts
from kdistill.priors.diffusion.pretrained.network_cost import (
    Work,
    measured_rates,
    model_cost,
    pass_cost,
)
from kdistill.priors.diffusion.pretrained.published_models import published_cost, published_model
from tests.priors.tiny_diffusers import SIDE, save_transformer_pipeline


def test_the_work_of_a_convolution_and_a_product_is_that_of_the_formula():
    kernel, matrix = torch.randn(5, 3, 3, 3), torch.randn(7, 5)
    x = torch.randn(1, 3, 8, 8)

    def network(x):
        return torch.tanh(torch.nn.functional.conv2d(x, kernel, padding=1)).mean((2, 3)) @ matrix.T

    cost = pass_cost(network, [x], [kernel, matrix])
    assert cost.forward == Work(2 * 5 * 3 * 9 * 64, 2 * 5 * 7)
    assert cost.backward == Work(2 * 5 * 3 * 9 * 64, 2 * 5 * 7)
    # the output of tanh; input and kernel of a convolution are there anyway, or saved with it
    assert cost.saved_bytes in (4 * 5 * 64, 4 * (5 + 3) * 64)


def test_a_count_without_weights_is_that_of_the_running_network(tmp_path):
    folder = save_transformer_pipeline(tmp_path / "dit")
    counted = model_cost(networks_on_meta(read_parts(folder)))
    model = load_diffusion_model(folder)
    network = model.denoiser.transformer
    x, t = torch.randn(1, 4, SIDE, SIDE), torch.zeros(1, dtype=torch.int64)
    weights = [*network.parameters(), *network.buffers()]
    condition = model.denoiser.condition(t)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel is no product that torch counts
        run = pass_cost(lambda x, c: model.denoiser.predict(x, t, c), [x, condition], weights)
        decoded = pass_cost(model.autoencoder.decode, [x], model.autoencoder.vae.parameters())
    assert (run.forward, run.backward) == (counted.denoiser.forward, counted.denoiser.backward)
    assert decoded.forward == counted.decoder.forward
    assert counted.denoiser.saved_bytes == pytest.approx(run.saved_bytes, rel=0.05)
    assert counted.num_params == sum(p.numel() for p in network.parameters())
    assert counted.latent_bytes == x.nbytes


# the authors state 400 M and 675 M; the 28 copies of the embeddings count once
@pytest.mark.parametrize(("name", "millions"), [("ldm-cin256", 400.9), ("dit-xl-2-256", 673.6)])
def test_the_published_architectures_have_the_published_sizes(name, millions):
    cost = published_cost(name)
    assert cost.num_params / 1e6 == pytest.approx(millions, abs=0.1)
    # the papers: 118.6 GFLOP (multiplications) for DiT-XL/2
    if name == "dit-xl-2-256":
        assert cost.denoiser.forward.total / 2e9 == pytest.approx(118.6, rel=0.01)


def test_rates_are_those_of_a_machine():
    rates = measured_rates()
    assert 1e8 < rates.convolutions < 1e15
    assert rates.seconds(Work(int(rates.convolutions), 0)) == pytest.approx(1.0)


def test_a_name_is_no_folder(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="got the name 'ldm-cin256', for which only plan works"):
        load_diffusion_model("ldm-cin256")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ldm-cin256").mkdir()
    assert published_model("ldm-cin256") is None
