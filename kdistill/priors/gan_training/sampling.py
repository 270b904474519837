"""Images drawn from a trained generator."""

import torch
from torch import Tensor

from kdistill.keys import generator as keyed
from kdistill.keys import make_key
from kdistill.priors.base import Noise
from kdistill.priors.latents import GeneratorAdapter
from kdistill.priors.stylegan import Generator

CHUNK = 100  # images generated at a time
MEAN_OVER = 4096  # latents that their mean is taken over


def generate_images(
    network: Generator,
    labels: Tensor,
    key: int,
    adapter: GeneratorAdapter,
    *,
    has_noise: bool = False,
) -> Tensor:
    """Return one image per label, in chunks and without a graph.

    Image i depends on the key, its label and i alone.

    Args:
        network: The generator.
        labels: Classes, int64 ``[M]``.
        key: Key of the random latents.
        adapter: From the generator's images to those that are returned.
        has_noise: Whether every image has noise inputs of its own; False takes the network's
            constants.
    """
    like = network.tensors["mapping.w_avg"]
    z = Noise(key, range(len(labels))).normal("z", (network.config.mapping.z_dim,), like)
    images = []
    with torch.no_grad():
        for start in range(0, len(labels), CHUNK):
            rows = range(start, min(start + CHUNK, len(labels)))
            noise = Noise(make_key(key, "noise"), rows) if has_noise else None
            chunk = slice(rows.start, rows.stop)
            ws = network.mapping(z[chunk], labels[chunk].to(like.device))
            images.append(adapter(network.forward(ws, noise)))
    return torch.cat(images)


def with_mean_latent(network: Generator, seed: int) -> Generator:
    """Return the generator with its mean latent over random classes, which truncation needs."""
    like = network.tensors["mapping.w_avg"]
    random = keyed(make_key(seed, "prior centre"))
    z = torch.randn(MEAN_OVER, network.config.mapping.z_dim, generator=random).to(like)
    labels = torch.randint(network.classes, (MEAN_OVER,), generator=random).to(like.device)
    with torch.no_grad():
        return network.with_tensors({"mapping.w_avg": network.mapping(z, labels)[:, 0].mean(0)})
