"""What the loop asks of a parameterisation of images, and what all rendered ones share.

Symbols: M images; a state is a dictionary of named tensors.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.keys import make_key, normals
from kdistill.optim import State


class Prior(Protocol):
    """A parameterisation of images, as the loop sees it."""

    def render(self, state: State, iteration: int) -> Tensor:
        """Return the normalised images ``[M, C, H, W]``; no graph."""

    def vjp(self, state: State, grad_images: Tensor, iteration: int) -> State:
        """Return the gradient in the prior's tensors, given dL/dimages of the same rendering."""


@dataclass(frozen=True)
class Noise:
    """Standard normal draws for some images, a function of key, image and place alone.

    Attributes:
        key: Key of the rendering.
        rows: Numbers of the images, in the order of the chunk.
    """

    key: int
    rows: range

    def normal(self, place: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return ``[len(rows), *shape]`` like ``like``; ``place`` names who draws."""
        return normals(make_key(self.key, place), self.rows, shape).to(like)


class ImageGenerator(Protocol):
    """A network from which images of a class are drawn."""

    @property
    def classes(self) -> int:
        """Number of classes; 0 for a network without classes."""

    @property
    def channels(self) -> int:
        """Channels of the images."""

    @property
    def size(self) -> int:
        """Side of the images."""

    def sample(self, labels: Tensor, key: int) -> Tensor:
        """Return one image per label, without a graph and in chunks.

        Args:
            labels: Classes, int64 ``[M]``.
            key: Key of the draws; image i depends on the key, label i and i alone.

        Returns:
            ``[M, C, S, S]`` in pixel space, 0 to 1 up to what the network exceeds.
        """


class RenderedPrior(ABC):
    """A prior whose images are rendered in chunks: without a graph, and again with one for the vjp.

    Both renderings of an iteration draw the same noise, so the gradient is that of the images which
    the objective saw; memory is that of one chunk.  A subclass writes ``draw`` with differentiable
    operations and names its tensors.
    """

    chunk: int  # images that have a graph at one time
    key: int  # key of the noise

    @abstractmethod
    def draw(self, state: State, noise: Noise) -> Tensor:
        """Return the normalised images of a chunk, whose rows ``state`` holds; differentiable."""

    @abstractmethod
    def is_per_image(self, name: str) -> bool | None:
        """Say whether a tensor has a row per image or belongs to all; None for a foreign one."""

    def render(self, state: State, iteration: int) -> Tensor:
        """Return the normalised images ``[M, C, H, W]``; no graph."""
        with torch.no_grad():
            return torch.cat(
                [self.draw(part, noise) for part, noise in self.parts(state, iteration)]
            )

    def vjp(self, state: State, grad_images: Tensor, iteration: int) -> State:
        """Return the gradient in the prior's tensors, given ``dL/dimages`` of this iteration.

        Cost: one rendering, and its backward pass; memory of one chunk and of the gradient.
        """
        grads = {
            name: torch.zeros_like(x)
            for name, x in state.items()
            if self.is_per_image(name) is not None
        }
        for part, noise in self.parts(state, iteration):
            leaves = {name: x.detach().requires_grad_() for name, x in part.items()}
            with torch.enable_grad():
                images = self.draw(leaves, noise)
            rows = slice(noise.rows.start, noise.rows.stop)
            parts = torch.autograd.grad(
                images, list(leaves.values()), grad_images[rows], materialize_grads=True
            )
            for name, grad in zip(leaves, parts, strict=True):
                (grads[name][rows] if self.is_per_image(name) else grads[name]).add_(grad)
        return grads

    def parts(self, state: State, iteration: int) -> Iterator[tuple[State, Noise]]:
        """Yield the prior's tensors of every chunk, and its noise in this iteration."""
        if self.chunk < 1:
            raise ConfigError(f"chunk: expected at least 1, got {self.chunk}; raise it")
        key = make_key(self.key, "noise", iteration)
        count = next(len(x) for name, x in state.items() if self.is_per_image(name))
        for start in range(0, count, self.chunk):
            rows = range(start, min(start + self.chunk, count))
            part = {}
            for name, x in state.items():
                per_image = self.is_per_image(name)
                if per_image is not None:
                    part[name] = x[rows.start : rows.stop] if per_image else x
            yield part, Noise(key, rows)
