"""Keyed normal draws: their distribution, their bits, and what they depend on."""

import math

import numpy as np
import pytest
import torch

from kdistill.keys import normals
from kdistill.priors import Noise


def test_the_moments_are_those_of_a_standard_normal():
    x = normals(1, range(200), (1000,)).flatten()
    count = len(x)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - moment) < 4 * math.sqrt(variance / count)
    edges = torch.linspace(-3, 3, 25, dtype=torch.float64)
    share = (x[:, None] <= edges).double().mean(0)  # the distribution function
    assert float((share - torch.special.ndtr(edges)).abs().max()) < 1.95 / math.sqrt(count)


def test_neither_the_two_of_a_pair_nor_neighbouring_rows_are_correlated():
    x = normals(2, range(2000), (16,))
    correlations = torch.corrcoef(torch.cat([x[:-1], x[1:], x[:-1].square()], 1).T)
    correlations.fill_diagonal_(0.0)
    assert float(correlations.abs().max()) < 5 / math.sqrt(len(x))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (13,), (3, 5, 5), (9001,)], ids=str)
def test_a_row_has_the_same_bits_in_any_chunk(shape):
    whole = normals(3, range(12), shape)
    assert whole.shape == (12, *shape)
    for start, stop in ((0, 1), (0, 5), (5, 6), (3, 12), (11, 12), (4, 4)):
        assert torch.equal(whole[start:stop], normals(3, range(start, stop), shape))


def test_the_values_are_those_of_the_formula():
    words = np.random.Philox(key=4, counter=2 * 7).random_raw(8).view(np.int32).reshape(2, 8)
    radius, turn = (words.astype(np.float64) + 2**31 + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(radius)), 2 * np.pi * turn
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:13]
    np.testing.assert_allclose(normals(4, range(7, 8), (13,))[0], expected, rtol=1e-12, atol=1e-14)
    recorded = torch.tensor([0.3550227455, 1.2326560243, 0.4203474387], dtype=torch.float64)
    torch.testing.assert_close(normals(7, range(1), (5,))[0, :3], recorded, rtol=0, atol=1e-9)


def test_thousands_of_rows_take_one_stream(monkeypatch):
    made = []
    philox = np.random.Philox
    monkeypatch.setattr(np.random, "Philox", lambda **kw: made.append(kw) or philox(**kw))
    noise = Noise(5, range(10, 5010)).normal("x_T", (1, 4, 4), torch.zeros(()))
    assert noise.shape == (5000, 1, 4, 4) and noise.dtype == torch.float32
    assert len(made) == 1


@pytest.mark.parametrize("rows", [range(0, 8, 2), range(-1, 3), range(5, 0, -1)], ids=str)
def test_rows_that_are_not_consecutive_are_refused(rows):
    with pytest.raises(ValueError, match="normals: expected consecutive rows from 0 on"):
        normals(6, rows, (3,))
