"""GLaD: the latents of a generator are optimised, under the objective of any other method.

Paper: Cazenavette, Wang, Torralba, Efros and Zhu, "Generalizing Dataset Distillation via Deep
    Generative Prior", CVPR 2023.

    min_{w, f}  L( { G_{n ->}(f_j; w_j) }, T )          L of DM, DC, MTT, ...; f the feature map
    after n layers of G, w in W+

The objective gives dL/dimages first, without the generator's graph; the generator is then rendered
again in small chunks for the gradient in f and w (and in its weights with ``learn_g``).  Exact by
the chain rule, in the memory of the larger of the two.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.keys import make_key
from kdistill.methods.base import Method, Problem
from kdistill.methods.composition import EXPERTS
from kdistill.methods.latent.stylegan_base import PUBLISHED, StyleganConfig, on_latents
from kdistill.options import NOT_NEGATIVE, Unset
from kdistill.priors import LatentPrior
from kdistill.priors.stylegan import Generator


@dataclass(frozen=True, kw_only=True)
class GladConfig(StyleganConfig):
    """Options of GLaD; the defaults are the paper's for DM on ImageNet subsets at 128 px.

    Attributes:
        layer: n of F_n: the feature map after the first n layers is learned.
        lr_g: Learning rate of the generator's weights, with ``learn_g``.
        learn_g: Learn the weights of the layers after n too.
        rand_f: Begin with feature maps drawn from a normal distribution with each image's mean and
            deviation.
        avg_w: Begin with averages of mapped draws; the images of a class share ``n_avg`` between
            them.
    """

    layer: Annotated[int | None, "a layer of the generator", Unset("W+ alone is learned")] = 20
    lr_g: Annotated[float, NOT_NEGATIVE] = 1e-4
    learn_g: bool = False
    rand_f: bool = False
    avg_w: bool = False


def prior_for(config: GladConfig, network: Generator, data: ImageDataset, key: int) -> LatentPrior:
    """Return the prior: the generator's images, normalised as the data are.

    Raises:
        ConfigError: The generator does not fit the data (says which), or the layer does not exist
            (lists them).
    """
    return LatentPrior(
        generator=network,
        layer=config.layer,
        adapter=config.adapter(network, data),
        chunk=config.chunk,
        key=key,
        noise=config.noise,
    )


def build(
    config: GladConfig, data: ImageDataset, ipc: int, seed: int, start: Tensor | None
) -> Problem:
    """Return the run of the objective's method, with images that are rendered from latents."""
    network = config.generator(data, start)
    prior = prior_for(config, network, data, make_key(seed, "prior"))
    state = prior.init(
        config.generator_labels(network, data, ipc)[1],
        average=config.n_avg if config.avg_w else 0,
        random_f=config.rand_f,
        learn_weights=config.learn_g,
    )
    method, options = config.pixel_method()
    problem = method.build(options, data, ipc, seed, prior.render(state, 0))
    learned = {name.partition(".")[0] for name in state}
    rates = {"ws": config.lr_w, "f": config.lr_f, "generator": config.lr_g}
    rates = {name: rate for name, rate in rates.items() if name in learned}
    return replace(
        on_latents(problem, prior, state, network, **rates),
        hint=f"lower lr_f or lr_w{', or lr_g' if config.learn_g else ''}",
    )


METHOD = Method(
    name="glad",
    title="the latents of a generator in W+ and at one layer, under the objective of another "
    "method",
    summary="latents of a generator, in W+ and at one layer",
    family="latent",
    paper="Cazenavette et al., Generalizing Dataset Distillation via Deep Generative Prior, CVPR "
    "2023",
    config=GladConfig,
    presets={
        # of the authors' README, ImageNet subsets at 128 px with a StyleGAN-XL of 26 layers
        "paper": {},
        "paper_dc": {**PUBLISHED["dc"], "layer": 16},
        "paper_mtt": {**PUBLISHED["mtt"], "layer": 12, "lr_g": 0.1},
        "paper_cifar": {"layer": 2},
        "fast": {
            "iterations": 400,
            "objective_preset": "fast",
            "layer": 3,
            "lr_f": None,
            "lr_w": None,
            "width": 32,
            "avg_w": True,
        },
    },
    build=build,
    deviations=(
        "generated and real images are normalised alike; glad_norm='repo' has the other mean of "
        "the published code",
        "avg_w works for any number of images per class: each takes the average of its own share "
        "of the draws",
        "the generator runs in float32; the published code runs most layers in float16 on a GPU",
        "randomness is keyed; the last iteration is the result, not the best on the test set",
    ),
    experts=EXPERTS,
    cost="that of the objective, and three passes through the generator",
    needs="a generator; expert trajectories where the objective does",
)
