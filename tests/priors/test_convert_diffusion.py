"""Converted diffusion models equal the original's equations, and bad sources are refused."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from typer.testing import CliRunner

import kdistill
from kdistill.cli import app
from kdistill.errors import ConfigError, DataError
from kdistill.priors.diffusion import NoiseSchedule
from kdistill.priors.diffusion.model_folder import load_diffusion_model
from kdistill.priors.diffusion.pretrained import PUBLISHED, convert_diffusion
from kdistill.priors.diffusion.pretrained.compvis_layout import (
    AutoencoderLayout,
    UNetLayout,
    is_squeezed,
)
from tests.priors.compvis_equations import (
    LATENTS,
    ROWS,
    averaged,
    checkpoint_shapes,
    decode,
    encode,
    predict_noise,
    tiny_checkpoint,
    write_checkpoint,
)
from tests.priors.compvis_equations import PUBLISHED as PUBLISHED_ARCHITECTURE
from tests.priors.tiny_diffusers import SIDE, save_transformer_pipeline, tiny_transformer

OPTIONS = {"size": 8, "null_class": ROWS - 1, "licence": "MIT"}


class Lightning:
    """Stands for the classes of the training library that published files name."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    tensors = tiny_checkpoint()
    path = tmp_path_factory.mktemp("ldm") / "model.ckpt"
    write_checkpoint(path, tensors, callbacks={Lightning: {"best": 0.5}})
    return path, tensors


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "ldm"
    convert_diffusion(checkpoint[0], folder, **OPTIONS)
    return folder


def in_float64(model):
    networks = (model.denoiser.unet, getattr(model.autoencoder, "vqvae", None))
    for network in (*networks, getattr(model.autoencoder, "vae", None)):
        if network is not None:
            network.double()
    return model


def doubled(tensors):
    return {name: x.double() for name, x in tensors.items()}


def inputs():
    random = torch.Generator().manual_seed(3)
    x = torch.randn(3, LATENTS, 4, 4, generator=random, dtype=torch.float64)
    return x, torch.tensor([1, 501, 999]), torch.tensor([0, 2, 3])


def test_a_converted_checkpoint_predicts_the_original_noise(checkpoint, converted):
    model, w = load_diffusion_model(converted), doubled(checkpoint[1])
    x, t, classes = inputs()
    context = w["cond_stage_model.embedding.weight"][classes][:, None]
    expected = predict_noise(w, x, t, context)
    assert expected.std() > 0.1
    said = model.denoiser.predict(x.float(), t, model.denoiser.condition(classes))
    torch.testing.assert_close(said, expected.float(), atol=1e-5, rtol=0)
    said = in_float64(model).denoiser.predict(x, t, context)
    # diffusers embeds timesteps in float32
    torch.testing.assert_close(said, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("quantised", [True, False])
def test_converted_latents_and_images_are_the_original_ones(quantised, tmp_path):
    tensors = tiny_checkpoint(quantised=quantised)
    path = write_checkpoint(tmp_path / "model.ckpt", tensors)
    model = in_float64(convert_diffusion(path, tmp_path / "out", **OPTIONS))
    w, scale = doubled(tensors), 1.0 if quantised else float(tensors["scale_factor"])
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    latents = encode(w, images)[:, :LATENTS]  # the rest is the variance of a posterior
    torch.testing.assert_close(model.autoencoder.encode(images), latents * scale)
    torch.testing.assert_close(model.autoencoder.decode(latents * scale), decode(w, latents))
    assert model.autoencoder.encode(images).shape == (2, *model.latent_shape)


def test_the_published_checkpoint_becomes_the_published_architecture():
    """Of the whole model at 256 pixels: shapes alone, no numbers."""
    shapes = checkpoint_shapes(PUBLISHED_ARCHITECTURE)

    def part(prefix):
        return {k.removeprefix(prefix): x for k, x in shapes.items() if k.startswith(prefix)}

    meta = PUBLISHED["ldm-cin256"].on_meta()
    unet = UNetLayout(part("model.diffusion_model."), heads=1, side=64)
    coder = AutoencoderLayout(part("first_stage_model."), scale=1.0)
    for layout, network, component in (
        (unet, meta.network, meta.parts.denoiser),
        (coder, meta.coder, meta.parts.autoencoder),
    ):
        assert component.config == {**component.config, **layout.config}
        old = part("model.diffusion_model." if layout is unet else "first_stage_model.")
        new = {name: old[layout.names[name]] for name in layout.names}
        new |= {name: shape[:2] for name, shape in new.items() if is_squeezed(name)}
        assert new == {name: tuple(x.shape) for name, x in network.state_dict().items()}


def test_the_schedule_is_that_of_the_original(converted):
    schedule = load_diffusion_model(converted).schedule
    assert schedule.grid(10) == list(range(1, 902, 100))
    expected = NoiseSchedule.scaled_linear(0.0015, 0.0195).alphas_cumprod
    torch.testing.assert_close(schedule.alphas_cumprod, expected, rtol=1e-6, atol=0)
    assert schedule.timesteps == 1000
    assert float(schedule.alphas_cumprod[901]) == pytest.approx(8.58e-4, rel=1e-3)
    assert schedule.final == float(schedule.alphas_cumprod[0])


def test_averaged_weights_come_first(checkpoint, tmp_path):
    tensors = {**checkpoint[1], **averaged(checkpoint[1])}
    path = write_checkpoint(tmp_path / "model.ckpt", tensors)
    model = in_float64(convert_diffusion(path, tmp_path / "out", **OPTIONS, heads=2))
    x, t, classes = inputs()
    context = checkpoint[1]["cond_stage_model.embedding.weight"][classes][:, None].double()
    w = {name: 0.5 * x.double() for name, x in checkpoint[1].items()}
    expected = predict_noise(w, x, t, context, heads=2)
    torch.testing.assert_close(
        model.denoiser.predict(x, t, context), expected, atol=1e-6, rtol=1e-6
    )


def test_what_the_folder_says_of_itself(checkpoint, converted):
    described = json.loads((converted / "config.json").read_text())
    assert set(described["files"]) == {
        "class_table.safetensors",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vqvae/config.json",
        "vqvae/diffusion_pytorch_model.safetensors",
    }
    card = (converted / "README.md").read_text()
    for word in ("MIT", "model.ckpt", described["source_sha256"]["model.ckpt"], "8x8 pixels"):
        assert word in card
    model = load_diffusion_model(converted)
    assert (model.classes, model.channels, model.size) == (ROWS - 1, 3, 8)


def test_a_converted_folder_is_checked_against_its_digests(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "copy")
    path = folder / "unet" / "config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(DataError, match=r"expected the contents that config.json names, got oth"):
        load_diffusion_model(folder)


def test_a_pickled_folder_converts_to_the_same_model(tmp_path):
    save_transformer_pipeline(tmp_path / "dit", safe_serialization=False)
    with pytest.raises(DataError, match=r"got only the pickle diffusion_pytorch_model\.bin"):
        load_diffusion_model(tmp_path / "dit")
    convert_diffusion(tmp_path / "dit", tmp_path / "out", licence="cc-by-nc-4.0")
    assert not list((tmp_path / "out").rglob("*.bin"))
    denoiser = load_diffusion_model(tmp_path / "out").denoiser
    x, t, classes = torch.randn(2, 4, SIDE, SIDE), torch.tensor([3, 800]), torch.tensor([1, 2])
    expected = tiny_transformer()(x, t, class_labels=classes).sample[:, :4].detach()
    said = denoiser.predict(x, t, denoiser.condition(classes))
    torch.testing.assert_close(said, expected)


def test_ld3m_distils_into_the_latents_of_a_converted_model(converted):
    images = torch.rand(8, 3, 8, 8)
    data = kdistill.load_data((images, torch.arange(8) % 2), quiet=True)
    options = {"prior": str(converted), "steps": 2, "guidance": 3.0, "width": 4, "iterations": 1}
    options |= {"lr": 1.0, "settings": {"batch_real": 4}}
    run = {"method": "ld3m", "ipc": 1, "validation": 0.0, "options": options, "quiet": True}
    with pytest.raises(ConfigError, match=r"of the data's 2 classes, got one of 3; .*classes=\["):
        kdistill.distill(data, **run)
    options["classes"] = [0, 2]
    small = kdistill.distill(data, **run)
    assert small.images.shape == (2, 3, 8, 8)
    assert bool(torch.isfinite(small.images).all())


class Attack:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


def test_a_hostile_checkpoint_is_refused_and_nothing_runs(checkpoint, tmp_path):
    flag = tmp_path / "flag"
    path = write_checkpoint(tmp_path / "model.ckpt", checkpoint[1], hook=Attack(flag))
    with pytest.raises(DataError, match=r"asks to run \w+\.system; nothing of it was run"):
        convert_diffusion(path, tmp_path / "out")
    assert not flag.exists()
    assert not (tmp_path / "out").exists()


def without(part):
    return lambda tensors: {name: x for name, x in tensors.items() if part not in name}


def of_another_schedule(tensors):
    return {**tensors, "betas": torch.linspace(1e-4, 0.02, 1000)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("cond_stage_model"), r"got no cond_stage_model\.embedding\.weight"),
        (without("diffusion_model"), r"got no model\.diffusion_model\."),
        (without("first_stage_model"), r"got no autoencoder"),
        (without("middle_block.1"), r"got a middle without cross-attention"),
        (without("output_blocks.3"), r"got 3 output blocks of 2 levels"),
        (without("input_blocks.1.0.emb_layers"), r"no 'input_blocks\.1\.0\.emb_layers\.1\.weight'"),
        (without("input_blocks.1"), r"got odd numbers of input_blocks"),
        (without("betas"), r"no tensor 'betas'"),
        (of_another_schedule, r"betas whose roots do not rise linearly"),
    ],
)
def test_another_checkpoint_is_refused(change, said, checkpoint, tmp_path):
    path = write_checkpoint(tmp_path / "model.ckpt", change(checkpoint[1]))
    with pytest.raises(DataError, match=said):
        convert_diffusion(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rewritten(source, path, change):
    """Write an archive again with other members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            name, data = change(info.filename, old.read(info))
            if name:
                new.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, data: (None if name.endswith("data/3") else name, data), "got no storage 3"),
        (lambda name, data: (name, data[:8] if "data/3" in name else data), "storage that is cut"),
        (lambda name, data: (name, b"big" if "byteorder" in name else data), "another byte order"),
        (lambda name, data: (name, b"x" if "data.pkl" in name else data), "got .*opcode"),
    ],
)
def test_a_damaged_archive_is_refused(change, said, checkpoint, tmp_path):
    path = rewritten(checkpoint[0], tmp_path / "model.ckpt", change)
    with pytest.raises(DataError, match=said):
        convert_diffusion(path, tmp_path / "out")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match=r"expected a checkpoint that torch\.save wrote"):
        convert_diffusion(tmp_path / "model.ckpt", tmp_path / "out")
    with pytest.raises(DataError, match="No such file"):
        convert_diffusion(tmp_path / "nothing.ckpt", tmp_path / "out")


def test_the_command_converts_a_model_without_a_null_class(checkpoint, tmp_path):
    out = str(tmp_path / "out")
    arguments = ["--size", "8", "--licence", "MIT"]
    shown = CliRunner().invoke(app, ["prior", "convert", str(checkpoint[0]), out, *arguments])
    assert f"diffusion model, 8x8, 3 channels, {ROWS} classes, latents [3, 4, 4]" in shown.output
    model = load_diffusion_model(out)
    assert (model.classes, model.sampler.guidance) == (ROWS, 1.0)
    with pytest.raises(ConfigError, match="expected 1 for a model without a null class, got 3"):
        model.sampling(steps=2, guidance=3.0).sample(torch.tensor([0]), key=0)


def test_options_of_a_diffusion_model_are_refused_for_another(tmp_path):
    (tmp_path / "net.pkl").write_bytes(b"")
    command = ["prior", "convert", str(tmp_path / "net.pkl"), str(tmp_path / "out")]
    shown = CliRunner().invoke(app, [*command, "--heads", "2"])
    assert "heads: expected a diffusion model for this option" in shown.output
    assert shown.exit_code == 2
