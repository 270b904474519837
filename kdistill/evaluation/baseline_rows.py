"""Rows of real data beside the small set: subsets of the same size, and all of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kdistill.artifacts.conclusions import TEACHER
from kdistill.augment import strategy_for
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError, DataError, did_you_mean
from kdistill.evaluation import baseline_cache
from kdistill.evaluation.protocols import Protocol, learning_rates
from kdistill.evaluation.rows import Row
from kdistill.evaluation.trainer import Task, Trainer
from kdistill.keys import make_key
from kdistill.selection import select

BASELINES = ("random", "herding", "k-center", "full")
FEATURE_BATCH = 1024  # images of which features or logits are computed at once


class Baselines:
    """Makes and caches the rows of real data for one data set, protocol and seed.

    Args:
        data: Real data without the held out images, on the device.
        images: Its normalised training images.
        ipc: Images per class of the subsets.
        protocol: The recipe.
        seed: Seed of the evaluation.
        identity: What else decides the numbers (data, what was held out); JSON content.
        cached_models: Names of the models whose rows are cached: those that their name describes
            completely.
        reference: Trainer whose first full-data network gives the features of herding and k-center.
        has_teacher: Whether ``random`` gets a second row, of the same images with the labels of a
            teacher (the first full-data network of ``reference``): what a set with soft labels
            compares with.
    """

    def __init__(
        self,
        data: ImageDataset,
        images: Tensor,
        ipc: int,
        protocol: Protocol,
        seed: int,
        *,
        identity: Mapping[str, Any],
        cached_models: frozenset[str],
        reference: Trainer,
        has_teacher: bool = False,
    ):
        self.images, self.labels, self.num_classes = images, data.train.labels, data.num_classes
        self.ipc, self.protocol, self.seed = ipc, protocol, seed
        self.identity = {**identity, "device": images.device.type}
        self.cached_models, self.reference = cached_models, reference
        self.has_teacher = has_teacher
        self.strategy = strategy_for(protocol.strategy, data.mirrors)

    def rows(self, names: Sequence[str], trainer: Trainer) -> list[Row]:
        """Return the rows of baselines, in the order of ``names``, and the protocol's variants."""
        rows: dict[str, list[Row]] = {}
        # full data first: its network chooses for herding and k-center
        for name in sorted(names, key=lambda name: name != "full"):
            rows[name] = []
            for title in ("random", TEACHER) if name == "random" and self.has_teacher else (name,):
                rows[name].append(self._row(title, title, self.strategy, trainer))
                if name == "random" and self.protocol.robustness:
                    variant = f"{title}, no augmentation"
                    rows[name].append(self._row(title, variant, "none", trainer))
        return [row for name in names for row in rows[name]]

    def full_epochs(self) -> int:
        """Return the passes over the full data: never fewer steps than on a small set."""
        size = self.protocol.batch_size
        steps = self.protocol.epochs * math.ceil(self.ipc * self.num_classes / size)
        return max(self.protocol.full_epochs, math.ceil(steps / math.ceil(len(self.images) / size)))

    @cached_property
    def features(self) -> Tensor:
        """Features ``[N, F]`` of the training images, of the first network of the full-data row."""
        return self._inferred(self.images, to="features")

    def _row(self, name: str, title: str, strategy: str, trainer: Trainer) -> Row:
        entry = self._entry(name, title, strategy, trainer)

        def checked(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Row:
            """Return the cached row, or refuse numbers that cannot be those of this baseline."""
            row = Row.from_dict(facts)
            test_counts = trainer.test.labels.bincount(minlength=self.num_classes).tolist()
            nets, has_validation = self.protocol.nets, len(trainer.validation) > 0
            wrong = baseline_cache.implausibility(row, nets, test_counts, has_validation)
            if (row.name, row.model, row.sources) != (title, trainer.model, (entry,)):
                wrong = "the row of another baseline"
            if wrong is not None:
                raise DataError(f"expected what an evaluation measures of {title}, got {wrong}")
            return row

        is_cached = trainer.model in self.cached_models
        if is_cached and (row := baseline_cache.load(entry, checked)) is not None:
            return row
        row, thetas = trainer.row(self._task(name, title, entry, strategy))
        if name == "full" and trainer is self.reference:
            self._full_theta = thetas[0]
        if is_cached:
            baseline_cache.save(entry, {"theta": thetas[0]} if name == "full" else {}, asdict(row))
        return row

    def _entry(self, name: str, title: str, strategy: str, trainer: Trainer) -> str:
        """Return the digest of everything that decides the numbers of a baseline."""
        neutral = {"name": "", "eight_bit": False, "hard_labels": False, "robustness": False}
        recipe = asdict(replace(self.protocol, strategy=strategy, **neutral))
        del recipe["full_epochs"], recipe["teacher_labels"]
        identity = {
            "row": title,
            "model": trainer.model,
            "params": trainer.student.num_params,
            "protocol": recipe,
            "seed": self.seed,
            **self.identity,
        }
        identity |= {"epochs": self.full_epochs()} if name == "full" else {"ipc": self.ipc}
        if name in ("herding", "k-center", TEACHER):
            reference = self.reference
            size = reference.student.num_params
            identity["reference"] = [reference.model, size, self.full_epochs()]
        return baseline_cache.name_of(identity)

    def _task(self, name: str, title: str, entry: str, strategy: str) -> Task:
        is_full = name == "full"
        return Task(
            name=title,
            kind="baseline" if title == name else "variant",
            source=entry,
            sets=self._sets(name),
            unit="" if is_full else "subset",
            epochs=self.full_epochs() if is_full else self.protocol.epochs,
            lr=learning_rates(self.protocol),
            strategy=strategy,
        )

    def _sets(self, name: str) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return images and labels of a baseline: one pair for all networks, or one per network."""
        if name == "full":
            return ((self.images, self.labels),)
        if name not in ("random", TEACHER):
            subsets = [self._choose(name, self.features, 0)]
        else:  # a new draw for every network: its spread is that of random selection
            pixels = self.images.flatten(1)
            subsets = [self._choose("random", pixels, net) for net in range(self.protocol.nets)]
        if name == TEACHER:  # on the images as they are, like the labels of a set
            return tuple((self.images[rows], self._inferred(self.images[rows])) for rows in subsets)
        return tuple((self.images[rows], self.labels[rows]) for rows in subsets)

    def _choose(self, name: str, features: Tensor, net: int) -> Tensor:
        key = make_key(self.seed, f"evaluate {name}", net)
        return select(name, features, self.labels, self.ipc, key).to(self.images.device)

    def _inferred(self, images: Tensor, **what: Any) -> Tensor:
        """Return the logits (or features) of the first full-data network."""
        student, theta = self.reference.student, self._full_theta
        parts = images.split(FEATURE_BATCH)
        return torch.cat([student.infer(theta, part, **what) for part in parts])

    @cached_property
    def _full_theta(self) -> Tensor:
        """Parameters ``[P]`` of the first full-data network: cached, or trained alone."""
        entry = self._entry("full", "full", self.strategy, self.reference)
        alone = f"{entry}-first"  # without the row of full data, which nobody asked for
        is_cached = self.reference.model in self.cached_models
        for name in (entry, alone) if is_cached else ():
            if (theta := baseline_cache.load(name, self._checked_theta)) is not None:
                return theta
        theta = self.reference.first_network(self._task("full", "full", entry, self.strategy))
        if is_cached:
            baseline_cache.save(alone, {"theta": theta}, {})
        return theta

    def _checked_theta(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Tensor:
        """Return the cached parameters, or refuse what cannot be those of the reference network."""
        theta, count = tensors["theta"], self.reference.student.num_params
        if theta.shape != (count,) or theta.dtype != torch.float32 or not theta.isfinite().all():
            raise DataError(f"expected {count:,} finite parameters, got others")
        return theta.to(self.images.device)


def check_names(names: tuple[str, ...]) -> None:
    """Refuse an unknown baseline.

    Raises:
        ConfigError: Suggests the nearest name.
    """
    for name in names:
        if name not in BASELINES:
            raise ConfigError(
                f"baselines: expected a known name, got '{name}'; "
                f"{did_you_mean(name, list(BASELINES))}"
            )
