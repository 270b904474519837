"""Any objective with any prior: a method on pixels, whose images another prior renders."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kdistill import methods
from kdistill.config import to_mapping
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError
from kdistill.experts import TrajectoryStore
from kdistill.methods.base import DryRun, Experts, Method, MethodConfig, Problem
from kdistill.optim import SGD, replaced
from kdistill.priors import Prior, State


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(MethodConfig):
    """Options of a method that takes its objective from a method on pixels.

    Attributes:
        objective: Name of the method whose objective is used.
        objective_preset: Preset of that method.
        settings: Options of that method on top of its preset, as ``settings.NAME=VALUE``.
    """

    objective: str = "dm"
    objective_preset: str = "paper"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def pixel_method(self) -> tuple[Method, Any]:
        """Return the method whose objective is used, and its options.

        These are its preset, then the options that every method has, then ``settings``.

        Raises:
            ConfigError: The objective or its preset is unknown, it has a prior of its own, or
                ``settings`` holds ``eight_bit`` or an option that every method has.
        """
        method = methods.get(self.objective)
        if method.family not in PIXEL_FAMILIES:
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
        if options.eight_bit:
            raise ConfigError(
                "settings.eight_bit: expected false for images that a generator renders, got true; "
                "leave it out"
            )
        return method, options


PIXEL_FAMILIES = ("distribution", "gradient", "trajectory")  # of methods that learn the pixels
SHARED = {field.name for field in fields(MethodConfig)}  # options that every method has


def with_prior(
    problem: Problem,
    prior: Prior,
    state: State,
    rates: Mapping[str, float | None],
    provenance: Mapping[str, Any],
    *,
    option: str,
) -> Problem:
    """Return a run on pixels with its images rendered by ``prior`` from ``state``.

    Labels, the student's learning rate and the objective stay; the prior's tensors are stepped like
    the pixels before, but that no iteration is skipped for its move.

    Args:
        problem: A run on pixels.
        prior: Renders the images.
        state: Its tensors.
        rates: Learning rate by name or first word of the prior's tensors; None is found.
        provenance: What the record says of the prior.
        option: Options that name the learning rates, for messages.
    """
    find = replace(pixel_sgd(problem).find, option=option)
    rules = dict(problem.optimizer.rules)
    rule = rules.pop("images")
    for name, lr in rates.items():
        rules[name] = replaced(rule, lr=lr, find=find, skip_move=None)
    others = {name: x for name, x in problem.state.items() if name != "images"}
    return replace(
        problem,
        prior=prior,
        state={**state, **others},
        optimizer=replace(problem.optimizer, rules=rules),
        provenance={**problem.provenance, "prior": dict(provenance)},
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


def _train_experts(config: ObjectiveConfig, data: ImageDataset) -> TrajectoryStore:
    """Train the experts of the objective's method."""
    method, base_config = config.pixel_method()
    if method.experts is None:
        raise ConfigError(
            f"experts: expected an objective with expert trajectories, got '{config.objective}'; "
            "such as mtt"
        )
    return method.experts.train(base_config, data)


def _dry_run(config: ObjectiveConfig, data: ImageDataset, folder: Path) -> DryRun:
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
