"""What GLaD and H-GLaD share: options, the StyleGAN, a run on pixels below."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from kdistill.artifacts.tensors import digest
from kdistill.config import to_mapping
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError
from kdistill.methods.base import Problem
from kdistill.methods.composition import with_prior
from kdistill.methods.latent.base import LatentConfig
from kdistill.options import AUTOMATIC, COUNT, NOT_NEGATIVE
from kdistill.priors import GeneratorAdapter, ImageGenerator, Prior, State
from kdistill.priors.network_files import load_generator
from kdistill.priors.stylegan import Generator
from kdistill.transforms import Standardise, Transform

# what the published code of GLaD and H-GLaD gives the objectives for ImageNet subsets at 128 px,
# whatever the images per class: one matching step per network for DC, TESLA's truncated gradient
# and a learned rate that begins at 0.01 for MTT
PUBLISHED = {
    "dc": {
        "objective": "dc",
        "lr_f": 1.0,
        "lr_w": 1e-3,
        "settings": {"outer_steps": 1, "inner_epochs": 1},
    },
    "mtt": {
        "objective": "mtt",
        "lr_f": 1e4,
        "lr_w": 10.0,
        "settings": {
            "grad_mode": "tesla",
            "syn_steps": 20,
            "expert_epochs": 3,
            "max_start_epoch": 5,
            "lr_lr": 1e-6,
            "lr_init": 0.01,
        },
    },
}
# of generated images in the published code
REPO_MEAN, REPO_STD = (0.4377, 0.4438, 0.4728), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class StyleganConfig(LatentConfig):  # many fields, since each is an option that users set
    """Options of methods on latents of a StyleGAN; the rates are GLaD's for DM on ImageNet subsets.

    Attributes:
        lr_f: Learning rate of the feature maps; where it is found, the first step along them alone
            moves the images by 3 % of their norm (1 % under dc and dsa).
        lr_w: Learning rate of the latents in W+; found as ``lr_f`` is.
        n_avg: Mapped draws per class, where a run begins with averages of them.
        noise: StyleGAN2's noise inputs: ``"const"`` (the network's own) or ``"random"`` (new in
            every iteration).
        glad_norm: How generated images are normalised: ``"data"`` (as the real ones), or
            ``"repo"``: by the mean and deviation that the published code has for them.
    """

    lr_f: Annotated[float | None, NOT_NEGATIVE, AUTOMATIC] = 10.0
    lr_w: Annotated[float | None, NOT_NEGATIVE, AUTOMATIC] = 0.01
    n_avg: Annotated[int, COUNT] = 1000
    noise: Literal["const", "random"] = "const"
    glad_norm: Literal["data", "repo"] = "data"

    def generator(self, data: ImageDataset, start: Tensor | None) -> Generator:
        """Return the generator on the data's device.

        Raises:
            ConfigError: There is none, or there are images to begin with.
            DataError: The folder holds none, or a damaged one.
        """
        return load_generator(self.folder(start), data.train.images.device)

    def adapter(
        self, network: ImageGenerator, data: ImageDataset, transform: Transform | None = None
    ) -> GeneratorAdapter:
        """As ``LatentConfig.adapter``, normalised as ``glad_norm`` says."""
        adapter = super().adapter(network, data, transform)
        if self.glad_norm == "data":
            return adapter
        if data.channels != 3:
            raise ConfigError(
                f"glad_norm: expected colour images for 'repo', got {data.channels} channel; use "
                "'data'"
            )
        published = Standardise(torch.tensor(REPO_MEAN), torch.tensor(REPO_STD))
        return replace(adapter, transform=published.to(data.train.images.device))


def on_latents(
    problem: Problem, prior: Prior, state: State, network: Generator, **rates: float | None
) -> Problem:
    """Return a run on pixels with its images rendered by ``prior`` from latents of a StyleGAN.

    Args:
        problem: A run on pixels.
        prior: Renders the images.
        state: Its tensors.
        network: The generator; the record names it.
        rates: Learning rate by name or first word of the prior's tensors.
    """
    identity = digest(network.tensors, to_mapping(network.config))
    record = {"layers": network.num_layers, "sha256": identity}
    return with_prior(problem, prior, state, rates, record, option="lr_f, lr_w")
