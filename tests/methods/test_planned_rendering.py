"""A run on a published model is planned from its architecture."""

import pytest
import torch

import kdistill
from kdistill import methods
from kdistill.errors import ConfigError
from kdistill.methods.latent.planned_rendering import dry_run_of_published, rendering_of
from kdistill.priors.diffusion.pretrained.network_cost import ModelCost, PassCost, Rates, Work

COST = ModelCost(
    num_params=7,
    weight_bytes=28,
    latent_bytes=10,
    denoiser=PassCost(Work(100, 10), Work(100, 20), saved_bytes=1000),
    decoder=PassCost(Work(1000, 0), Work(1000, 0), saved_bytes=1500),
)


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 1), (3.0, 2)])
def test_passes_are_counted_per_row_and_step(guidance, rows):
    planned = rendering_of(COST, Rates(1e3, 1e2), steps=5, guidance=guidance, chunk=4)
    convolutions = 5 * rows * (3 * 100 + 100) + 3 * 1000
    products = 5 * rows * (3 * 10 + 20)
    assert planned.seconds_per_image == pytest.approx(convolutions / 1e3 + products / 1e2)
    assert planned.chunk_bytes == 4 * (max(rows * 1000, 1500) + 5 * 10)
    assert planned.resident_bytes == 28


def test_the_objective_is_rehearsed_on_small_images(tmp_path):
    images = torch.rand(6, 3, 64, 64)
    data = kdistill.load_data((images, torch.arange(6) % 2), quiet=True)
    method = methods.get("dm")
    config = method.options("fast", {"width": 4, "iterations": 3})
    how = {"steps": 10, "guidance": 3.0, "chunk": 10}
    dry_run = dry_run_of_published("ldm-cin256", method, config, data, tmp_path, **how)
    assert dry_run.data.size == 32
    assert dry_run.pixels_ratio == 4.0
    problem = dry_run.method.build(dry_run.config, dry_run.data, 1, 0, None)
    assert problem.state["images"].shape == (2, 3, 32, 32)
    said = " ".join(dry_run.rendering.assumptions)
    for words in ("401 M parameters", "10 steps, guidance 3 (2 rows each)", "rehearsed at 32x32"):
        assert words in said
    assert dry_run.rendering.chunk_bytes > 10 * 1.5e9  # the decoder's graph at 256 pixels


def images_of(size):
    return kdistill.load_data((torch.rand(6, 3, size, size), torch.arange(6) % 2), quiet=True)


def test_a_run_with_a_published_name_is_planned_and_not_carried_out():
    run = {"method": "ld3m", "ipc": 1, "validation": 0.0}
    options = {"prior": "dit-xl-2-256", "width": 4, "steps": 7, "settings": {"batch_real": 2}}
    planned = kdistill.plan(images_of(256), **run, options=options)
    text = str(planned)
    for words in ("674 M parameters", "7 steps, guidance 1 (1 row each)", "of 256x256"):
        assert words in text
    assert planned.memory_bytes > 10 * 1.4e9
    assert planned.iteration_seconds > 1.0
    with pytest.raises(ConfigError, match="got the name 'dit-xl-2-256', for which only plan works"):
        kdistill.distill(images_of(32), **run, options=options)
    with pytest.raises(ConfigError, match="data's size 32x32, got one of 256x256"):
        kdistill.plan(images_of(32), **run, options=options)
