"""GLaD: the images are those of a generator, and its latents are optimised, under the objective of any other method.

Paper: Cazenavette, Wang, Torralba, Efros and Zhu, "Generalizing Dataset Distillation via Deep Generative Prior", CVPR 2023.

    min_{w, f}  L( { G_{n ->}(f_j; w_j) }, T )          L of DM, DC, MTT, ...; f the feature map after n layers of G, w in W+

The objective gives dL/dimages first, without the generator's graph; the generator is then rendered again in small chunks for the
gradient in f and w (and in its weights with ``learn_g``).  Exact by the chain rule, in the memory of the larger of the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdistill import methods
from kdistill.artifacts.tensors import digest
from kdistill.config import from_mapping, to_mapping
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError, did_you_mean
from kdistill.experts import TrajectoryStore
from kdistill.keys import make_key
from kdistill.methods._recipe import Method, MethodConfig, Problem, Rehearsal, balanced_labels, check_at_least_one
from kdistill.priors import LatentPrior, View
from kdistill.priors.latents import check_fit, generator_classes
from kdistill.priors.network_files import load_generator
from kdistill.priors.stylegan import Generator
from kdistill.transforms import Standardise, Transform

REPO_MEAN, REPO_STD = (0.4377, 0.4438, 0.4728), (0.229, 0.224, 0.225)  # of generated images in the published code


@dataclass(frozen=True, kw_only=True)
class GladConfig(MethodConfig):
    """Options of GLaD beside those that every method has; the defaults are the paper's for DM on ImageNet subsets at 128 px.

    Attributes:
        prior: Folder of the generator (``kdistill prior convert``).
        objective: Name of the method whose objective is used.
        objective_preset: Its preset.
        settings: Its own options on top of that.
        layer: n of F_n, the layers that the learned feature map stands for; ``"none"`` optimises W+ alone.
        lr_f: Step size of the feature maps.
        lr_w: Step size of the latents in W+.
        lr_g: Step size of the generator's weights.
        learn_g: Learn the weights of the layers after n too.
        rand_f: Begin with normal feature maps of each image's mean and deviation.
        avg_w: Begin with averages of mapped draws; the images of a class share ``n_avg`` between them.
        n_avg: Mapped draws per class.
        chunk: Images with a graph of the generator at one time.
        noise: StyleGAN2's noise inputs, ``"const"`` or ``"random"``.
        classes: The generator's class of each class of the data, where they are not the same.
        channels: ``"same"``, or ``"convert"`` between colour and grey.
        resize: Scale what the generator draws to the size of the data.
        glad_norm: ``"data"``, or ``"repo"``: the mean and deviation that the published code has for generated images.
    """

    iterations: int = 1000
    prior: str = ""
    objective: str = "dm"
    objective_preset: str = "paper"
    settings: Mapping[str, Any] = field(default_factory=dict)
    layer: int | None = 20
    lr_f: float = 10.0
    lr_w: float = 0.01
    lr_g: float = 1e-4
    learn_g: bool = False
    rand_f: bool = False
    avg_w: bool = False
    n_avg: int = 1000
    chunk: int = 10
    noise: str = "const"
    classes: tuple[int, ...] | None = None
    channels: str = "same"
    resize: bool = False
    glad_norm: str = "data"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "chunk", "n_avg")
        for name, known in (("channels", ["same", "convert"]), ("glad_norm", ["data", "repo"])):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}: expected a known word, got '{getattr(self, name)}'; "
                                  f"{did_you_mean(getattr(self, name), known)}")  # fmt: skip

    def base(self) -> tuple[Method, Any]:
        """Return the method whose objective is used, and its options: the preset, then the shared ones, then ``settings``.

        Raises:
            ConfigError: The objective or its preset is unknown, or ``settings`` holds an option that GLaD has itself.
        """
        if self.objective == METHOD.name:
            raise ConfigError(f"objective: expected a method on pixels, got '{METHOD.name}' itself; such as dm or mtt")
        found = methods.get(self.objective)
        if self.objective_preset not in found.presets:
            hint = did_you_mean(self.objective_preset, list(found.presets))
            raise ConfigError(f"objective_preset: expected one of {self.objective}'s, got '{self.objective_preset}'; {hint}")
        shared = {entry.name: getattr(self, entry.name) for entry in fields(MethodConfig)}
        both = sorted(set(shared) & set(self.settings))
        if both:
            raise ConfigError(f"settings: expected options of {self.objective} alone, got '{both[0]}'; set it beside settings")
        given = {**found.presets[self.objective_preset], **shared, **self.settings}
        return found, from_mapping(found.config, given, where=f"settings of {self.objective}")


def prior_for(config: GladConfig, network: Generator, data: ImageDataset, key: int) -> LatentPrior:
    """Return the prior: the generator's images as networks see the data.

    Raises:
        ConfigError: The generator does not fit the data (says which), or the layer does not exist (lists them).
    """
    check_fit(
        network,
        classes=data.classes,
        channels=data.channels,
        size=data.size,
        mapped=config.classes is not None,
        convert=config.channels == "convert",
        resize=config.resize,
    )
    view = View(_transform(config, data), data.channels, data.size)
    return LatentPrior(generator=network, layer=config.layer, view=view, chunk=config.chunk, key=key, noise=config.noise)


def build(config: GladConfig, data: ImageDataset, ipc: int, seed: int, start: Tensor | None) -> Problem:
    """Return the run of the objective's method, with images that are rendered from latents."""
    if start is not None:
        raise ConfigError("glad: expected no images to begin with, got some (init); latents begin from draws, leave init out")
    if not config.prior:
        raise ConfigError("prior: expected the folder of a generator, got none; make one with kdistill prior convert net.pkl out")
    method, base_config = config.base()
    network = load_generator(config.prior, data.train.images.device)
    prior = prior_for(config, network, data, make_key(seed, "prior"))
    labels = balanced_labels(data.num_classes, ipc).to(data.train.images.device)
    state = prior.init(
        generator_classes(network, labels, config.classes, data.num_classes),
        average=config.n_avg if config.avg_w else 0,
        random_f=config.rand_f,
        learn_weights=config.learn_g,
    )
    problem = method.build(base_config, data, ipc, seed, prior.render(state, 0))
    rates = {"ws": config.lr_w, "f": config.lr_f, "generator": config.lr_g}
    names = {name.partition(".")[0] for name in state}
    return problem.with_prior(
        prior,
        state,
        {name: rate for name, rate in rates.items() if name in names},
        advice=f"lower lr_f or lr_w{', or lr_g' if config.learn_g else ''}",
        about={
            **problem.about,
            "prior": {"layers": network.num_layers, "sha256": digest(network.tensors, to_mapping(network.config))},
        },
    )


def experts(config: GladConfig, data: ImageDataset) -> TrajectoryStore:
    """Train the experts of the objective's method."""
    method, base_config = config.base()
    if method.experts is None:
        raise ConfigError(f"experts: expected an objective with expert trajectories, got '{config.objective}'; such as mtt")
    return method.experts(base_config, data)


def rehearse(config: GladConfig, data: ImageDataset, folder: Path) -> Rehearsal:
    """Return the rehearsal of the objective's method."""
    method, base_config = config.base()
    if method.rehearse is None:
        return Rehearsal(config)
    rehearsal = method.rehearse(base_config, data, folder)
    shared = {entry.name for entry in fields(MethodConfig)}
    settings = {name: value for name, value in to_mapping(rehearsal.config).items() if name not in shared}
    return replace(rehearsal, config=replace(config, settings=settings))


def _transform(config: GladConfig, data: ImageDataset) -> Transform:
    if config.glad_norm == "data":
        return data.transform
    if data.channels != 3:
        raise ConfigError(f"glad_norm: expected colour images for 'repo', got {data.channels} channel; use 'data'")
    return Standardise(torch.tensor(REPO_MEAN), torch.tensor(REPO_STD)).to(data.train.images.device)


METHOD = Method(
    name="glad",
    title="the latents of a generator in W+ and at one layer, under the objective of another method",
    paper="Cazenavette et al., Generalizing Dataset Distillation via Deep Generative Prior, CVPR 2023",
    config=GladConfig,
    presets={
        # of the authors' README, ImageNet subsets at 128 px with a StyleGAN-XL of 26 layers
        "paper": {},
        "paper_dc": {"objective": "dc", "layer": 16, "lr_f": 1.0, "lr_w": 1e-3},
        "paper_mtt": {
            "objective": "mtt",
            "layer": 12,
            "lr_f": 1e4,
            "lr_w": 10.0,
            "lr_g": 0.1,
            "settings": {"grad_mode": "tesla", "syn_steps": 20, "expert_epochs": 3, "max_start_epoch": 5, "lr_lr": 1e-6},
        },
        "paper_cifar": {"layer": 2},
        "fast": {"iterations": 400, "objective_preset": "fast", "layer": 3, "width": 32, "avg_w": True},
    },
    build=build,
    deviations=(
        "generated and real images are normalised alike; glad_norm='repo' has the other mean of the published code",
        "avg_w works for any number of images per class: each takes the average of its own share of the draws",
        "the generator runs in float32; the published code runs most layers in float16 on a GPU",
        "randomness is keyed; the last iteration is the result, not the best on the test set",
    ),
    experts=experts,
    rehearse=rehearse,
    cost="that of the objective, and three passes through the generator",
    needs="a generator; expert trajectories where the objective does",
)
