"""The inner problem of trajectory matching: training steps on the synthetic images.

All that changes from one outer step to the next is in tensors, so that a whole outer step can be
recorded (``cuda_graph``).

Symbols: N steps, M images, B images of a step, S parameter sets of all steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdistill.augment import Augment, Parameters
from kdistill.engine.students import Student

Mask = Tensor | Callable[[Tensor, Tensor], Tensor]
Augmentation = Callable[[Tensor, int], Tensor] | None  # an ``Augment``, or any other function
# indices of all steps; params [S, 8] and index of all augmentations, or None
Draws = tuple[Tensor, Tensor | None, Tensor | None]
# images of every step; rows of params and index of every augmentation of every step, or None
Sizes = tuple[tuple[int, ...], tuple[tuple[tuple[int, int], ...], ...] | None]


def draw(
    augment: Augmentation, batches: Sequence[Tensor], first_step: int, images: Tensor
) -> tuple[Draws, Sizes]:
    """Return the draws of all steps in three tensors on the images' device, and how to split them.

    Cost: three copies to the device, whatever N; nothing waits for them.
    """
    counts = tuple(len(rows) for rows in batches)
    rows = torch.cat(list(batches)).to(images.device, non_blocking=True)
    if not isinstance(augment, Augment):
        return (rows, None, None), (counts, None)
    steps = [
        augment.parameters(first_step + i, shape=(count, *images.shape[1:]))
        for i, count in enumerate(counts)
    ]
    sizes = tuple(tuple((len(params), len(index)) for params, index in step) for step in steps)
    columns = zip(*(pair for step in steps for pair in step), strict=True)
    params, index = [torch.cat(c).to(images.device, non_blocking=True) for c in columns] or (
        None,
    ) * 2
    return (rows, params, index), (counts, sizes)


@dataclass(frozen=True)
class InnerProblem:
    """The student's training steps on the synthetic images.

    Attributes:
        student: The network.
        images: The synthetic images.
        labels: Labels of the synthetic images.
        lr: The student's learning rate.
        batches: Indices of every step.
        parameters: Parameters of the augmentation of every step; None where it is no ``Augment``.
        augment: The augmentation, or None.
        first_step: Step i is augmented as step ``first_step + i``.
        mask: Mask of the parameters that are compared.
    """

    student: Student
    images: Tensor
    labels: Tensor
    lr: Tensor
    batches: Sequence[Tensor]
    parameters: list[Parameters] | None
    augment: Augmentation
    first_step: int
    mask: Mask | None

    @classmethod
    def of(cls, draws: Draws, sizes: Sizes, **others: Any) -> "InnerProblem":
        """Return the problem from the result of ``draw``."""
        batches, parameters = draws[0].split(list(sizes[0])), _parameters(*draws[1:], sizes[1])
        return cls(batches=batches, parameters=parameters, **others)

    def augmented(self, x: Tensor, i: int) -> Tensor:
        """Return the images of step i augmented, differentiable in ``x``."""
        if self.parameters is not None:
            return self.augment.apply(x, self.parameters[i])  # type: ignore[union-attr]
        return x if self.augment is None else self.augment(x, self.first_step + i)

    def batch(self, i: int) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return augmented images and labels of step i, and the vjp of the augmentation."""
        rows = self.batches[i]
        x, y = self.images[rows], self.labels[rows]
        if self.augment is None:
            return x, y, lambda grad: grad
        if self.parameters is not None:
            transpose, drawn = self.augment.transpose, self.parameters[i]  # type: ignore[attr-defined]
            return self.augmented(x, i), y, lambda grad: transpose(grad, drawn)
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            out = self.augmented(leaf, i)
        return out.detach(), y, lambda grad: torch.autograd.grad(out, leaf, grad)[0]

    def mask_of(self, final: Tensor, target: Tensor) -> Tensor | None:
        """Return the mask for these parameters, like ``final``."""
        mask = self.mask(final, target) if callable(self.mask) else self.mask
        return None if mask is None else mask.to(final)


def _parameters(params: Tensor | None, index: Tensor | None, sizes: Any) -> list[Parameters] | None:
    """Return the parameters of every step as views."""
    if sizes is None or params is None or index is None:
        return None if sizes is None else [[] for _ in sizes]
    rows, counts = zip(*(size for step in sizes for size in step), strict=True)
    pairs = zip(params.split(rows), index.split(counts), strict=True)
    return [[next(pairs) for _ in step] for step in sizes]
