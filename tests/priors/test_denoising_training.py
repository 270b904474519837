"""Training of a diffusion model: its loss, its steps, resuming, its folder, its networks."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call

from kdistill.data import ImageDataset, Split
from kdistill.errors import ConfigError, DataError, NonFiniteError
from kdistill.priors.diffusion import NoiseSchedule
from kdistill.priors.diffusion.model_folder import load_diffusion_model
from kdistill.priors.diffusion.networks import UNet, UViT
from kdistill.priors.diffusion_training import (
    DiffusionSpec,
    autoencoder_training,
    new_denoising_training,
)
from kdistill.priors.network_files import load_generator, save_generator
from kdistill.runner import Checkpoints, Runner
from kdistill.transforms import Identity

TINY = {"iterations": 4, "batch_size": 6, "widths": (8, 16), "embedding": 16, "depth": 3}


def tiny_data(size=8, channels=1, mirrors=False):
    random = torch.Generator().manual_seed(1)
    labels = torch.arange(30) % 3
    images = torch.rand(3, channels, size, size, generator=random)[labels]
    images = (images + 0.1 * torch.rand(images.shape, generator=random)) / 1.1
    split = Split(images, labels)
    return ImageDataset(
        name="tiny", train=split, test=split, classes=("a", "b", "c"), mirrors=mirrors,
        transform=Identity(),
    )  # fmt: skip


def tiny_training(data=None, **changes):
    return new_denoising_training(DiffusionSpec(**{**TINY, **changes}), data or tiny_data())


def run(task, folder=None, resume=False, **how):
    runner = Runner(
        task=task, checkpoints=Checkpoints(folder), report=lambda *_: None, check_every=1, **how
    )
    return runner.run(resume=resume)


@pytest.mark.parametrize("prediction", ["v", "epsilon", "x0"])
@pytest.mark.parametrize("network", ["unet", "uvit"])
def test_the_loss_is_that_of_its_formula(network, prediction):
    task = tiny_training(prediction=prediction, network=network)
    task = replace(task, images=task.images.double(), network=task.network.double())
    theta = task.layout.flatten(task.network.state_dict())
    batch = {}

    def spy(x, timesteps, classes):
        batch.update(x=x, timesteps=timesteps, classes=classes)
        return original(x, timesteps, classes)

    original, task.network.forward = task.network.forward, spy
    loss = task.loss(theta, 3, {})
    output = functional_call(
        task.network, task.layout.named(theta), (batch["x"], batch["timesteps"], batch["classes"])
    )
    # the image is the training image that fits: the noisy one minus the rest is noise of its size
    a = NoiseSchedule.cosine().alphas_cumprod[batch["timesteps"]].view(-1, 1, 1, 1)
    assert (batch["timesteps"] // (1000 / 6)).int().tolist() == [0, 1, 2, 3, 4, 5]
    losses = []
    for row in range(6):
        noises = (batch["x"][row] - a[row].sqrt() * task.images) / (1 - a[row]).sqrt()
        targets = {
            "epsilon": noises,
            "x0": task.images,
            "v": a[row].sqrt() * noises - (1 - a[row]).sqrt() * task.images,
        }[prediction]
        losses.append((output[row] - targets).square().mean((1, 2, 3)))
    # one of the candidates of every row gives the loss
    rows = task._uniform(_key(task), "rows", 6, len(task.images)).long()
    expected = torch.stack([x[row] for x, row in zip(losses, rows, strict=True)]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)


def _key(task, iteration=3):
    from kdistill.keys import make_key

    return make_key(task.spec.seed, "denoising", iteration)


def test_labels_are_dropped_at_their_rate():
    task = tiny_training(batch_size=2000, label_dropout=0.2)
    dropped = []
    task.network.forward = lambda x, t, classes: dropped.append(classes == 3) or x
    task.loss(task.start().tensors["network"], 0, {})
    assert abs(float(dropped[0].double().mean()) - 0.2) < 0.03


def test_images_are_mirrored_only_where_they_may_be():
    assert not tiny_training().mirrors
    assert tiny_training(tiny_data(mirrors=True)).mirrors
    assert not tiny_training(tiny_data(mirrors=True), augment="none").mirrors


def test_training_lowers_the_loss():
    task = tiny_training(iterations=40, batch_size=12, lr=3e-3, warm_up=5)
    state = run(task).state
    before = sum(float(task.loss(task.start().tensors["network"], i, {})) for i in (100, 101))
    after = sum(float(task.loss(state.tensors["average"], i, {})) for i in (100, 101))
    assert after < 0.8 * before


def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(tmp_path):
    whole = run(tiny_training()).state.tensors
    run(tiny_training(iterations=2), tmp_path)
    resumed = run(tiny_training(), tmp_path, resume=True).state.tensors
    assert whole.keys() == resumed.keys()
    for name, x in whole.items():
        assert torch.equal(x, resumed[name]), name


def test_the_average_follows_the_network():
    task = tiny_training(ema_share=0.5)
    first = task.start()
    second, _ = task.iterate(first)
    third, _ = task.iterate(second)
    decay = 0.5 ** (1 / (0.5 * 2))
    expected = decay * second.tensors["average"] + (1 - decay) * third.tensors["network"]
    torch.testing.assert_close(third.tensors["average"], expected)


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(tmp_path):
    task = tiny_training(lr=1e30, warm_up=1)
    with pytest.raises(NonFiniteError, match=r"lower lr \(now 1e\+30\)"):
        run(task, tmp_path)
    assert (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("network", ["unet", "uvit"])
def test_a_saved_model_draws_the_same_images(tmp_path, network):
    task = tiny_training(network=network, steps=3)
    random = torch.Generator().manual_seed(0)
    vector = torch.randn(task.start().tensors["average"].shape, generator=random)
    model = task.model({"average": 0.1 * vector}).sampling(guidance=1.5)
    save_generator(task.model({"average": 0.1 * vector}), tmp_path)
    loaded = load_diffusion_model(tmp_path).sampling(guidance=1.5)
    labels = torch.tensor([0, 2, 1])
    assert torch.equal(loaded.sample(labels, 5), model.sample(labels, 5))
    assert loaded.sample(labels[:0], 5).shape == (0, 1, 8, 8)
    with pytest.raises(DataError, match=r"got a diffusion model in .* --method ld3m"):
        load_generator(tmp_path)


def test_a_model_with_other_tensors_is_refused(tmp_path):
    task = tiny_training()
    model = task.model(task.start().tensors)
    tensors = dict(model.tensors)
    tensors["class_table.weight"] = tensors["class_table.weight"][:-1].clone()
    save_generator(replace(model, tensors=tensors), tmp_path)
    with pytest.raises(DataError, match=r"expected the tensors of its architecture.*class_table"):
        load_diffusion_model(tmp_path)
    weights = load_file(tmp_path / "generator.safetensors")
    save_file(weights, tmp_path / "generator.safetensors")
    with pytest.raises(DataError, match="expected the contents"):
        load_diffusion_model(tmp_path)


def test_channels_last_changes_no_prediction():
    network = UNet(3, 4, patch=2, widths=(8, 16), blocks=2, embedding=16, prediction="v").double()
    random = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=random).double()
    x = torch.randn(2, 3, 8, 8, generator=random).double()
    timesteps, classes = torch.tensor([3, 900]), torch.tensor([1, 4])
    plain = network(x, timesteps, classes)
    last = network(x.contiguous(memory_format=torch.channels_last), timesteps, classes)
    torch.testing.assert_close(plain, last, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(plain, network(x, timesteps, classes.flip(0)))
    assert not torch.allclose(plain, network(x, timesteps.flip(0), classes))


def test_blocks_of_a_transformer_are_joined_across():
    network = UViT(
        1, 2, size=8, patch=4, width=12, depth=5, heads=3, prediction="epsilon"
    )  # fmt: skip
    assert (len(network.down), len(network.up), len(network.joins)) == (2, 2, 2)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert network(x, torch.tensor([0, 9]), torch.tensor([0, 2])).shape == x.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 3}, "patch: expected a divisor of the side 8"),
        ({"widths": (8, 12)}, "widths: expected multiples of 8, got 12"),
        ({"widths": ()}, "widths: expected 1 to 8 levels, got 0"),
        ({"widths": (8, 8, 8, 8)}, "widths: expected levels that halve 4 positions evenly"),
        ({"network": "uvit", "heads": 5}, "embedding: expected a multiple of the 5 heads"),
        ({"steps": 0}, "steps: expected 1 to 1000, got 0"),
        ({"label_dropout": 1.5}, "label_dropout: expected a share in"),
        ({"network": "resnet"}, "network: expected one of unet, uvit, got 'resnet'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_training(**changes)


AUTOENCODER = {"autoencoder_widths": (8, 8), "latent_channels": 2, "codes": 8, "patch": 1}


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_an_autoencoder_is_trained_first(tmp_path, kind):
    settings = {**AUTOENCODER, "autoencoder": kind, "autoencoder_iterations": 30, "lr": 1e-2}
    task = tiny_training(widths=(8,), warm_up=1, **settings)
    assert task.iterations == 34
    first = task.start().tensors
    state = run(task, tmp_path).state.tensors
    before, after = (reconstruction_error(task, x) for x in (first, state))
    assert after < 0.8 * before
    model = task.model(state)
    assert model.latent_shape == (2, 4, 4)
    latents = model.autoencoder.encode(task.images)
    assert abs(float(latents.std()) - 1.0) < 0.05
    save_generator(model, tmp_path / "saved")
    loaded = load_diffusion_model(tmp_path / "saved")
    labels = torch.tensor([0, 1])
    assert torch.equal(loaded.sample(labels, 3), model.sample(labels, 3))
    part = tiny_training(widths=(8,), warm_up=1, **settings)
    stopped = run(part, tmp_path / "part", max_minutes=0)
    assert stopped.state.iteration == 1
    resumed = run(part, tmp_path / "part", resume=True).state.tensors
    assert all(torch.equal(x, resumed[name]) for name, x in state.items())


def reconstruction_error(task, state):
    config, tensors = task.autoencoder.finished(state)
    task.autoencoder.network.load_state_dict(tensors)
    adapter = config.adapter(task.autoencoder.network)
    return float((adapter.decode(adapter.encode(task.images)) - task.images).square().mean())


def test_an_autoencoder_moves_with_its_model_and_has_levels_of_any_width():
    task = tiny_training(autoencoder="kl", **{**AUTOENCODER, "autoencoder_widths": (16, 24)})
    model = task.model(task.start().tensors).to("meta")
    assert model.autoencoder.encode(task.images.to("meta")).shape == (30, 2, 4, 4)


def test_the_scale_is_that_of_images_of_every_class(monkeypatch):
    monkeypatch.setattr(autoencoder_training, "SCALED_BY", 10)
    data = tiny_data()
    order = data.train.labels.argsort(stable=True)
    train = Split(data.train.images[order], data.train.labels[order])
    settings = {**AUTOENCODER, "autoencoder": "kl", "autoencoder_iterations": 1, "iterations": 1}
    task = tiny_training(replace(data, train=train), **settings)
    scaled = []
    latents = type(task.autoencoder).latents
    monkeypatch.setattr(
        type(task.autoencoder),
        "latents",
        lambda self, state, images: scaled.append(images) or latents(self, state, images),
    )
    task.iterate(task.start())
    assert torch.equal(scaled[0], task.images[::3])


def test_the_modules_import_in_any_order():
    code = "import kdistill.priors.diffusion.trained_model"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_the_loss_of_an_autoencoder_is_that_of_its_formula(kind):
    config = tiny_training(autoencoder=kind, **AUTOENCODER).autoencoder.config
    network = config.network().double()
    random = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=random).double()
    images = torch.rand(3, 1, 8, 8, generator=random).double()
    noise = torch.randn(3, 2, 4, 4, generator=random).double()
    hidden = network.quant_conv(network.encoder(images))
    if kind == "vq":
        codes = network.quantize.embedding.weight
        squares = (hidden.permute(0, 2, 3, 1)[..., None, :] - codes).square().sum(-1)
        latents = codes[squares.argmin(-1)].permute(0, 3, 1, 2)
        extra = 1.25 * (hidden - latents).square().mean()
    else:
        mean, log_variance = hidden.chunk(2, 1)
        latents = mean + (0.5 * log_variance).exp() * noise
        extra = 0.05 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
    again = network.decoder(network.post_quant_conv(latents))
    expected = (again - images).square().mean() + extra
    loss = config.loss(network, images, noise, kl_weight=0.1)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_levels_of_an_autoencoder_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="autoencoder_widths: expected levels that halve"):
        tiny_training(autoencoder="vq", **{**AUTOENCODER, "autoencoder_widths": (8,) * 5})
    with pytest.raises(ConfigError, match="patch: expected a divisor of the side 4 of the latents"):
        tiny_training(autoencoder="vq", **{**AUTOENCODER, "patch": 3})
