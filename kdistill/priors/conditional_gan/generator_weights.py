"""The weights of a conditional generator as the state: images are drawn afresh every iteration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.keys import make_key
from kdistill.optim import State
from kdistill.priors.conditional_gan.conditional_generator import ConditionalGeneratorConfig
from kdistill.transforms import Transform


@dataclass(frozen=True)
class GeneratorWeightsPrior:
    """A prior whose tensors are the weights of a generator in training.

    The noise of an iteration is keyed by it, so a rendering and its vjp see the same images.  A
    chunk of images is a batch of its own for batch norm: its statistics are those of its images, in
    the rendering and in the vjp alike, and the gradient is exactly that of the images rendered.
    A chunk takes every k-th image, so it holds all classes where labels are class-major.  With at
    most ``chunk`` images there is one batch, as published.

    Attributes:
        config: Architecture of the generator.
        labels: Returns the labels of an iteration's images, int64 ``[M]``.
        transform: Normalisation of the data.
        key: Key of the noise.
        chunk: Most images that have a graph at one time, 2 or more.
    """

    config: ConditionalGeneratorConfig
    labels: Callable[[int], Tensor]
    transform: Transform
    key: int
    chunk: int = 128
    prefix: ClassVar[str] = "generator."

    def __post_init__(self) -> None:
        if self.chunk < 2:
            raise ConfigError(
                f"chunk: expected at least 2 images for a batch's statistics, got {self.chunk}; "
                "raise it"
            )

    def state(self, tensors: State) -> State:
        """Return the prior's state from the generator's tensors."""
        return {self.prefix + name: tensors[name] for name in self.config.shapes()}

    def tensors(self, state: State) -> State:
        """Return the generator's tensors from a state."""
        return {name: state[self.prefix + name] for name in self.config.shapes()}

    def render(self, state: State, iteration: int) -> Tensor:
        """Return the normalised images ``[M, C, S, S]`` of an iteration; no graph."""
        tensors = self.tensors(state)
        z, labels = self._draws(tensors, iteration)
        shape = (len(labels), self.config.channels, self.config.size, self.config.size)
        images = z.new_empty(shape)
        with torch.no_grad():
            for rows in self._chunks(len(labels)):
                images[rows] = self._images(tensors, z[rows], labels[rows])
        return images

    def vjp(self, state: State, grad_images: Tensor, iteration: int) -> State:
        """Return the gradient in the weights, given ``dL/dimages`` of the same iteration.

        Cost: one pass forward and backward; memory of one chunk and of the gradient.
        """
        leaves = {n: x.detach().requires_grad_() for n, x in self.tensors(state).items()}
        z, labels = self._draws(leaves, iteration)
        sums: State = {}
        for rows in self._chunks(len(labels)):
            with torch.enable_grad():
                images = self._images(leaves, z[rows], labels[rows])
            grads = torch.autograd.grad(images, list(leaves.values()), grad_images[rows])
            for name, grad in zip(leaves, grads, strict=True):
                name = self.prefix + name
                sums[name] = grad if name not in sums else sums[name] + grad
        return sums

    def _draws(self, tensors: State, iteration: int) -> tuple[Tensor, ...]:
        key = make_key(self.key, "noise", iteration)
        return self.config.draw(tensors, self.labels(iteration), key)

    def _chunks(self, count: int) -> list[slice]:
        # a batch of one has no statistics
        num_chunks = min(-(-count // self.chunk), count // 2)
        return [slice(first, None, num_chunks) for first in range(num_chunks)]

    def _images(self, tensors: State, z: Tensor, labels: Tensor) -> Tensor:
        return self.transform.apply((self.config.forward(tensors, z, labels) + 1.0) / 2.0)
