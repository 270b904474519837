"""Folders of diffusers load as diffusion models, and bad ones are refused in a sentence."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import kdistill
from kdistill.errors import DataError, MissingExtraError
from kdistill.priors.diffusion.autoencoders import QuantisedAutoencoder, nearest_codes
from kdistill.priors.diffusion.model_folder import load_diffusion_model
from kdistill.priors.network_files import load_generator
from tests.priors.tiny_diffusers import (
    CLASSES,
    SIDE,
    save_transformer_pipeline,
    tiny_transformer,
    tiny_vae,
)

PACKAGE = Path(kdistill.__file__).parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_transformer_pipeline(tmp_path_factory.mktemp("dit"))


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "dit")


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_transformer_pipeline_predicts_as_diffusers_does(saved):
    model, network = load_diffusion_model(saved), tiny_transformer()
    x, t = torch.randn(4, 4, SIDE, SIDE), torch.tensor([1, 40, 500, 999])
    labels = torch.tensor([0, 2, 1, 0])
    with torch.no_grad():
        expected = network(x, t, class_labels=labels).sample[:, :4]  # the rest is the variance
        null = network(x[:1], t[:1], class_labels=torch.tensor([CLASSES])).sample[:, :4]
    condition = model.denoiser.condition(labels)
    torch.testing.assert_close(model.denoiser.predict(x, t, condition), expected)
    without = model.denoiser.predict(x[:1], t[:1], model.denoiser.null_condition())
    torch.testing.assert_close(without, null)
    assert (model.classes, model.channels, model.size) == (CLASSES, 3, 2 * SIDE)
    assert model.latent_shape == (4, SIDE, SIDE)


def test_the_class_vector_reaches_every_block(saved):
    """The gradient in a learned class vector is that of finite differences."""
    denoiser = load_diffusion_model(saved).denoiser
    denoiser.transformer.double()
    x, t = torch.randn(1, 4, SIDE, SIDE, dtype=torch.float64), torch.tensor([40])
    vector = denoiser.condition(torch.tensor([1])).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: denoiser.predict(x, t, c), vector, fast_mode=True)


def test_the_autoencoder_scales_as_diffusers_does(saved):
    model, vae = load_diffusion_model(saved), tiny_vae()
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        z = vae.encode(images).latent_dist.mode() * 0.18215
        torch.testing.assert_close(model.autoencoder.encode(images), z)
        decoded = vae.decode(z / 0.18215).sample
    torch.testing.assert_close(model.autoencoder.decode(z), decoded)
    assert model.autoencoder.quantise(z) is z


def test_samples_depend_on_key_and_label_and_weights_have_no_gradient(saved):
    model = load_diffusion_model(saved).sampling(steps=2, guidance=3.0)
    images = model.sample(torch.tensor([0, 1, 2]), key=5)
    assert images.shape == (3, 3, 8, 8)
    assert torch.equal(images, model.sample(torch.tensor([0, 1, 2]), key=5))
    assert not any(x.requires_grad for x in model.tensors.values())


def test_shards_are_read_and_a_missing_one_is_named(tmp_path):
    folder = save_transformer_pipeline(tmp_path / "dit", max_shard_size="3KB")
    shards = sorted((folder / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    x, t = torch.randn(1, 4, SIDE, SIDE), torch.tensor([7])
    denoiser = load_diffusion_model(folder).denoiser
    expected = tiny_transformer()(x, t, class_labels=torch.tensor([1])).sample[:, :4]
    said = denoiser.predict(x, t, denoiser.condition(torch.tensor([1])))
    torch.testing.assert_close(said, expected.detach())
    shards[1].unlink()
    with pytest.raises(DataError, match=rf"got no {shards[1].name}; copy it from the source"):
        load_diffusion_model(folder)


def test_names_of_early_versions_are_understood(folder):
    """The published autoencoder of DiT was saved before attention had its present names."""
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, x in load_file(weights).items():
        for present, before in former.items():
            name = name.replace(f".{present}.", f".{before}.")
        tensors[name] = x
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in tensors
    save_file(tensors, weights)
    latents = torch.randn(1, 4, SIDE, SIDE)
    expected = tiny_vae().decode(latents).sample.detach()
    decoded = load_diffusion_model(folder).autoencoder.decode(latents * 0.18215)
    torch.testing.assert_close(decoded, expected)


def without_weights(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def with_pickles(folder):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def truncated(folder):
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def without_scheduler(folder):
    shutil.rmtree(folder / "scheduler")


def with_another_table(folder):
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    save_file({**tensors, name: tensors[name] + 1}, weights)


def without_vae(folder):
    shutil.rmtree(folder / "vae")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            without_weights,
            r"vae: expected weights in diffusion_pytorch_model.safetensors, got none",
        ),
        (
            with_pickles,
            r"got only the pickle diffusion_pytorch_model.bin, which is not loaded; con",
        ),
        (truncated, r"expected a whole safetensors file, got one that is damaged or cut off"),
        (without_scheduler, r"expected scheduler.scheduler_config.json beside the networks"),
        (with_another_table, r"expected one table of classes in all blocks, got another .*block 1"),
        (without_vae, r"expected a folder vqvae/ or vae/, got none"),
    ],
)
def test_a_damaged_folder_is_refused(damage, said, folder):
    damage(folder)
    with pytest.raises(DataError, match=said):
        load_diffusion_model(folder)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("transformer", {"_diffusers_version": "1.2.0"}, r"of diffusers 0.x, got one of 1\.2\.0"),
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, r"got 'FluxTransformer2DModel'"),
        ("transformer", {"new_option": 3}, r"got new_option; install the version that wrote it"),
        ("transformer", {"num_layers": 3}, r"got no 'transformer_blocks\.2\."),
        ("transformer", {"num_layers": 10**9}, r"numbers up to 200, got num_layers 1000000000"),
        ("transformer", {"num_embeds_ada_norm": 7}, r"embedding_table.weight' of shape \[8, 8\]"),
        ("transformer", {"sample_size": [4, 8]}, r"expected one number as sample_size"),
        ("transformer", {"sample_size": -1}, r"expected one number as sample_size .*, got -1"),
        ("transformer", {"num_layers": 0}, r"networks that fit together, got: list index out of"),
        ("transformer", {"activation_fn": None}, r"that DiTTransformer2DModel can be, got: cannot"),
        ("vae", {"scaling_factor": 0}, r"expected a positive scaling_factor, got 0"),
        ("vae", {"scaling_factor": "x"}, r"expected a positive scaling_factor, got 'x'"),
        ("transformer", {"patch_size": 3}, r"shape \[4, 4, 4\], got \[4, 3, 3\]"),
        (
            "vae",
            {"latent_channels": 3},
            r"denoiser of the autoencoder's 3 latent channels, got .*4",
        ),
        ("vae", {"latents_mean": [0.0]}, r"got latents_mean=\[0\.0\]"),
        ("vae", {"block_out_channels": [4, 5]}, r"expected a network that AutoencoderKL can be"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(part, changes, said, folder):
    change(folder / part / "config.json", **changes)
    with pytest.raises(DataError, match=said):
        load_diffusion_model(folder)


def test_another_kind_of_place_is_refused(tmp_path, saved):
    with pytest.raises(DataError, match=r"expected a StyleGAN, got a diffusion model .*ld3m"):
        load_generator(saved)
    with pytest.raises(DataError, match=r"expected a diffusion model in .*, got none; make one"):
        load_diffusion_model(tmp_path)
    with pytest.raises(DataError, match="expected a folder, got the file"):
        load_diffusion_model(saved / "transformer" / "config.json")


class Codebook:
    """A quantised autoencoder of which only the codebook is used."""

    def __init__(self, codes):
        self.quantize = torch.nn.Module()
        self.quantize.embedding = torch.nn.Embedding(*codes.shape, _weight=codes)


def test_codes_are_the_nearest_ones_in_any_chunk_and_gradients_pass(monkeypatch):
    codes, rows = torch.randn(50, 3), torch.randn(2, 3, 5, 5, requires_grad=True)
    flat = rows.detach().permute(0, 2, 3, 1).reshape(-1, 3).double()
    expected = (flat[:, None] - codes.double()).square().sum(-1).argmin(1)
    assert torch.equal(nearest_codes(flat.float(), codes), expected)
    monkeypatch.setattr("kdistill.priors.diffusion.autoencoders.MAX_DISTANCES", 7 * len(codes))
    assert torch.equal(nearest_codes(flat.float(), codes), expected)
    quantised = QuantisedAutoencoder(Codebook(codes), scale=1.0).quantise(rows)
    assert torch.equal(quantised.permute(0, 2, 3, 1).reshape(-1, 3), codes[expected])
    weights = torch.randn_like(rows)
    (grad,) = torch.autograd.grad(quantised, rows, weights)
    assert torch.equal(grad, weights)


def test_a_missing_library_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"got none; pip install 'kdistill\[diffusion\]'"):
        load_diffusion_model(saved)


def test_one_function_alone_imports_the_library():
    """Its import takes seconds, which nobody else should wait for."""
    lines = {
        f"{path.name}: {line}"
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith(("import diffusers", "from diffusers"))
    }
    assert lines == {"diffusers_library.py:         import diffusers"}
