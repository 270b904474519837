"""Rows of real data beside the small set: subsets of the same size, and all of it.

They are cached, so that the next evaluation on the same data need not train them.  An entry is
named by everything that decides its numbers: data, recipe, seed, code, versions, thread count,
instruction set.  It is one safetensors file in a folder under ``$KDISTILL_CACHE`` that only its
owner can write; a missing or damaged one is trained again.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from kdistill import _native
from kdistill.artifacts.checkpoint import decode_checkpoint, encode_checkpoint
from kdistill.artifacts.conclusions import TEACHER
from kdistill.artifacts.tensors import jsonable
from kdistill.augment import strategy_for
from kdistill.cache import CacheFile, digest_of
from kdistill.data import ImageDataset
from kdistill.engine.convolve import asked_convolution
from kdistill.errors import ConfigError, DataError, did_you_mean
from kdistill.evaluation.protocols import Protocol, learning_rates
from kdistill.evaluation.rows import Row
from kdistill.evaluation.trainer import Task, Trainer
from kdistill.keys import make_key
from kdistill.ops import requested_backend
from kdistill.selection import select

T = TypeVar("T")

BASELINES = ("random", "herding", "k-center", "full")
FEATURE_BATCH = 1024  # images of which features or logits are computed at once
_PACKAGE = Path(__file__).parents[1]
_DECIDES = (
    "engine",
    "ops",
    "backends",
    "evaluation",
    "selection",
    "augment.py",
    "keys.py",
    "transforms.py",
    "data/splits.py",
)


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
            wrong = _implausibility(row, nets, test_counts, has_validation)
            if (row.name, row.model, row.sources) != (title, trainer.model, (entry,)):
                wrong = "the row of another baseline"
            if wrong is not None:
                raise DataError(f"expected what an evaluation measures of {title}, got {wrong}")
            return row

        is_cached = trainer.model in self.cached_models
        if is_cached and (row := _load(entry, checked)) is not None:
            return row
        row, thetas = trainer.row(self._task(name, title, entry, strategy, trainer.model))
        if name == "full" and trainer is self.reference:
            self._full_theta = thetas[0]
        if is_cached:
            _save(entry, {"theta": thetas[0]} if name == "full" else {}, asdict(row))
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
        return entry_name(identity)

    def _task(self, name: str, title: str, entry: str, strategy: str, model: str) -> Task:
        is_full = name == "full"
        return Task(
            name=title,
            kind="baseline" if title == name else "variant",
            source=entry,
            sets=self._sets(name),
            unit="" if is_full else "subset",
            epochs=self.full_epochs() if is_full else self.protocol.epochs,
            lr=learning_rates(self.protocol, model),
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
            if (theta := _load(name, self._checked_theta)) is not None:
                return theta
        task = self._task("full", "full", entry, self.strategy, self.reference.model)
        theta = self.reference.first_network(task)
        if is_cached:
            _save(alone, {"theta": theta}, {})
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


@cache
def code_digest() -> str:
    """Return a digest over the sources and compiled modules that decide the numbers."""
    files = [
        path
        for name in _DECIDES
        for path in ([_PACKAGE / name] if name.endswith(".py") else (_PACKAGE / name).rglob("*.py"))
    ]
    for pattern in ("_cpu*.so", "_cuda.*.so"):
        files += Path(os.environ.get("KDISTILL_NATIVE_DIR") or _PACKAGE).glob(pattern)
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.name}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def entry_name(identity: Mapping[str, Any]) -> str:
    """Return the digest that names the entry of ``identity``, under this code and environment."""
    chosen = {"backend": requested_backend(), "convolution": asked_convolution()}
    full = {**identity, **chosen, "environment": _native.environment(), "code": code_digest()}
    return digest_of(jsonable(full), 32)


def _load(name: str, check: Callable[[dict[str, Tensor], Mapping[str, Any]], T]) -> T | None:
    """Return what ``check`` makes of the tensors and facts of an entry.

    Returns:
        None where there is no entry or, with a warning, none that ``check`` accepts.
    """

    def checked(content: bytes, path: Path) -> T:
        tensors, entry = decode_checkpoint(content, path)
        if entry["entry"] != name:
            raise DataError(f"{path}: expected the baseline that its name says, got another")
        return check(tensors, dict(entry["facts"]))

    return _file(name).read(checked)


def _save(name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write an entry; if that is not possible, the next evaluation trains the baseline again."""
    _file(name).write(encode_checkpoint(tensors, {"entry": name, "facts": facts}))


def _file(name: str) -> CacheFile:
    return CacheFile("baselines", f"{name}.safetensors", "the baseline is trained again")


def _implausibility(
    row: Row, nets: int, test_counts: Sequence[int], has_validation: bool
) -> str | None:
    """Return what of a row cannot have been measured, in words, or None.

    Args:
        row: Row of one evaluation, not merged.
        nets: Networks of the protocol.
        test_counts: Test images of every class, ``[K]``.
        has_validation: Whether images were held out.
    """
    lengths = {
        "accuracies": nets,
        "validation": nets * has_validation,
        "balanced": nets,
        "per_class": len(test_counts),
        "lr": 1,
    }
    if row.best_on_test is not None:
        lengths["best_on_test"] = nets
    for name, count in lengths.items():
        values = getattr(row, name)
        if len(values) != count:
            return f"{name} of {len(values)} numbers"
        if not all(value >= 0.0 and math.isfinite(value) for value in values):
            return f"{name} below 0 or not finite"
        if name != "lr" and not all(value <= 1.0 for value in values):
            return f"{name} above 1"
    counts = (row.epochs, row.images, row.nbytes, row.sets, row.seconds)
    if min(counts) < 0 or not math.isfinite(row.seconds) or not 0 <= row.untrained <= nets:
        return "sizes that nothing has"
    return _confusion_implausibility(row, nets, test_counts) if row.confusion else None


def _confusion_implausibility(row: Row, nets: int, test_counts: Sequence[int]) -> str | None:
    lengths = [len(row.confusion), *map(len, row.confusion)]
    if set(lengths) != {len(test_counts)} or min(chain(*row.confusion)) < 0:
        return "a confusion matrix of other classes"
    if list(map(sum, row.confusion)) != [nets * images for images in test_counts]:
        return "a confusion matrix of other test images"
    right = sum(line[number] for number, line in enumerate(row.confusion))
    if not math.isclose(right / sum(test_counts), sum(row.accuracies), abs_tol=1e-6):
        return "accuracies that disagree with the confusion matrix"
    return None
