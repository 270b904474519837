"""The class-relevant feature distance of a run, with its networks and statistics in the cache."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from kdistill.artifacts.checkpoint import decode_checkpoint, encode_checkpoint
from kdistill.cache import CacheFile, digest_of
from kdistill.data import ImageDataset
from kdistill.engine import train
from kdistill.engine.relevance import LAYERS
from kdistill.engine.students import Student
from kdistill.keys import generator, make_key
from kdistill.methods.base import MethodConfig
from kdistill.objectives.class_relevance import (
    ClassRelevantDistance,
    class_relevant_distance,
    restored_distance,
)
from kdistill.options import COUNT, POSITIVE, Words
from kdistill.status import note

# larger statistics are not written: 5 networks of width 128 at 128 px have half a gigabyte
LARGEST_NBYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class DistanceConfig(MethodConfig):
    """Options of methods that measure the distance, beside those that every method has.

    Attributes:
        nets: Networks of the distance: ``"trained"`` on the real images for ``net_epochs``, or
            ``"random"``.
        num_nets: Number of networks of the distance.
        net_epochs: Epochs of their training on the real images.
        net_lr: Learning rate of their training.
        layers: Feature maps of the distance: those of ``"all"`` blocks, or of the ``"last"`` alone.
        weighting: Weights of the feature maps in the distance: class activation maps (``"cam"``) or
            ``"none"``.
    """

    nets: Literal["trained", "random"] = "trained"
    num_nets: Annotated[int, COUNT] = 5
    net_epochs: Annotated[int, COUNT] = 3
    net_lr: Annotated[float, POSITIVE] = 0.01
    layers: Annotated[str, Words(tuple(LAYERS))] = "all"
    weighting: Literal["cam", "none"] = "cam"


@dataclass(frozen=True, eq=False)
class CachedDistance:
    """The distance of a run, made at the first call.

    Runs with equal data, networks and seed share it in ``$KDISTILL_CACHE``.

    Attributes:
        config: Options of the run.
        data: Its real images.
        labels: Labels of the synthetic images.
        seed: Seed of the run.
    """

    config: DistanceConfig
    data: ImageDataset
    labels: Tensor
    seed: int

    def __call__(self, images: Tensor) -> float:
        """Return the distance of normalised images."""
        return float(self.distance(images, self.labels))

    @cached_property
    def distance(self) -> ClassRelevantDistance:
        """The distance to the run's real images, read from the cache or made."""
        config, student = self.config, self.config.network(self.data)
        real = self.data.transform.apply(self.data.train.images)

        def restored(content: bytes, path: Path) -> ClassRelevantDistance:
            tensors = decode_checkpoint(content, path)[0]
            return restored_distance(student, real, config.layers, tensors)

        file = self._file(student)
        if (distance := file.read(restored)) is not None:
            return distance
        note(
            f"distance: {config.num_nets} networks, {config.nets}, and class means of {len(real)} "
            "images"
        )
        distance = class_relevant_distance(
            student,
            self._thetas(student, real),
            real,
            self.data.train.labels,
            layers=config.layers,
            weighting=config.weighting,
        )
        tensors = distance.tensors()
        if sum(x.nbytes for x in tensors.values()) <= LARGEST_NBYTES:
            file.write(encode_checkpoint(tensors, {}))
        return distance

    def _thetas(self, student: Student, real: Tensor) -> Tensor:
        config, key = self.config, make_key(self.seed, "distance")
        if config.nets == "trained":
            return train(
                student,
                real,
                self.data.train.labels,
                epochs=config.net_epochs,
                lr=config.net_lr,
                key=key,
                nets=config.num_nets,
                schedule="constant",
            )
        nets = [
            student.init(generator(make_key(key, "init", net))) for net in range(config.num_nets)
        ]
        return torch.stack(nets).to(real)

    def _file(self, student: Student) -> CacheFile:
        config = self.config
        names = ["nets", "num_nets", "layers", "weighting"] + ["net_epochs", "net_lr"] * (
            config.nets == "trained"
        )
        network = f"{student!r}, width {config.width}, depth {config.depth}, norm {config.norm}"
        identity = {name: getattr(config, name) for name in names}
        identity |= {"training": self.data.training_digest(), "student": network, "seed": self.seed}
        name = f"{self.data.name}-{digest_of(identity)}.safetensors"
        return CacheFile("distances", name, "the distance is made again")
