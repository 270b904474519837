"""Rows of real data beside the small set: random, herding and k-center subsets of the same size, and all of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from kdistill.artifacts.conclusions import TEACHER
from kdistill.augment import strategy_for
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError, DataError, did_you_mean
from kdistill.evaluation import baseline_cache as cache
from kdistill.evaluation.protocols import Protocol, step_sizes
from kdistill.evaluation.recorded_rows import impossible
from kdistill.evaluation.result import Row
from kdistill.evaluation.set_training import Task, Trainer
from kdistill.keys import make_key
from kdistill.selection import select

BASELINES = ("random", "herding", "k-center", "full")


class Baselines:
    """Makes and keeps the rows of real data for one data set, protocol and seed.

    Args:
        data: Without the held out images, on the device.
        seen: Its training images as networks see them.
        ipc: Images per class of the subsets.
        protocol: The recipe.
        seed: Of the evaluation.
        identity: What else decides the numbers (data, what was held out); JSON content.
        reuse: Keep rows for the next evaluation, and use those that were kept.
        chooser: Its first full-data network gives the features of herding and k-center.
        named: Models that their name describes completely: only their rows are kept.
        teacher: Whether ``random`` gets a second row, of the same images with the labels of a
            teacher (the first full-data network of the chooser): what a set with soft labels
            compares with.
    """

    def __init__(
        self,
        data: ImageDataset,
        seen: Tensor,
        ipc: int,
        protocol: Protocol,
        seed: int,
        *,
        identity: Mapping[str, Any],
        reuse: bool,
        chooser: Trainer,
        named: frozenset[str],
        teacher: bool = False,
    ):
        self.data, self.seen, self.ipc, self.protocol, self.seed = data, seen, ipc, protocol, seed
        self.identity, self.chooser = {**identity, "device": seen.device.type}, chooser
        self.keeps = named if reuse else frozenset()
        self.teacher = teacher
        self.strategy = strategy_for(protocol.strategy, data.mirrors)
        self._features: Tensor | None = None
        self._full_theta: Tensor | None = None  # of the chooser's first network, once it is known

    def rows(self, names: Sequence[str], trainer: Trainer) -> list[Row]:
        """Return the rows of baselines, in the order of ``names``, and variants where the protocol asks for them."""
        made = {}
        for name in sorted(
            names, key=lambda name: name != "full"
        ):  # first: its network chooses for herding and k-center
            made[name] = []
            for title in ("random", TEACHER) if name == "random" and self.teacher else (name,):
                made[name].append(self._row(title, title, self.strategy, trainer))
                if name == "random" and self.protocol.robustness:
                    made[name].append(
                        self._row(title, f"{title}, no augmentation", "none", trainer)
                    )
        return [row for name in names for row in made[name]]

    def full_epochs(self) -> int:
        """Return the passes over the full data: the protocol's, or more, so that it never gets fewer steps than a small set."""
        steps = self.protocol.epochs * math.ceil(
            self.ipc * self.data.num_classes / self.protocol.batch_size
        )
        return max(
            self.protocol.full_epochs,
            math.ceil(steps / math.ceil(len(self.seen) / self.protocol.batch_size)),
        )

    def _row(self, name: str, title: str, strategy: str, trainer: Trainer) -> Row:
        entry = self._entry(name, title, strategy, trainer)
        kept = self._load(entry, trainer)
        row = None if kept is None else self._kept_row(kept[1], entry, title, trainer)
        if row is not None:
            return row
        row, thetas = trainer.row(self._task(name, title, entry, strategy))
        if name == "full" and trainer is self.chooser:
            self._full_theta = thetas[0]
        if trainer.model in self.keeps:
            cache.save(entry, {"theta": thetas[0]} if name == "full" else {}, asdict(row))
        return row

    def _load(
        self, entry: str, trainer: Trainer
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return cache.load(entry) if trainer.model in self.keeps else None

    def _kept_row(
        self, facts: Mapping[str, Any], entry: str, title: str, trainer: Trainer
    ) -> Row | None:
        """Return the row of an entry, or None if its numbers cannot be those of this baseline."""
        try:
            row = Row.from_dict(facts)
        except ConfigError as error:
            cache.refuse(error)
            return None
        tests = trainer.test.labels.bincount(minlength=self.data.num_classes).tolist()
        wrong = impossible(
            row, self.protocol.nets, self.data.num_classes, tests, len(trainer.validation) > 0
        )
        if (row.name, row.model, row.sources) != (title, trainer.model, (entry,)):
            wrong = "the row of another baseline"
        if wrong is not None:
            cache.refuse(DataError(f"expected what an evaluation measures of {title}, got {wrong}"))
            return None
        return row

    def _kept_theta(self, entry: str) -> Tensor | None:
        """Return the parameters in an entry, or None if they are not those of the chooser's network."""
        kept = self._load(entry, self.chooser)
        if kept is None:
            return None
        theta, count = kept[0].get("theta"), self.chooser.student.num_params
        if (
            theta is None
            or theta.shape != (count,)
            or theta.dtype != torch.float32
            or not bool(theta.isfinite().all())
        ):
            cache.refuse(DataError(f"expected {count:,} finite parameters, got others"))
            return None
        return theta.to(self.seen.device)

    def _entry(self, name: str, title: str, strategy: str, trainer: Trainer) -> str:
        """Return the digest of everything that decides the numbers of a baseline."""
        recipe = asdict(
            replace(
                self.protocol,
                name="",
                eight_bit=False,
                hard_labels=False,
                robustness=False,
                strategy=strategy,
            )
        )
        del recipe["full_epochs"], recipe["teacher_labels"]
        about = {
            "row": title,
            "model": trainer.model,
            "protocol": recipe,
            "seed": self.seed,
            **self.identity,
        }
        about |= {"epochs": self.full_epochs()} if name == "full" else {"ipc": self.ipc}
        if name in ("herding", "k-center", TEACHER):
            about["chooser"] = [
                self.chooser.model,
                self.chooser.student.num_params,
                self.full_epochs(),
            ]
        return cache.name_of({**about, "params": trainer.student.num_params})

    def _task(self, name: str, title: str, entry: str, strategy: str) -> Task:
        full = name == "full"
        kind = "baseline" if title == name else "variant"
        return Task(
            name=title,
            kind=kind,
            source=entry,
            sets=self._sets(name),
            unit="" if full else "subset",
            epochs=self.full_epochs() if full else self.protocol.epochs,
            lr=step_sizes(self.protocol),
            strategy=strategy,
        )

    def _sets(self, name: str) -> tuple[tuple[Tensor, Tensor], ...]:
        labels = self.data.train.labels
        if name == "full":
            return ((self.seen, labels),)
        if name in (
            "random",
            TEACHER,
        ):  # a new draw for every network: its spread is that of random selection
            chosen = [
                self._choose("random", self.seen.flatten(1), net)
                for net in range(self.protocol.nets)
            ]
            if name == TEACHER:
                return tuple(
                    (self.seen[rows], self._teacher_logits(self.seen[rows])) for rows in chosen
                )
        else:
            chosen = [self._choose(name, self.features(), 0)]
        return tuple((self.seen[rows], labels[rows]) for rows in chosen)

    def _choose(self, name: str, features: Tensor, net: int) -> Tensor:
        key = make_key(self.seed, f"evaluate {name}", net)
        return select(name, features, self.data.train.labels, self.ipc, key).to(self.seen.device)

    def features(self) -> Tensor:
        """Return features ``[N, F]`` of the training images, of the first network of the full-data row."""
        if self._features is None:
            student, theta = self.chooser.student, self._first_full_theta()
            chunks = [student.infer(theta, part, to="features") for part in self.seen.split(1024)]
            self._features = torch.cat(chunks)
        return self._features

    def _teacher_logits(self, images: Tensor) -> Tensor:
        """Return the logits ``[N, K]`` of the first full-data network: on the images as they are, like the labels of a set."""
        student, theta = self.chooser.student, self._first_full_theta()
        return torch.cat([student.infer(theta, part) for part in images.split(1024)])

    def _first_full_theta(self) -> Tensor:
        if self._full_theta is not None:
            return self._full_theta
        entry = self._entry("full", "full", self.strategy, self.chooser)
        # trained for its features only, when nobody asked for the row of full data
        alone = f"{entry}-first"
        for name in (entry, alone):
            if (kept := self._kept_theta(name)) is not None:
                return kept
        theta = self.chooser.first_network(self._task("full", "full", entry, self.strategy))
        if self.chooser.model in self.keeps:
            cache.save(alone, {"theta": theta}, {})
        return theta


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
