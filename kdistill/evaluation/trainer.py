"""``Trainer``: trains fresh networks on one set and tests them, which makes one row of a table.

Network ``i`` of every row has the same key, so all rows start from the same weights and see the
same sequence of augmentations: differences between rows are differences between sets.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from kdistill.augment import Augment
from kdistill.cutmix import CutMix
from kdistill.data import Split
from kdistill.engine.student_training import accuracy, confusion, train
from kdistill.engine.students import Student
from kdistill.errors import ConfigError, NonFiniteError
from kdistill.evaluation.protocols import Protocol
from kdistill.evaluation.rows import Row
from kdistill.keys import make_key

CONFUSION_CLASSES = 50  # beyond, the counts of every pair of classes would fill the record
TRAINED_IMAGES = 1024  # on which a network shows that it has trained


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one row trains on.

    Attributes:
        name: Name of the row.
        kind: Kind of the row.
        source: Digest of what decides the numbers of the row.
        sets: Normalised images ``[N, C, H, W]`` with int64 labels ``[N]`` or float label logits
            ``[N, K]``; one pair for all networks, or one per network.
        unit: What the row calls its sets.
        epochs: Passes over a set.
        lr: Learning rates; of several the one with the best validation accuracy of one network.
        strategy: Augmentation.
        fresh: ``(network, epoch) -> images``: other images in every epoch, normalised and in the
            order of the labels of the first set, whose images then are examples of them; None
            trains on ``sets``.
        fresh_nbytes: Bytes of the generator behind ``fresh``.
    """

    name: str
    kind: str
    source: str
    sets: tuple[tuple[Tensor, Tensor], ...]
    unit: str
    epochs: int
    lr: tuple[float, ...]
    strategy: str
    fresh: Callable[[int, int], Tensor] | None = None
    fresh_nbytes: int = 0


@dataclass
class MeteredDraws:
    """``draw``, with the number of images that it has drawn and the seconds that it took."""

    draw: Callable[[int, int], Tensor]
    images: int = 0
    seconds: float = 0.0

    def __call__(self, net: int, epoch: int) -> Tensor:
        """Return the images that network ``net`` is trained on in an epoch."""
        began = time.monotonic()
        images = self.draw(net, epoch)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)  # or the seconds would be those of the launch
        self.images += len(images)
        self.seconds += time.monotonic() - began
        return images


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Networks of one kind under one protocol.

    Attributes:
        student: The network.
        model: Name of the network in rows.
        protocol: The recipe.
        seed: Seed of the evaluation.
        validation: Held out training images, normalised.
        test: Test images, normalised.
        progress: Called with one line about what is being done.
    """

    student: Student
    model: str
    protocol: Protocol
    seed: int
    validation: Split
    test: Split
    progress: Callable[[str], None] = field(default=lambda line: None)

    def row(self, task: Task) -> tuple[Row, Tensor]:
        """Train and test ``protocol.nets`` networks.

        Returns:
            The row, and the parameters ``[nets, P]``.

        Raises:
            NonFiniteError: The loss of a network stopped being finite.
            ConfigError: ``lr="auto"`` without validation images.

        Cost: ``nets × epochs`` passes over the set, one over the test and validation images per
            network; ``lr="auto"`` adds one network per candidate.
        """
        began = time.monotonic()
        draws = None if task.fresh is None else MeteredDraws(task.fresh)
        task = replace(task, fresh=draws)
        lr = self._choose_lr(task)
        thetas, best = [], []
        for net in range(self.protocol.nets):
            self.progress(f"{task.name} ({self.model}): network {net + 1} of {self.protocol.nets}")
            try:
                theta, highest = self._network(task, net, lr)
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"evaluate: expected a finite loss of {self.model} on '{task.name}', got none "
                    f"at lr {lr:g} ({error}); choose the learning rate on validation images with "
                    "lr='auto'"
                ) from error
            thetas.append(theta)
            best.append(highest)
        stacked = torch.stack(thetas)
        images, labels = task.sets[0]
        counts = confusion(self.student, stacked, self.test.images, self.test.labels).cpu()
        right, tested = counts.diagonal(dim1=-2, dim2=-1).double(), counts.sum(-1)  # [nets, K]
        recognised = right / tested.clamp(min=1)
        has_confusion = task.kind != "variant" and len(counts[0]) <= CONFUSION_CLASSES
        row = Row(
            name=task.name,
            model=self.model,
            kind=task.kind,
            accuracies=tuple((right.sum(-1) / len(self.test)).tolist()),
            validation=self._accuracies(stacked, self.validation),
            best_on_test=tuple(best) if self.protocol.best_on_test else None,
            lr=(lr,),
            epochs=task.epochs,
            images=len(images),
            nbytes=task.fresh_nbytes or images.nbytes + labels.nbytes,
            seconds=time.monotonic() - began,
            unit=task.unit,
            sets=len(task.sets),
            sources=(task.source,),
            soft=labels.is_floating_point(),
            untrained=sum(
                self._is_untrained(theta, *task.sets[net % len(task.sets)])
                for net, theta in enumerate(thetas)
            ),
            balanced=tuple((recognised.sum(-1) / (tested > 0).sum(-1)).tolist()),
            per_class=tuple(recognised.mean(0).tolist()),
            confusion=tuple(map(tuple, counts.sum(0).tolist())) if has_confusion else (),
            drawn=0 if draws is None else draws.images,
            drawing_seconds=0.0 if draws is None else draws.seconds,
        )
        return row, stacked

    def first_network(self, task: Task) -> Tensor:
        """Return the parameters ``[P]`` of the first network of ``row(task)``, trained alone."""
        self.progress(f"{task.name} ({self.model}): one network, for its features or labels")
        return self._network(task, 0, self._choose_lr(task))[0]

    def _choose_lr(self, task: Task) -> float:
        if len(task.lr) == 1:
            return task.lr[0]
        if not len(self.validation):
            raise ConfigError(
                "evaluate: expected validation images for lr='auto', got none; fix the protocol's "
                "lr"
            )
        scores = {}
        for lr in task.lr:
            self.progress(f"{task.name} ({self.model}): trying lr {lr:g}")
            try:
                theta, _ = self._network(task, 0, lr)
            except NonFiniteError:
                continue
            scores[lr] = self._accuracies(theta[None], self.validation)[0]
        if not scores:
            raise NonFiniteError(
                f"evaluate: expected a finite loss on '{task.name}', got none at lr {task.lr}; "
                "name smaller lr_candidates"
            )
        return max(scores, key=lambda lr: (scores[lr], -lr))

    def _network(self, task: Task, net: int, lr: float) -> tuple[Tensor, float]:
        """Return the parameters ``[P]`` of one network, and its best test accuracy if asked for."""
        images, labels = task.sets[net % len(task.sets)]
        recipe, augment, highest = self.protocol, None, 0.0
        if task.strategy != "none":
            key = make_key(self.seed, f"evaluate {self.model} augment", net)
            corners = recipe.align_corners
            augment = Augment(task.strategy, siamese=False, key=key, align_corners=corners)
        mix = None
        if recipe.cutmix:
            key = make_key(self.seed, f"evaluate {self.model} cutmix", net)
            mix = CutMix(recipe.cutmix, self.student.classes, key)

        def test(epochs: int, thetas: Tensor) -> None:
            nonlocal highest
            if epochs % recipe.test_every == 0 or epochs == task.epochs:
                highest = max(highest, self._accuracies(thetas, self.test)[0])

        thetas = train(
            self.student,
            images,
            labels,
            epochs=task.epochs,
            lr=lr,
            key=make_key(self.seed, f"evaluate {self.model}", net),
            batch_size=recipe.batch_size,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            schedule=recipe.schedule,
            optimizer=recipe.optimizer,
            ema_decay=recipe.ema_decay,
            augment=augment,
            mix=mix,
            nets=1,
            images_of=None if task.fresh is None else partial(task.fresh, net),
            on_epoch=test if recipe.best_on_test else None,
        )
        return thetas[0], highest

    def _is_untrained(self, theta: Tensor, images: Tensor, labels: Tensor) -> bool:
        """Return whether a network is no better than chance on (1024 of) its training images."""
        hard = labels.argmax(1) if labels.is_floating_point() else labels
        count = min(len(hard), TRAINED_IMAGES)
        rows = torch.linspace(0, len(hard) - 1, count, device=hard.device).round().long()
        hard = hard[rows]
        # accuracy of a network that always says the commonest class
        chance = float(torch.bincount(hard).max()) / len(hard)
        noise = 2.0 * math.sqrt(chance * (1.0 - chance) / len(hard))
        return float(accuracy(self.student, theta, images[rows], hard)) <= chance + noise

    def _accuracies(self, thetas: Tensor, split: Split) -> tuple[float, ...]:
        if not len(split):
            return ()
        return tuple(accuracy(self.student, thetas, split.images, split.labels).tolist())
