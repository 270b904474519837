"""StyleGAN operators against their definition, and networks that can be split at any layer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdistill import ops
from kdistill.errors import ConfigError, ShapeError
from kdistill.priors import Noise
from kdistill.priors.stylegan import new_stylegan2
from kdistill.priors.stylegan.operators import (
    filtered_lrelu,
    modulated_conv,
    styled_conv,
    upfirdn,
    upsampling_conv,
    upsampling_taps,
)
from kdistill.testing.backends import runnable_backends, running_on
from tests.priors.original_files import rng, tiny_stylegan2, tiny_stylegan3

NETWORKS = {
    "stylegan2": tiny_stylegan2(),
    "stylegan2-grey": tiny_stylegan2(classes=0, size=8, channels=1),
    "stylegan3": tiny_stylegan3(),
    "stylegan3-radial": tiny_stylegan3(radial=True, classes=0),
    "stylegan-xl": tiny_stylegan3(table=True),
}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def latents(generator, count=2, dtype=torch.float32, spread=0.5):
    """Return ws that differ from layer to layer, as they do in W+."""
    ws = generator.mapping(torch.randn(count, 5, generator=rng(3)).to(dtype), torch.arange(count))
    return ws + spread * torch.randn(ws.shape, generator=rng(4)).to(dtype)


@pytest.mark.parametrize("name", NETWORKS)
def test_split_at_every_layer_is_the_whole(name):
    generator = NETWORKS[name]
    ws = latents(generator)
    whole = generator.forward(ws)
    assert whole.shape == (2, generator.channels, generator.size, generator.size)
    assert whole.std() > 0
    f = generator.to_f(ws, 0)
    for n in range(generator.num_layers + 1):
        assert torch.equal(generator.from_f(generator.to_f(ws, n), ws, n), whole)
        assert torch.equal(f, generator.to_f(ws, n))
        if n < generator.num_layers:
            f = generator.advance(f, ws, n)


@pytest.mark.parametrize("name", NETWORKS)
def test_latents_of_applied_layers_have_no_influence(name):
    generator = NETWORKS[name]
    ws, n = latents(generator).requires_grad_(), 2
    f = generator.to_f(ws, n).detach()
    (grad,) = torch.autograd.grad(generator.from_f(f, ws, n).square().sum(), ws)
    used = grad.abs().sum((0, 2)) > 0
    first = n + (1 if "stylegan2" not in name else 0)
    assert used.tolist() == [i >= first for i in range(generator.num_ws)]


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_does_not_depend_on_its_neighbours(name):
    generator = NETWORKS[name].to(dtype=torch.float64)
    ws = latents(generator, 3, torch.float64)
    alone = torch.cat([generator.forward(w[None]) for w in ws])
    torch.testing.assert_close(generator.forward(ws), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["stylegan2", "stylegan-xl"])
def test_gradients_of_latents_and_features(name):
    generator = NETWORKS[name].to(dtype=torch.float64)
    n = generator.num_layers - 2
    ws = latents(generator, 1, torch.float64).requires_grad_()
    f = generator.to_f(ws, n).detach().requires_grad_()
    weight = randn(1, 3, 16, 16)
    assert torch.autograd.gradcheck(
        lambda f, ws: (generator.from_f(f, ws, n) * weight).sum(), (f, ws), fast_mode=True
    )


def test_layers_out_of_range_are_listed():
    generator = NETWORKS["stylegan2"]
    ws = latents(generator)
    with pytest.raises(
        ConfigError, match=r"expected 0 to 5, .* got 6; layers: 0 input, 1 b4.conv1, 2 b8.conv0"
    ):
        generator.to_f(ws, 6)
    with pytest.raises(ConfigError, match="got -1; layers"):
        generator.from_f(generator.to_f(ws, 0), ws, -1)
    with pytest.raises(ConfigError, match="expected a layer below 5, the last one, got 5"):
        generator.advance(generator.forward(ws), ws, 5)


def test_latents_and_classes_of_another_shape_are_refused():
    generator = NETWORKS["stylegan2"]
    with pytest.raises(ShapeError, match=r"ws: expected \[N, 6, 6\], got \[2, 5, 6\]"):
        generator.forward(torch.zeros(2, 5, 6))
    with pytest.raises(ShapeError, match=r"expected z \[N, 5\], got \[2, 4\]"):
        generator.mapping(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="got none; the generator is conditional"):
        generator.mapping(torch.zeros(2, 5))
    with pytest.raises(ShapeError, match="expected classes 0 to 2, got 1 to 3"):
        generator.mapping(torch.zeros(2, 5), torch.tensor([1, 3]))


def test_truncation_goes_towards_the_average():
    generator = NETWORKS["stylegan-xl"]
    z, labels = torch.randn(2, 5), torch.tensor([0, 2])
    torch.testing.assert_close(
        generator.mapping(z, labels, psi=0.0)[:, 0], generator.tensors["mapping.w_avg"][labels]
    )


def test_random_noise_depends_on_key_and_image_not_on_the_chunk():
    generator = NETWORKS["stylegan2"]
    ws = latents(generator, 3)
    whole = generator.forward(ws, Noise(5, range(3)))
    parts = torch.cat(
        [generator.forward(ws[i : i + 1], Noise(5, range(i, i + 1))) for i in range(3)]
    )
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(whole, generator.forward(ws, Noise(6, range(3))))
    assert not torch.allclose(whole, generator.forward(ws))


def test_a_new_generator_has_features_of_unit_scale():
    generator = new_stylegan2(size=32, channels=3, classes=10, generator=rng())
    ws = generator.mapping(torch.randn(4, 64), torch.arange(4))
    f = generator.to_f(ws, 6)
    assert 0.5 < f[:, :-3].std() < 2.0
    assert set(generator.parameters(0)) <= set(generator.tensors)
    assert all("b4" not in name for name in generator.parameters(1))


def test_a_size_that_is_no_power_of_two_is_refused():
    with pytest.raises(ConfigError, match="power of two from 8 on, got 28"):
        new_stylegan2(size=28, channels=1, classes=10, generator=rng())


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (4, 2), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (3, 2, 3, 2), (-1, 2, 0, -2)])
@pytest.mark.parametrize("separable", [True, False])
def test_upfirdn_is_zeros_convolution_and_decimation(up, down, padding, separable):
    x, line = randn(2, 3, 7, 8).numpy(), randn(4, seed=1).numpy()
    taps = np.outer(line, line)
    raised = np.zeros((2, 3, 7 * up, 8 * up))
    raised[:, :, ::up, ::up] = x
    left, right, above, below = padding
    raised = np.pad(
        raised, ((0, 0), (0, 0), (max(above, 0), max(below, 0)), (max(left, 0), max(right, 0)))
    )
    rows = slice(max(-above, 0), raised.shape[2] - max(-below, 0))
    columns = slice(max(-left, 0), raised.shape[3] - max(-right, 0))
    raised = raised[:, :, rows, columns]
    height, width = raised.shape[2] - 3, raised.shape[3] - 3
    wanted = np.zeros((2, 3, height, width))
    for i in range(4):
        for j in range(4):  # a true convolution: the filter is flipped
            wanted += 1.5 * taps[3 - i, 3 - j] * raised[:, :, i : i + height, j : j + width]
    given = torch.from_numpy(line if separable else taps)
    found = upfirdn(torch.from_numpy(x), given, up=up, down=down, padding=padding, gain=1.5)
    np.testing.assert_allclose(found.numpy(), wanted[:, :, ::down, ::down], rtol=1e-10, atol=1e-10)


def per_image_weights(weight, styles, demodulate, gain):
    v = weight[None] * styles[:, None, :, None, None]
    if demodulate:
        v = v * (v.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    return v * gain


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_is_a_convolution_with_the_weights_of_each_image(demodulate):
    x, weight, styles = randn(2, 4, 6, 6), randn(5, 4, 3, 3, seed=1), randn(2, 4, seed=2)
    v = per_image_weights(weight, styles, demodulate, 0.7)
    wanted = torch.cat([F.conv2d(x[i : i + 1], v[i], padding=2) for i in range(2)])
    gain = torch.tensor(0.7, dtype=torch.float64)
    found = modulated_conv(x, weight, styles, demodulate=demodulate, padding=2, gain=gain)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_the_upsampling_convolution_is_zeros_fir_and_a_flipped_kernel():
    x, weight, styles = randn(2, 4, 6, 6), randn(5, 4, 3, 3, seed=1), randn(2, 4, seed=2)
    taps = torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)]) / 64
    v = per_image_weights(weight, styles, True, 1.0)
    raised = upfirdn(x, taps, up=2, padding=(3, 2, 3, 2), gain=4.0)
    wanted = torch.cat([F.conv2d(raised[i : i + 1], v[i].flip(2, 3)) for i in range(2)])
    torch.testing.assert_close(
        upsampling_conv(x, weight, styles, taps), wanted, rtol=1e-10, atol=1e-10
    )


RAISE = {"up": 2, "down": 2, "padding": (4, 3, 4, 3), "slope": 0.2, "gain": 1.4, "clamp": 3.0}


@pytest.mark.parametrize("radial", [False, True], ids=["separable", "radial"])
def test_filtered_lrelu_gradcheck(radial):
    x, bias, line = (
        randn(1, 2, 5, 5).requires_grad_(),
        randn(2, seed=1).requires_grad_(),
        randn(6, seed=2),
    )
    down_taps = torch.outer(line, line) if radial else line.flip(0)

    def op(x, bias):
        return filtered_lrelu(x, bias, up_taps=line, down_taps=down_taps, **RAISE)

    assert torch.autograd.gradcheck(op, (x, bias), fast_mode=True)


def plain_nonlinearity(x, bias, up_taps, down_taps, up, down, padding, slope, gain, clamp):
    """Return StyleGAN3's nonlinearity one operator after the other, as its paper writes it."""
    x = upfirdn(x + bias[None, :, None, None], up_taps, up=up, padding=padding, gain=float(up**2))
    x = (F.leaky_relu(x, slope) if slope != 1.0 else x) * gain
    return upfirdn(x.clamp(-clamp, clamp), down_taps, down=down)


@pytest.mark.parametrize("backend", runnable_backends())
def test_the_fused_nonlinearity_is_the_plain_one(backend):
    given, line = (
        [randn(2, 3, 6, 6).requires_grad_(), randn(3, seed=1).requires_grad_()],
        randn(6, seed=2),
    )
    with running_on(backend):
        out = filtered_lrelu(*given, up_taps=line, down_taps=line.flip(0), **RAISE)
    wanted = plain_nonlinearity(*given, line, line.flip(0), **RAISE)
    cotangent = randn(*out.shape, seed=5)
    found, known = (torch.autograd.grad(y, given, cotangent) for y in (out, wanted))
    for a, b in zip((out, *found), (wanted, *known), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_reference_backend_gives_the_bits_of_the_plain_nonlinearity(memory_format, one_thread):
    x, bias, line = (
        randn(2, 3, 6, 6).float().contiguous(memory_format=memory_format),
        randn(3).float(),
        randn(6, seed=2).float(),
    )
    with ops.use_backend("reference"):
        found = filtered_lrelu(x, bias, up_taps=line, down_taps=line.flip(0), **RAISE)
    assert torch.equal(found, plain_nonlinearity(x, bias, line, line.flip(0), **RAISE))


@pytest.mark.parametrize("name", ["stylegan3", "stylegan-xl"])
def test_every_backend_renders_the_images_of_the_reference(name):
    generator = NETWORKS[name].to(dtype=torch.float64)
    ws = latents(generator, 2, torch.float64)
    with ops.use_backend("reference"):
        wanted = generator.forward(ws)
    torch.testing.assert_close(generator.forward(ws), wanted, rtol=1e-9, atol=1e-9)


def plain_layer(x, weight, styles, noise, bias, taps, clamp):
    """Return a StyleGAN2 layer one operator after the other, as its paper writes it."""
    if taps is None:
        y = F.conv2d(x * styles[:, :, None, None], weight, padding=1)
        y = y * (styles.square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt()[:, :, None, None]
    else:
        y = upsampling_conv(x, weight, styles, taps)
    return (F.leaky_relu(y + noise[:, None] + bias[:, None, None], 0.2) * 2**0.5).clamp(
        -clamp, clamp
    )


def layer_inputs(taps, dtype):
    x = randn(2, 4, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    side = 6 if taps is None else 12
    weight, styles, noise, bias = (
        randn(5, 4, 3, 3, seed=1),
        randn(2, 4, seed=2),
        randn(2, side, side, seed=3),
        randn(5, seed=4),
    )
    return tuple(t.to(dtype) for t in (x, weight, styles, noise, bias))


TAPS = torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)]) / 64


@pytest.mark.parametrize("taps", [None, TAPS], ids=["same size", "doubled"])
@pytest.mark.parametrize("backend", runnable_backends())
def test_a_fused_layer_is_the_plain_one(backend, taps):
    own_taps = None if taps is None else upsampling_taps(taps)
    given = [t.requires_grad_() for t in layer_inputs(taps, torch.float64)]
    with running_on(backend):
        out, wanted = styled_conv(*given, taps=own_taps, clamp=2.0), plain_layer(*given, taps, 2.0)
        cotangent = randn(*out.shape, seed=5)
        found, known = (torch.autograd.grad(y, given, cotangent) for y in (out, wanted))
    for a, b in zip((out, *found), (wanted, *known), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("taps", [None, TAPS], ids=["same size", "doubled"])
def test_the_reference_backend_gives_the_bits_of_the_plain_layer(taps, one_thread):
    taps = None if taps is None else taps.float()
    own_taps = None if taps is None else upsampling_taps(taps)
    given = layer_inputs(taps, torch.float32)
    with ops.use_backend("reference"):
        assert torch.equal(
            styled_conv(*given, taps=own_taps, clamp=2.0), plain_layer(*given, taps, 2.0)
        )


@pytest.mark.parametrize(
    ("taps", "is_separable"),
    [
        (TAPS, True),
        (TAPS.float(), True),
        (TAPS + 1e-9 * torch.eye(4), False),
        (-TAPS, False),
        (torch.eye(4) / 4, False),
        (torch.ones(3, 3) / 9, False),
    ],
)
def test_a_filter_is_taken_along_the_axes_only_where_it_is_separable(taps, is_separable):
    own_taps = upsampling_taps(taps)
    assert (own_taps.ndim == 1) == is_separable
    if is_separable:
        torch.testing.assert_close(torch.outer(own_taps, own_taps), 4.0 * taps)
    else:
        assert own_taps is taps


def test_a_network_whose_filter_is_not_separable_takes_the_plain_way():
    generator = tiny_stylegan2()
    tensors = {
        k: torch.eye(4) / 4 if k.endswith("conv0.resample_filter") else v
        for k, v in generator.tensors.items()
    }
    other = replace(generator, tensors=tensors)
    ws = latents(other)
    assert other.forward(ws).isfinite().all()
    assert not torch.equal(other.forward(ws), generator.forward(ws))
