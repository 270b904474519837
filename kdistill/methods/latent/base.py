"""What methods on a generator's latents share: options, the generator, a run on pixels below."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from kdistill import methods
from kdistill.artifacts.tensors import digest
from kdistill.config import to_mapping
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError
from kdistill.experts import TrajectoryStore
from kdistill.methods.base import DryRun, Experts, Method, MethodConfig, Problem
from kdistill.methods.init import balanced_labels
from kdistill.optim import SGD, replaced
from kdistill.options import AUTOMATIC, COUNT, NOT_NEGATIVE, Unset
from kdistill.priors import GeneratorAdapter, Prior, State
from kdistill.priors.latents import check_fit, generator_classes
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
class LatentConfig(MethodConfig):  # many fields, since each is an option that users set
    """Options of methods on latents; learning rates are GLaD's for DM on ImageNet subsets.

    Attributes:
        prior: Folder of the generator (``kdistill prior train`` or ``convert``).
        objective: Name of the method whose objective is used.
        objective_preset: Preset of that method.
        settings: Options of that method on top of its preset, as ``settings.NAME=VALUE``.
        lr_f: Learning rate of the feature maps; where it is found, the first step along them alone
            moves the images by 3 % of their norm (1 % under dc and dsa).
        lr_w: Learning rate of the latents in W+; found as ``lr_f`` is.
        n_avg: Mapped draws per class, where a run begins with averages of them.
        chunk: Images that have a graph of the generator at one time: less memory, more time.
        noise: StyleGAN2's noise inputs: ``"const"`` (the network's own) or ``"random"`` (new in
            every iteration).
        classes: The generator's class for each class of the data.
        channels: ``"same"``, or ``"convert"`` between colour and grey.
        resize: Scale the generator's images to the size of the data.
        glad_norm: How generated images are normalised: ``"data"`` (as the real ones), or
            ``"repo"``: by the mean and deviation that the published code has for them.
    """

    iterations: int = 1000
    prior: Annotated[str, "a folder; needed"] = ""
    objective: str = "dm"
    objective_preset: str = "paper"
    settings: Mapping[str, Any] = field(default_factory=dict)
    lr_f: Annotated[float | None, NOT_NEGATIVE, AUTOMATIC] = 10.0
    lr_w: Annotated[float | None, NOT_NEGATIVE, AUTOMATIC] = 0.01
    n_avg: Annotated[int, COUNT] = 1000
    chunk: Annotated[int, COUNT] = 10
    noise: Literal["const", "random"] = "const"
    classes: Annotated[tuple[int, ...] | None, "of class numbers", Unset("the same numbers")] = None
    channels: Literal["same", "convert"] = "same"
    resize: bool = False
    glad_norm: Literal["data", "repo"] = "data"

    def pixel_method(self) -> tuple[Method, Any]:
        """Return the method whose objective is used, and its options.

        These are its preset, then the options that every method has, then ``settings``.

        Raises:
            ConfigError: The objective or its preset is unknown, or ``settings`` holds an option
                that every method has.
        """
        method = methods.get(self.objective)
        if issubclass(method.config, LatentConfig):
            raise ConfigError(
                f"objective: expected a method on pixels, got '{self.objective}'; such as dm or mtt"
            )
        shared = {name: getattr(self, name) for name in SHARED}
        if repeated := sorted(SHARED & set(self.settings)):
            raise ConfigError(
                f"settings: expected options of {self.objective} alone, got '{repeated[0]}'; set "
                "it beside settings"
            )
        options = method.options(
            self.objective_preset,
            {**shared, **self.settings},
            where=f"settings of {self.objective}",
            name="objective_preset",
        )
        return method, options

    def generator(self, data: ImageDataset, start: Tensor | None) -> Generator:
        """Return the generator on the data's device.

        Raises:
            ConfigError: There is none, or there are images to begin with, whose latents nobody
                knows.
            DataError: The folder holds none, or a damaged one.
        """
        if start is not None:
            raise ConfigError(
                "init: expected no images to begin with, got some; latents begin from draws, "
                "leave init out"
            )
        if not self.prior:
            raise ConfigError(
                "prior: expected the folder of a generator, got none; make one with kdistill "
                "prior train DATA"
            )
        return load_generator(self.prior, data.train.images.device)

    def adapter(self, network: Generator, data: ImageDataset) -> GeneratorAdapter:
        """Return the way from the generator's images to normalised ones of the data's size.

        Raises:
            ConfigError: The generator does not fit the data (says which).
        """
        check_fit(
            network,
            classes=data.classes,
            channels=data.channels,
            size=data.size,
            mapped=self.classes is not None,
            convert=self.channels == "convert",
            resize=self.resize,
        )
        transform: Transform = data.transform
        if self.glad_norm == "repo":
            if data.channels != 3:
                raise ConfigError(
                    f"glad_norm: expected colour images for 'repo', got {data.channels} channel; "
                    "use 'data'"
                )
            published = Standardise(torch.tensor(REPO_MEAN), torch.tensor(REPO_STD))
            transform = published.to(data.train.images.device)
        return GeneratorAdapter(transform, data.channels, data.size)

    def labels(self, network: Generator, data: ImageDataset, ipc: int) -> tuple[Tensor, Tensor]:
        """Return the labels of the images, and the generator's class of each."""
        labels = balanced_labels(data.num_classes, ipc).to(data.train.images.device)
        return labels, generator_classes(network, labels, self.classes, data.num_classes)


SHARED = {field.name for field in fields(MethodConfig)}  # options that every method has


def on_latents(
    problem: Problem, prior: Prior, state: State, network: Generator, **rates: float | None
) -> Problem:
    """Return a run on pixels with its images rendered by ``prior`` from ``state``.

    Labels, the student's learning rate and the objective stay; latents are stepped like the pixels
    before, but that no iteration is skipped for its move.

    Args:
        problem: A run on pixels.
        prior: Renders the images.
        state: Its tensors.
        network: The generator; the record names it.
        rates: Learning rate by name or first word of the prior's tensors.
    """
    find = replace(pixel_sgd(problem).find, option="lr_f, lr_w")
    rules = dict(problem.optimizer.rules)
    pixels = rules.pop("images")
    for name, lr in rates.items():
        rules[name] = replaced(pixels, lr=lr, find=find, skip_move=None)
    others = {name: x for name, x in problem.state.items() if name != "images"}
    identity = digest(network.tensors, to_mapping(network.config))
    record = {"layers": network.num_layers, "sha256": identity}
    return replace(
        problem,
        prior=prior,
        state={**state, **others},
        optimizer=replace(problem.optimizer, rules=rules),
        provenance={**problem.provenance, "prior": record},
    )


def pixel_sgd(problem: Problem) -> SGD:
    """Return the optimiser of the images, without a running mean.

    Raises:
        ConfigError: It is another one.
    """
    sgd = problem.optimizer.sgd("images")
    if sgd is None:
        raise ConfigError("objective: expected a method with SGD on the images; use dm or mtt")
    return sgd


def _train_experts(config: LatentConfig, data: ImageDataset) -> TrajectoryStore:
    """Train the experts of the objective's method."""
    method, base_config = config.pixel_method()
    if method.experts is None:
        raise ConfigError(
            f"experts: expected an objective with expert trajectories, got '{config.objective}'; "
            "such as mtt"
        )
    return method.experts.train(base_config, data)


def _dry_run(config: LatentConfig, data: ImageDataset, folder: Path) -> DryRun:
    """Return the dry run of the objective's method."""
    method, base_config = config.pixel_method()
    if method.experts is None:
        return DryRun(config)
    dry_run = method.experts.dry_run(base_config, data, folder)
    settings = {
        name: value for name, value in to_mapping(dry_run.config).items() if name not in SHARED
    }
    return replace(dry_run, config=replace(config, settings=settings))


EXPERTS = Experts(train=_train_experts, dry_run=_dry_run)
