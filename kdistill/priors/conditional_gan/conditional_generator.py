"""The generator of a conditional GAN as a pure function of its tensors.

    noise and label embedding -> linear -> 4x4 -> up -> 3 convolutions -> up -> convolution -> ...
    -> up -> convolution to the image, tanh

Every linear layer and convolution but the last is followed by batch norm and ReLU.  In training the
statistics are those of the batch; a deployed generator has frozen ones, so an image depends on its
own noise and label alone.

The architecture is that of the code of Wang et al., "DiM: Distilling Dataset into Generative
Model", 2023, but for the label: there it overwrites the first entries of the noise, which leaves no
noise at 100 classes; here it is a learned embedding beside the noise.

Symbols: M images, K classes, C channels, S their side.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.errors import ConfigError
from kdistill.keys import generator as keyed
from kdistill.keys import make_key
from kdistill.optim import State
from kdistill.options import COUNT, check_options
from kdistill.priors.base import Noise

EPS = 1e-5  # of batch norm
CHUNK = 100  # images sampled at a time
CONVOLUTIONS = 3  # behind the first upsampling; one behind the others, none behind the last
MAX_SIDE = 1024
LABEL_SCALE = 0.5  # of new embeddings: less than the noise, or the images of a class stay alike
FROZEN = ("mean", "var")  # statistics of a deployed generator


@dataclass(frozen=True, kw_only=True)
class ConditionalGeneratorConfig:
    """Architecture of a generator.

    Attributes:
        classes: Number of classes, K.
        channels: Channels of the images, C.
        size: Side of the images, S: 4 or 7 times a power of two, 8 to 1024.
        width: Channels of every feature map.
        noise: Length of the noise.
        label: Length of the embedding of a label.
    """

    classes: Annotated[int, COUNT]
    channels: Annotated[int, COUNT]
    size: Annotated[int, COUNT]
    width: Annotated[int, COUNT] = 196
    noise: Annotated[int, COUNT] = 100
    label: Annotated[int, COUNT] = 64

    def __post_init__(self) -> None:
        check_options(self, "generator")
        odd = self.size // (self.size & -self.size)
        if odd not in (1, 7) or not 8 <= self.size <= MAX_SIDE:
            raise ConfigError(
                "generator: expected images of 8, 16, 28, 32, 56, 64 or 128 pixels (4 or 7 times a "
                f"power of two), got {self.size}; resize them with size=32"
            )

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers between 4x4 pixels and the image: ``"up"``, ``"up7"`` (to 7x7), ``"conv"``."""
        first = "up7" if self.size % 7 == 0 else "up"
        ups = int(math.log2(self.size // (7 if first == "up7" else 8)))
        middle = ("up", "conv") * (ups - 1) + ("up",) * (ups > 0)
        return (first, *("conv",) * CONVOLUTIONS, *middle)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors that are trained, by name."""
        width, inputs = self.width, self.noise + self.label
        shapes: dict[str, tuple[int, ...]] = {"labels": (self.classes, self.label)}
        shapes["input.weight"] = (16 * width, inputs)
        for name, units in self.norms().items():
            if name != "input":
                kernel = {"up": 4, "up7": 3, "conv": 3}[self.layers[int(name.split(".")[1])]]
                shapes[f"{name}.weight"] = (width, width, kernel, kernel)
            shapes[f"{name}.scale"] = shapes[f"{name}.shift"] = (units,)
        shapes["image.weight"] = (self.channels, width, 3, 3)
        shapes["image.bias"] = (self.channels,)
        return shapes

    def norms(self) -> dict[str, int]:
        """Return the layers that batch norm follows, and the number of their statistics."""
        names = {f"layers.{i}": self.width for i in range(len(self.layers))}
        return {"input": 16 * self.width, **names}

    def new(self, generator: torch.Generator) -> State:
        """Return untrained tensors: weights by PyTorch's default, embeddings normal."""
        tensors: State = {}
        for name, shape in self.shapes().items():
            if name == "labels":
                tensors[name] = LABEL_SCALE * torch.randn(shape, generator=generator)
            elif name.endswith(".weight"):
                bound = 1.0 / math.sqrt(math.prod(shape[1:]))
                tensors[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            else:
                tensors[name] = torch.full(shape, float(name.endswith(".scale")))
        return tensors

    def forward(
        self,
        tensors: Mapping[str, Tensor],
        z: Tensor,
        labels: Tensor,
        statistics: State | None = None,
    ) -> Tensor:
        """Return images ``[M, C, S, S]``, -1 to 1; differentiable twice.

        Args:
            tensors: Tensors shaped like those of ``new``; statistics by name among them
                (``input.mean``, ...) take the place of those of the batch.
            z: Noise ``[M, noise]``.
            labels: Classes, int64 ``[M]``.
            statistics: Where given, means and variances of the batch are written into it, without
                a graph.
        """

        def normed(x: Tensor, name: str) -> Tensor:
            frozen = tensors.get(f"{name}.mean"), tensors.get(f"{name}.var")
            if statistics is not None:
                flat = x.detach().transpose(0, 1).flatten(1)
                statistics[f"{name}.mean"] = flat.mean(1)
                statistics[f"{name}.var"] = flat.var(1, unbiased=False)
            scale, shift = tensors[f"{name}.scale"], tensors[f"{name}.shift"]
            return F.batch_norm(x, *frozen, scale, shift, frozen[0] is None, 0.0, EPS).relu_()

        inputs = torch.cat([z, tensors["labels"][labels]], 1)
        x = normed(F.linear(inputs, tensors["input.weight"]), "input").view(-1, self.width, 4, 4)
        # half the time of the transposed convolutions on a CPU
        x = x.contiguous(memory_format=torch.channels_last)
        for i, kind in enumerate(self.layers):
            weight = tensors[f"layers.{i}.weight"]
            if kind == "conv":
                x = F.conv2d(x, weight, padding=1)
            else:
                x = F.conv_transpose2d(x, weight, stride=2, padding=1)
            x = normed(x, f"layers.{i}")
        return torch.tanh(
            F.conv2d(x, tensors["image.weight"], tensors["image.bias"], padding=1)
        ).contiguous()

    def draw(self, tensors: Mapping[str, Tensor], labels: Tensor, key: int) -> tuple[Tensor, ...]:
        """Return noise ``[M, noise]`` of a whole batch, drawn by ``key``, and its labels."""
        like = tensors["labels"]
        z = torch.randn(len(labels), self.noise, generator=keyed(make_key(key, "z")))
        return z.to(like), labels.to(like.device)

    @torch.no_grad()
    def frozen(self, tensors: State, key: int, *, batch_size: int, batches: int = 50) -> State:
        """Return the tensors with frozen statistics: means of those of batches of all classes.

        The variance is the mean square minus the square of the mean over all of them.

        Cost: ``batches`` forward passes.
        """
        names = [f"{name}.{kind}" for name in self.norms() for kind in FROZEN]
        tensors = {name: x for name, x in tensors.items() if name not in names}
        sums: State = {}
        for batch in range(batches):
            labels = (torch.arange(batch_size) + batch * batch_size) % self.classes
            found: State = {}
            batch_key = make_key(key, "statistics", batch)
            self.forward(tensors, *self.draw(tensors, labels, batch_key), statistics=found)
            for name in self.norms():
                mean, var = found[f"{name}.mean"].double(), found[f"{name}.var"].double()
                for kind, x in (("mean", mean), ("var", var + mean.square())):
                    sums[f"{name}.{kind}"] = sums.get(f"{name}.{kind}", 0.0) + x / batches
        for name in self.norms():
            sums[f"{name}.var"] = sums[f"{name}.var"] - sums[f"{name}.mean"].square()
        return {**tensors, **{name: x.to(tensors["labels"]) for name, x in sums.items()}}


@dataclass(frozen=True, eq=False)
class ConditionalGenerator:
    """A deployed generator: an ``ImageGenerator``.

    Attributes:
        config: Architecture.
        tensors: Its tensors, and the frozen statistics of batch norm.
        critic: Tensors of the critic that it was trained against, for another run that goes on;
            empty where there is none.
    """

    config: ConditionalGeneratorConfig
    tensors: State
    critic: State = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.config.classes

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.config.channels

    @property
    def size(self) -> int:
        """Side of the images."""
        return self.config.size

    def to(self, device: torch.device | str) -> "ConditionalGenerator":
        """Return the generator with its tensors on ``device``."""
        moved = ({n: x.to(device) for n, x in part.items()} for part in (self.tensors, self.critic))
        return ConditionalGenerator(self.config, *moved)

    @torch.no_grad()
    def sample(self, labels: Tensor, key: int) -> Tensor:
        """Return one image per label, ``[M, C, S, S]`` in 0 to 1, on the generator's device.

        Args:
            labels: Classes, int64 ``[M]``.
            key: Key of the noise; image i depends on the key, label i and i alone.

        Raises:
            ConfigError: A label is out of range.
        """
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ConfigError(
                f"sample: expected labels 0 to {self.classes - 1}, got {int(labels.min())} to "
                f"{int(labels.max())}; name classes of this generator"
            )
        like = self.tensors["labels"]
        images = [like.new_empty(0, self.channels, self.size, self.size)]
        for start in range(0, len(labels), CHUNK):
            rows = range(start, min(start + CHUNK, len(labels)))
            z = Noise(key, rows).normal("z", (self.config.noise,), like)
            part = labels[rows.start : rows.stop].to(like.device)
            images.append((self.config.forward(self.tensors, z, part) + 1.0) / 2.0)
        return torch.cat(images)
