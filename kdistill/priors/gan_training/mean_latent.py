"""The mean latent of a trained generator, which truncation needs."""

import torch

from kdistill.keys import generator as keyed
from kdistill.keys import make_key
from kdistill.priors.stylegan import Generator

MEAN_OVER = 4096  # latents that the mean is taken over


def with_mean_latent(network: Generator, seed: int) -> Generator:
    """Return the generator with its mean latent over random classes, which truncation needs."""
    like = network.tensors["mapping.w_avg"]
    random = keyed(make_key(seed, "prior centre"))
    z = torch.randn(MEAN_OVER, network.config.mapping.z_dim, generator=random).to(like)
    labels = torch.randint(network.classes, (MEAN_OVER,), generator=random).to(like.device)
    with torch.no_grad():
        return network.with_tensors({"mapping.w_avg": network.mapping(z, labels)[:, 0].mean(0)})
