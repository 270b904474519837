"""What every step of a student on the synthetic images sees: its batch, augmented by parameters that were drawn before.

All that changes from one outer step to the next is in tensors, so that a whole outer step can be
recorded (``cuda_graph``).
Symbols: N steps, M images, B images of a step, S parameter sets of all steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from kdistill.engine.students import Student

Mask = Tensor | Callable[[Tensor, Tensor], Tensor]
Sizes = tuple[tuple[int, ...], tuple[tuple[tuple[int, int], ...], ...] | None]
Draws = tuple[Tensor, Tensor | None, Tensor | None]


@runtime_checkable
class KeyedAugment(Protocol):
    """What ``kdistill.augment.Augment`` offers beyond a call: draw once, apply, and transpose."""

    def parameters(
        self, step: int = 0, *, shape: Any, groups: Tensor | None = None, device: Any = "cpu"
    ) -> Any:
        """Draw; return pairs of tensors (params, index)."""

    def apply(self, images: Tensor, parameters: Any) -> Tensor:
        """Augment with what was drawn."""

    def transpose(self, grad_images: Tensor, parameters: Any) -> Tensor:
        """Pull a gradient back with what was drawn."""


Augmentation = KeyedAugment | Callable[[Tensor, int], Tensor] | None


def draw(
    augment: Augmentation, batches: Sequence[Tensor], first_step: int, images: Tensor
) -> tuple[Draws, Sizes]:
    """Return what all steps need beside images and labels, in three tensors on the device of the images, and how to split them.

    Returns:
        (indices int64 of all steps; params ``[S, 8]`` and index int64 of all augmentations, or
        None), and the sizes of each step.

    Cost: three copies to the device, whatever N; nothing waits for them.
    """
    counts = tuple(len(rows) for rows in batches)
    rows = torch.cat(list(batches)).to(images.device, non_blocking=True)
    if not isinstance(augment, KeyedAugment):
        return (rows, None, None), (counts, None)
    steps = [
        augment.parameters(first_step + i, shape=(count, *images.shape[1:]))
        for i, count in enumerate(counts)
    ]
    sizes = tuple(tuple((len(params), len(index)) for params, index in step) for step in steps)
    pairs = [pair for step in steps for pair in step]
    if not pairs:
        return (rows, None, None), (counts, sizes)
    params, index = (
        torch.cat(tensors).to(images.device, non_blocking=True)
        for tensors in zip(*pairs, strict=True)
    )
    return (rows, params, index), (counts, sizes)


def _tables(
    params: Tensor | None, index: Tensor | None, sizes: Sizes
) -> list[list[tuple[Tensor, Tensor]]] | None:
    """Return the pairs of every step as views."""
    if sizes[1] is None:
        return None
    if params is None or index is None:
        return [[] for _ in sizes[1]]
    flat = [size for step in sizes[1] for size in step]
    pairs = zip(params.split([s for s, _ in flat]), index.split([b for _, b in flat]), strict=True)
    return [[next(pairs) for _ in step] for step in sizes[1]]


@dataclass(frozen=True)
class InnerProblem:
    """The inner problem: what a step of the student sees.

    Attributes:
        student: The network.
        images: The synthetic images.
        labels: Labels of the synthetic images.
        lr: The student's learning rate.
        batches: Indices of every step.
        tables: Parameters of the augmentation of every step; None where it is not keyed.
        augment: The augmentation, or None.
        first_step: Step i is augmented as step ``first_step + i``.
        mask: Of the parameters that are compared.
    """

    student: Student
    images: Tensor
    labels: Tensor
    lr: Tensor
    batches: Sequence[Tensor]
    tables: list[list[tuple[Tensor, Tensor]]] | None
    augment: Augmentation
    first_step: int
    mask: Mask | None

    @classmethod
    def of(cls, draws: Draws, sizes: Sizes, **others: Any) -> "InnerProblem":
        """Return the problem from what ``draw`` returned."""
        return cls(
            batches=draws[0].split(list(sizes[0])), tables=_tables(*draws[1:], sizes), **others
        )

    def augmented(self, x: Tensor, i: int) -> Tensor:
        """Return the images of step i augmented, differentiable in ``x``."""
        if self.tables is not None:
            return self.augment.apply(x, self.tables[i])  # type: ignore[union-attr]
        return x if self.augment is None else self.augment(x, self.first_step + i)  # type: ignore[operator]

    def seen(self, i: int) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return images and labels of step i, and the function that takes a gradient in them back to the plain images."""
        rows = self.batches[i]
        x, y = self.images[rows], self.labels[rows]
        if self.augment is None:
            return x, y, lambda grad: grad
        if isinstance(self.augment, KeyedAugment) and self.tables is not None:
            keyed, drawn = self.augment, self.tables[i]
            return keyed.apply(x, drawn), y, lambda grad: keyed.transpose(grad, drawn)
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            out = self.augmented(leaf, i)
        return out.detach(), y, lambda grad: torch.autograd.grad(out, leaf, grad)[0]

    def mask_of(self, final: Tensor, target: Tensor) -> Tensor | None:
        """Return the mask for these parameters, like ``final``."""
        mask = self.mask(final, target) if callable(self.mask) else self.mask
        return None if mask is None else mask.to(final)
