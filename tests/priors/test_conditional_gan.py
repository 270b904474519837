"""The conditional GAN: shapes at every size, frozen statistics, saving and damaged files."""

import pytest
import torch

from kdistill.artifacts.tensors import encode
from kdistill.errors import ConfigError, DataError
from kdistill.keys import generator as keyed
from kdistill.keys import make_key
from kdistill.priors.conditional_gan import (
    FILE,
    ConditionalGenerator,
    ConditionalGeneratorConfig,
    Critic,
    from_bytes,
    load,
    load_folder,
    save_tensors,
    to_bytes,
)

LABELS = torch.arange(7) % 3


def tiny(size=8, channels=1, width=4):
    config = ConditionalGeneratorConfig(
        classes=3, channels=channels, size=size, width=width, noise=6, label=4
    )
    tensors = config.frozen(config.new(keyed(1)), 2, batch_size=8, batches=3)
    critic = Critic(size=size, channels=channels, classes=3, width=5)
    return ConditionalGenerator(config, tensors, critic.new(keyed(3)))


@pytest.mark.parametrize("size", [8, 16, 28, 32, 56, 64])
def test_generator_and_critic_of_every_size(size):
    network = tiny(size, channels=3)
    images = network.sample(LABELS, 5)
    assert images.shape == (7, 3, size, size)
    assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0
    critic = Critic(size=size, channels=3, classes=3, width=5)
    assert {name: tuple(x.shape) for name, x in network.critic.items()} == critic.shapes()
    source, class_logits = critic.apply(network.critic, 2.0 * images - 1.0)
    assert source.shape == (7,) and class_logits.shape == (7, 3)


@pytest.mark.parametrize("size", [4, 20, 33, 4096])
def test_a_size_that_the_generator_lacks_is_refused(size):
    with pytest.raises(ConfigError, match=rf"expected images of 8, 16, 28, 32.*got {size}; resize"):
        ConditionalGeneratorConfig(classes=3, channels=1, size=size)


def test_a_sampled_image_does_not_depend_on_its_batch():
    network = tiny()
    labels = torch.arange(130) % 3  # more than a chunk
    images = network.sample(labels, 5)
    assert torch.equal(images, network.sample(labels, 5))
    torch.testing.assert_close(network.sample(labels[:1], 5), images[:1])
    changed = labels.clone()
    changed[0] = 1
    torch.testing.assert_close(network.sample(changed, 5)[1:], images[1:])
    assert not torch.allclose(network.sample(changed, 5)[0], images[0])
    assert not torch.allclose(network.sample(labels, 6), images)
    assert network.sample(labels[:0], 5).shape == (0, 1, 8, 8)
    with pytest.raises(ConfigError, match="expected labels 0 to 2, got 0 to 3"):
        network.sample(torch.tensor([0, 3]), 5)


def test_frozen_statistics_are_those_of_the_draws():
    """One batch: deployed and training mode agree; several: mean and variance of all of them."""
    network = tiny()
    config, tensors = network.config, {n: x.double() for n, x in network.tensors.items()}
    trained = {name: tensors[name] for name in config.shapes()}
    z, labels = torch.randn(9, 6, generator=keyed(4)).double(), torch.arange(9) % 3
    batch = {}
    images = config.forward(trained, z, labels, statistics=batch)
    torch.testing.assert_close(config.forward({**trained, **batch}, z, labels), images)
    frozen = config.frozen(trained, 2, batch_size=8, batches=3)
    inputs = []
    for i in range(3):
        labels = torch.arange(8 * i, 8 * i + 8) % 3
        key = make_key(2, "statistics", i)
        z, labels = config.draw(trained, labels, key)
        x = torch.cat([z, trained["labels"][labels]], 1) @ trained["input.weight"].T
        inputs.append(x)
    inputs = torch.cat(inputs)
    torch.testing.assert_close(frozen["input.mean"], inputs.mean(0))
    torch.testing.assert_close(frozen["input.var"], inputs.var(0, unbiased=False))


def test_a_critic_judges_every_image_alone():
    network = tiny()
    critic = Critic(size=8, channels=1, classes=3, width=5)
    images = torch.randn(4, 1, 8, 8, generator=keyed(7))
    together, alone = (critic.apply(network.critic, x) for x in (images, images[:1]))
    torch.testing.assert_close(together.source[:1], alone.source)
    torch.testing.assert_close(together.class_logits[:1], alone.class_logits)


def test_a_generator_comes_back_as_it_was_saved():
    network = tiny()
    description, tensors = save_tensors(network)
    again = load(description, tensors, "here")
    assert again.config == network.config
    assert torch.equal(again.sample(LABELS, 5), network.sample(LABELS, 5))
    assert again.critic.keys() == network.critic.keys()
    bare = ConditionalGenerator(network.config, network.tensors)
    assert load(*save_tensors(bare), "here").critic == {}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d, t: d.update(size=20), "expected images of 8, 16"),
        (lambda d, t: d.update(width=5), "expected generator.* as float32"),
        (lambda d, t: d.update(depth=5), "depth"),
        (lambda d, t: t.pop("generator.labels"), "got none named 'generator.labels'"),
        (lambda d, t: t.pop("generator.input.var"), "got none named 'generator.input.var'"),
        (lambda d, t: t.pop("critic.norms.3.shift"), "got none named 'critic.norms.3.shift'"),
        (lambda d, t: t.update(other=torch.zeros(1)), "got another named 'other'"),
        (lambda d, t: t["generator.labels"].fill_(float("nan")), "expected finite numbers in"),
        (
            lambda d, t: t.update({"generator.labels": t["generator.labels"].double()}),
            "expected generator.labels as float32",
        ),
    ],
)
def test_a_damaged_generator_is_refused(damage, message):
    description, tensors = save_tensors(tiny())
    tensors = {name: x.clone() for name, x in tensors.items()}
    damage(description, tensors)
    with pytest.raises(DataError, match=message):
        load(description, tensors, "here")
    with pytest.raises(DataError, match="expected a generator's architecture, got none"):
        load(None, tensors, "here")


def test_a_generator_comes_back_from_a_file_and_other_files_are_refused(tmp_path):
    network = tiny()
    data = to_bytes(network)
    assert to_bytes(from_bytes(data, "here")) == data
    with pytest.raises(DataError, match=r"expected a generator in .*; name the folder of a run"):
        load_folder(tmp_path)
    (tmp_path / FILE).write_bytes(data)
    assert torch.equal(load_folder(tmp_path).sample(LABELS, 1), network.sample(LABELS, 1))
    (tmp_path / FILE).write_bytes(data[:-1])
    with pytest.raises(DataError, match="expected a whole safetensors file"):
        load_folder(tmp_path)
    with pytest.raises(DataError, match="expected a generator of kind 'conditional_gan', got None"):
        from_bytes(encode(save_tensors(network)[1], {}), "here")
