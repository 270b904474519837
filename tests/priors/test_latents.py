"""Latents as a prior: rendering in chunks, the gradient of one pass, first states, refusals."""

import pytest
import torch

from kdistill.errors import ConfigError, DataError
from kdistill.priors import GeneratorAdapter, LatentPrior
from kdistill.priors.latents import check_fit, generator_classes
from kdistill.testing.peak_memory import peak_tensor_bytes
from kdistill.transforms import Standardise
from tests.priors.original_files import rng, tiny_stylegan2, tiny_stylegan3

CLASSES = torch.tensor([0, 0, 1, 1, 2])
NETWORKS = {
    "stylegan2": tiny_stylegan2(),
    "stylegan3": tiny_stylegan3(),
    "stylegan-xl": tiny_stylegan3(table=True),
}
ADAPTER = GeneratorAdapter(
    Standardise(torch.tensor([0.4]), torch.tensor([0.3])), channels=1, size=12
)


def prior_of(generator, layer=2, chunk=2, **options):
    return LatentPrior(
        generator=generator,
        layer=layer,
        adapter=options.pop("adapter", GeneratorAdapter()),
        chunk=chunk,
        key=5,
        **options,
    )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layer", [None, 0, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_two_passes_in_chunks_have_the_gradient_of_one(name, layer, dtype):
    generator = NETWORKS[name].to(dtype=dtype)
    prior = prior_of(generator, layer, adapter=ADAPTER, noise="random")
    state = {n: x.to(dtype) for n, x in prior.init(CLASSES, learn_weights=True).items()}
    leaves = {n: x.clone().requires_grad_() for n, x in state.items()}
    images = prior_of(generator, layer, chunk=len(CLASSES), adapter=ADAPTER, noise="random").draw(
        leaves, next(iter(prior_of(generator, layer, chunk=5).parts(state, 3)))[1]
    )
    weight = torch.randn(images.shape, generator=rng(1)).to(dtype)
    wanted = torch.autograd.grad(
        (images * weight).sum(), list(leaves.values()), materialize_grads=True
    )
    rendered = prior.render({**state, "lr": torch.ones(())}, 3)
    found = prior.vjp({**state, "lr": torch.ones(())}, weight, 3)
    assert not rendered.requires_grad
    assert rendered.shape == (5, 1, 12, 12)
    assert list(found) == list(state)
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(rendered, images.detach(), rtol=bound, atol=bound)
    for name_of, grad in zip(leaves, wanted, strict=True):
        assert float((found[name_of] - grad).norm()) <= bound * max(float(grad.norm()), 1e-3), (
            name_of
        )


def test_noise_is_the_same_in_both_passes_and_new_in_every_iteration():
    prior = prior_of(NETWORKS["stylegan2"], noise="random")
    state = prior.init(CLASSES)
    assert torch.equal(prior.render(state, 1), prior.render(state, 1))
    assert not torch.equal(prior.render(state, 1), prior.render(state, 2))
    fixed = prior_of(NETWORKS["stylegan2"])
    assert torch.equal(fixed.render(state, 1), fixed.render(state, 2))


def test_the_peak_is_that_of_one_chunk():
    generator = tiny_stylegan2(size=32, channel_max=16, channel_base=512)
    classes = torch.arange(24) % 3
    weight = torch.randn(24, 3, 32, 32)

    def peak(rows, chunk):
        prior = prior_of(generator, 1, chunk)
        state = prior.init(classes[:rows])
        return peak_tensor_bytes(lambda: prior.vjp(state, weight[:rows], 0))

    chunk, all_at_once, gradient = peak(4, 4), peak(24, 24), 4 * 24 * (19 * 4 * 4 + 8 * 6)
    assert peak(24, 4) <= 1.15 * (chunk + gradient)
    assert all_at_once > 3 * chunk


@pytest.mark.parametrize("name", NETWORKS)
def test_first_images_belong_to_their_class_and_differ(name):
    prior = prior_of(NETWORKS[name])
    state = prior.init(CLASSES)
    assert torch.equal(state["ws"], prior_of(NETWORKS[name], chunk=5).init(CLASSES)["ws"])
    assert len(torch.unique(state["ws"].flatten(1), dim=0)) == 5
    expected = prior.generator.to_f(state["ws"], 2).clamp(-10, 10)
    torch.testing.assert_close(state["f"], expected)
    direct = prior.adapter(prior.generator.from_f(state["f"], state["ws"], 2))
    torch.testing.assert_close(prior.render(state, 0), direct)


def test_averages_are_of_each_images_own_share():
    prior = prior_of(NETWORKS["stylegan2"], layer=None)
    one, shared = (
        prior.init(torch.tensor([0]), average=512)["ws"],
        prior.init(torch.tensor([0, 0]), average=512)["ws"],
    )
    assert not torch.equal(shared[0], shared[1])
    many = prior.init(torch.zeros(64, dtype=torch.int64))["ws"][:, 0]
    spread, centre = many.std(0), many.mean(0)
    assert ((shared[:, 0] - centre).abs() < spread).all()
    assert ((one[:, 0] - centre).abs() < spread).all()
    assert (shared[0] - shared[1]).norm() < 0.5 * (many[0] - many[1]).norm()


def test_random_features_keep_mean_and_deviation():
    prior = prior_of(NETWORKS["stylegan3"], layer=3)
    plain, random = prior.init(CLASSES)["f"], prior.init(CLASSES, random_f=True)["f"]
    assert not torch.allclose(plain, random)
    torch.testing.assert_close(random.mean((1, 2, 3)), plain.mean((1, 2, 3)), rtol=0.1, atol=0.1)
    torch.testing.assert_close(random.std((1, 2, 3)), plain.std((1, 2, 3)), rtol=0.1, atol=0.1)


def test_first_features_are_finite_and_bounded():
    generator = NETWORKS["stylegan2"]
    huge = generator.with_tensors({"synthesis.b4.const": torch.full((8, 4, 4), torch.inf)})
    f = prior_of(huge, layer=0).init(CLASSES)["f"]
    assert f.unique().tolist() == [5.0]


def test_latents_that_are_not_finite_are_refused():
    generator = NETWORKS["stylegan2"]
    broken = generator.with_tensors({"mapping.fc0.bias": torch.full((6,), torch.nan)})
    with pytest.raises(
        DataError, match="expected finite latents, got some that are not; the generator is damaged"
    ):
        prior_of(broken).init(CLASSES)


def test_colours_and_sizes_are_converted():
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert GeneratorAdapter(channels=1)(images).shape == (2, 1, 16, 16)
    red, green, blue = (0.5 * images + 0.5).unbind(1)
    torch.testing.assert_close(
        GeneratorAdapter(channels=1)(images)[:, 0], 0.299 * red + 0.587 * green + 0.114 * blue
    )
    assert GeneratorAdapter(channels=3)(images[:, :1]).shape == (2, 3, 16, 16)
    assert GeneratorAdapter(size=28)(images).shape == (2, 3, 28, 28)
    torch.testing.assert_close(
        GeneratorAdapter(size=8)(torch.ones(1, 3, 16, 16)), torch.ones(1, 3, 8, 8)
    )
    assert torch.equal(GeneratorAdapter()(images), 0.5 * (images + 1.0))


FITS = {
    "classes": ("a", "b", "c"),
    "channels": 3,
    "size": 16,
    "mapped": False,
    "convert": False,
    "resize": False,
}


def test_what_does_not_fit_is_named_with_the_option_that_maps_it():
    generator = NETWORKS["stylegan2"]
    check_fit(generator, **FITS)
    check_fit(tiny_stylegan2(classes=0), **{**FITS, "classes": tuple("abcd")})
    two = {**FITS, "classes": ("cat", "dog")}
    with pytest.raises(
        ConfigError,
        match=r"data's 2 classes, got one of 3; .* cat, dog with "
        r"classes=\[...\], 2 numbers from 0 to 2",
    ):
        check_fit(generator, **two)
    check_fit(generator, **{**two, "mapped": True})
    with pytest.raises(
        ConfigError, match="data's 1 channels, got one of 3; set channels='convert'"
    ):
        check_fit(generator, **{**FITS, "channels": 1})
    with pytest.raises(
        ConfigError,
        match=r"data's size 28x28, got one of 16x16; load the data with size=16, or set "
        r"resize=true",
    ):
        check_fit(generator, **{**FITS, "size": 28})


def test_classes_are_mapped():
    generator, labels = NETWORKS["stylegan2"], torch.tensor([0, 1, 1])
    assert generator_classes(generator, labels, None, 2) is labels
    assert generator_classes(generator, labels, (2, 0), 2).tolist() == [2, 0, 0]
    with pytest.raises(
        ConfigError, match="expected 2 numbers from 0 to 2, one for each class of the data, got 3;"
    ):
        generator_classes(generator, labels, (0, 3), 2)
    with pytest.raises(ConfigError, match="got 1 numbers"):
        generator_classes(generator, labels, (0,), 2)


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match=r"expected 0 to 5, .* got 9; layers: 0 input"):
        prior_of(NETWORKS["stylegan2"], layer=9)
    with pytest.raises(ConfigError, match="chunk: expected at least 1, got 0"):
        prior_of(NETWORKS["stylegan2"], chunk=0).render({"ws": torch.zeros(1, 6, 6)}, 0)
