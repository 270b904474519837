"""A generator asks for no more than its parameters allow."""

import math
import time
from dataclasses import replace

import pytest
import torch

from kdistill.errors import DataError
from kdistill.priors.network_files import (
    load_generator,
    read_network,
    save_generator,
)
from kdistill.priors.network_files.limits import excess
from kdistill.priors.stylegan import InputConfig, LayerConfig, StyleGAN3
from tests.priors.original_files import (
    tiny_stylegan2,
    tiny_stylegan3,
    write,
)


def test_a_small_file_cannot_ask_for_large_images(tmp_path):
    small = tiny_stylegan3()
    source = replace(small.config.input, size=(1 << 20, 1 << 20))
    large = type(small)(replace(small.config, input=source), small.tensors)
    with pytest.raises(DataError, match="sizes beyond 4096 pixels"):
        read_network(write(tmp_path / "net.pkl", large))


@pytest.mark.parametrize("network", [tiny_stylegan2, tiny_stylegan3])
def test_a_generator_asks_for_no_more_than_its_parameters_allow(network, tmp_path):
    whole = network()
    assert excess(whole) is None
    config = whole.config
    wide = replace(config, mapping=replace(config.mapping, classes=10**9))
    assert excess(type(whole)(wide, whole.tensors)).startswith("sizes of 1000000000 with ")
    save_generator(type(whole)(wide, whole.tensors), tmp_path)
    with pytest.raises(
        DataError,
        match="expected a generator in proportion to its tensors, got sizes of 1000000000",
    ):
        load_generator(tmp_path)


def test_the_published_configuration_of_most_work_for_its_parameters_is_allowed():
    # StyleGAN3-R at 1024 pixels, by the formulas of the paper: channels, sizes and filters of every
    # layer; nothing is made
    count, size = 14, 1024
    steps = [min(n / (count - 2), 1.0) for n in range(count + 1)]
    cutoffs = [2 * (size / 4) ** x for x in steps]
    stops = [2**2.1 * (size / 2 * 2**0.3 / 2**2.1) ** x for x in steps]
    rates = [2 ** math.ceil(math.log2(min(2 * stop, size))) for stop in stops]
    channels = [round(min(32768 / cutoff, 1024)) for cutoff in cutoffs[:-1]] + [3]
    sides = [rate + 20 for rate in rates[:-2]] + [size, size]
    empty = torch.zeros(1)
    tensors, layers = {"synthesis.input.weight": empty.expand(channels[0], channels[0])}, []
    for n, out in enumerate(channels):
        before, name = max(n - 1, 0), f"L{n}"
        raised = max(rates[before], rates[n]) * (1 if n == count else 2)
        up, down = raised // rates[before], raised // rates[n]
        tensors[f"synthesis.{name}.weight"] = empty.expand(out, channels[before], 1, 1)
        tensors[f"synthesis.{name}.affine.weight"] = empty.expand(channels[before], 512)
        if n < count:
            tensors[f"synthesis.{name}.up_filter"] = empty.expand(6 * up)
            tensors[f"synthesis.{name}.down_filter"] = empty.expand(6 * down, 6 * down)
        total = (sides[n] - 1) * down + 1 - sides[before] * up + 6 * (up + down) - 2
        padding = (total // 2, total - total // 2, total // 2, total - total // 2)
        layers.append(
            LayerConfig(
                name=name, is_torgb=n == count, up=up, down=down, padding=padding, clamp=256.0
            )
        )
    config = replace(
        tiny_stylegan3().config,
        size=size,
        input=InputConfig(size=(36, 36), sampling_rate=16.0, bandwidth=2.0),
    )
    assert excess(StyleGAN3(replace(config, layers=tuple(layers)), tensors)) is None


def test_a_large_input_of_a_small_network_is_refused_before_it_is_made(tmp_path):
    small = tiny_stylegan3()
    large = type(small)(
        replace(small.config, input=replace(small.config.input, size=(4096, 4096))), small.tensors
    )
    started = time.process_time()
    with pytest.raises(
        DataError,
        match=r"got feature maps of [\d,]+ numbers with [\d,]+ parameters; fetch it again",
    ):
        read_network(write(tmp_path / "net.pkl", large))
    assert time.process_time() - started < 3.0
