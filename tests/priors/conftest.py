"""Image sets that trainings of generators share."""

import pytest
import torch

import kdistill
from kdistill.keys import generator as keyed


@pytest.fixture(scope="package")
def digits():
    return kdistill.load_data("digits", quiet=True)


@pytest.fixture(scope="package")
def colours():
    """Two classes that a generator learns at once: dark red and bright blue."""
    means = torch.tensor([[0.3, 0.0, 0.0], [0.2, 0.5, 1.0]]).repeat_interleave(60, 0)
    noise = 0.05 * torch.randn(120, 3, 8, 8, generator=keyed(1))
    images = (means[:, :, None, None] + noise).clamp(0.0, 1.0).permute(0, 2, 3, 1)
    labels = torch.arange(2).repeat_interleave(60)
    return kdistill.load_data((images.numpy(), labels.numpy()), quiet=True)
