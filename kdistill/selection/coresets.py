"""Class-balanced selection of real images: random, herding, k-center and k-means.

All classes are handled at once: their features lie in one padded float64 block ``[K, M, F]``,
    centred on the class mean, and
every step is a batched matrix product over it.  In float64, with ties broken towards the first
image, the choice hardly depends on the machine.

Symbols: N images, F features, K classes, M images of the largest class of a block.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdistill.errors import ConfigError, DataError, ShapeError, did_you_mean
from kdistill.keys import make_key, permutation, uniforms

BLOCK_ELEMENTS = (
    2**26
)  # at most this many padded features at a time (512 MB), but never less than one class
KMEANS_ROUNDS = 50  # Lloyd's algorithm stops earlier when no image changes its cluster


@dataclass(frozen=True)
class _Block:
    """Some classes, padded: ``points`` ``[K, M, F]`` centred on each class mean, zero where ``is_padding`` ``[K, M]``."""

    points: Tensor
    is_padding: Tensor
    squares: Tensor  # |x|², [K, M]
    first_class: int


def select(
    name: str,
    features: Tensor,
    labels: Tensor,
    ipc: int,
    key: int,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] = (),
) -> Tensor:
    """Choose ``ipc`` images of every class.

    Args:
        name: ``"random"``; ``"herding"`` (Welling 2009: the running mean of the chosen follows the
            class mean); ``"k_center"`` (farthest-first traversal from the image nearest to the
            class mean); ``"k_means"`` (the images nearest to the centres of k-means within the
            class).  A hyphen does for the underscore.
        features: ``[N, F]``, float; ``random`` looks at its length only.
        labels: ``[N]``, int64, 0..K-1.
        ipc: Images per class.
        key: Of the draws of ``random`` and ``k_means``; the other two draw nothing.
        num_classes: K; None takes the largest label plus one.
        classes: Names for the error message.

    Returns:
        int64 ``[K*ipc]`` row numbers on the device of ``labels``, class-major, without repetition;
        of a class of fewer than ``ipc`` images all are taken in turn until there are ``ipc``.
        Within a class in the order of the choice, so for ``random``, ``herding`` and ``k_center`` a
        smaller ``ipc`` chooses a prefix.

    Raises:
        ConfigError: Unknown name, or ``ipc`` < 1.
        ShapeError: Not ``[N, F]`` and ``[N]`` int64.
        DataError: No class has ``ipc`` images, a class has none, a label is out of range, or
            features are not finite.

    Cost: herding and k-center ``2*N*F*ipc`` flops, k-means up to 50 times twice that (for classes
        of one size), and a float64
    copy of the features of a block of classes.

    References:
        Welling, "Herding dynamical weights to learn", ICML 2009; Sener and Savarese, "Active
        learning for convolutional neural
        networks: a core-set approach", ICLR 2018 (k-center, greedy); Arthur and Vassilvitskii,
            "k-means++", SODA 2007 (seeding).
    """
    method = name.replace("-", "_")
    if method not in SELECTIONS:
        raise ConfigError(
            f"select: expected a way of selecting, got '{name}'; "
            f"{did_you_mean(method, list(SELECTIONS))}"
        )
    if ipc < 1:
        raise ConfigError(f"select: expected at least 1 image per class, got {ipc}; raise ipc")
    if features.ndim != 2 or labels.shape != features.shape[:1] or labels.dtype != torch.int64:
        raise ShapeError(
            f"select: expected features [N, F] and int64 labels [N], got {list(features.shape)} "
            f"and {labels.dtype} "
            f"{list(labels.shape)}; flatten images with flatten(1)"
        )
    order, counts = _filled_up(
        torch.argsort(labels, stable=True), _counts(labels, ipc, num_classes, classes), ipc
    )
    with torch.no_grad():
        chosen = SELECTIONS[method](
            features, order, counts, ipc, key
        )  # [K, ipc], positions within the class
    starts = torch.tensor([0, *counts[:-1]], device=order.device).cumsum(0)
    return order[(starts[:, None] + chosen.to(order.device)).flatten()]


def _counts(labels: Tensor, ipc: int, num_classes: int | None, classes: Sequence[str]) -> list[int]:
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    total = high + 1 if num_classes is None else num_classes
    if low < 0 or high >= total or total < 1:
        raise DataError(
            f"select: expected labels in 0..{total - 1}, got {low}..{high}; number the classes "
            "from 0"
        )
    counts = torch.bincount(labels, minlength=total).tolist()
    for label, count in enumerate(counts):
        if count == 0 or (count < ipc and max(counts) < ipc):
            called = f"class {label} ('{classes[label]}')" if classes else f"class {label}"
            raise DataError(
                f"select: expected at least ipc={ipc} images of {called}, got {count}; lower ipc "
                "or add images"
            )
    return counts


def _filled_up(order: Tensor, counts: list[int], ipc: int) -> tuple[Tensor, list[int]]:
    """Return rows class by class and their counts, with the images of a small class in turn until there are ``ipc``."""
    filled = [
        rows[torch.arange(max(count, ipc), device=rows.device) % count]
        for rows, count in zip(order.split(counts), counts, strict=True)
    ]
    return torch.cat(filled), [max(count, ipc) for count in counts]


def _random(features: Tensor, order: Tensor, counts: list[int], ipc: int, key: int) -> Tensor:
    return torch.stack(
        [
            permutation(make_key(key, "select random", label), count)[:ipc]
            for label, count in enumerate(counts)
        ]
    )


def _herding(features: Tensor, order: Tensor, counts: list[int], ipc: int, key: int) -> Tensor:
    return torch.cat([_herding_block(block, ipc) for block in _blocks(features, order, counts)])


def _herding_block(block: _Block, ipc: int) -> Tensor:
    """Pick i minimising ``|mu - (S + x_i)/(t+1)|²``, S the sum of the t chosen; with mu = 0 that is ``|x_i|² + 2 x_i·S``."""
    taken = block.is_padding.clone()
    total = torch.zeros_like(block.points[:, 0])  # [K, F]
    chosen = []
    for _ in range(ipc):
        score = torch.baddbmm(
            block.squares[:, :, None], block.points, total[:, :, None], alpha=2.0
        ).squeeze(2)
        best = score.masked_fill_(taken, torch.inf).argmin(1)
        taken.scatter_(1, best[:, None], True)
        total += _rows(block.points, best[:, None]).squeeze(1)
        chosen.append(best)
    return torch.stack(chosen, 1)


def _k_center(features: Tensor, order: Tensor, counts: list[int], ipc: int, key: int) -> Tensor:
    return torch.cat([_k_center_block(block, ipc) for block in _blocks(features, order, counts)])


def _k_center_block(block: _Block, ipc: int) -> Tensor:
    best = block.squares.masked_fill(block.is_padding, torch.inf).argmin(1)
    nearest = torch.full_like(block.squares, torch.inf).masked_fill_(block.is_padding, -torch.inf)
    chosen = []
    for _ in range(ipc):
        chosen.append(best)
        nearest = torch.minimum(
            nearest, _sqdist(block, _rows(block.points, best[:, None])).squeeze(2)
        )
        nearest.scatter_(
            1, best[:, None], -torch.inf
        )  # never again, even if all that is left are copies of it
        best = nearest.argmax(1)
    return torch.stack(chosen, 1)


def _k_means(features: Tensor, order: Tensor, counts: list[int], ipc: int, key: int) -> Tensor:
    return torch.cat(
        [_k_means_block(block, ipc, key) for block in _blocks(features, order, counts)]
    )


def _k_means_block(block: _Block, ipc: int, key: int) -> Tensor:
    points = block.points
    centres = _rows(points, _plus_plus(block, ipc, key))  # [K, ipc, F]
    before = None
    for _ in range(KMEANS_ROUNDS):
        cluster = _sqdist(block, centres).argmin(2)  # [K, M]
        if before is not None and torch.equal(cluster, before):
            break
        before = cluster
        member = points.new_zeros((*points.shape[:2], ipc)).scatter_(2, cluster[:, :, None], 1.0)
        member.masked_fill_(block.is_padding[:, :, None], 0.0)
        sizes = member.sum(1)[:, :, None]
        centres = torch.where(
            sizes > 0, member.mT @ points / sizes.clamp(min=1.0), centres
        )  # an empty cluster stays where it is
    far = _sqdist(block, centres).masked_fill_(block.is_padding[:, :, None], torch.inf)
    chosen = []
    for centre in range(ipc):  # one image per centre, no image twice
        best = far[:, :, centre].argmin(1)
        far.scatter_(1, best[:, None, None].expand(-1, 1, ipc), torch.inf)
        chosen.append(best)
    return torch.stack(chosen, 1)


def _plus_plus(block: _Block, ipc: int, key: int) -> Tensor:
    """Return k-means++ seeds ``[K, ipc]``: each next one drawn in proportion to the squared distance to those before it."""
    squares, real = block.squares, (~block.is_padding).double()
    keys = (make_key(key, "select k_means", block.first_class + k) for k in range(len(squares)))
    drawn = torch.from_numpy(np.stack([uniforms(k, ipc) for k in keys])).to(squares.device)
    nearest, weight = torch.full_like(squares, torch.inf), real
    seeds: list[Tensor] = []
    for step in range(ipc):
        ends = weight.cumsum(1)
        seed = torch.searchsorted(ends, drawn[:, step : step + 1] * ends[:, -1:], right=True)
        last = (
            (weight > 0).double().cumsum(1).argmax(1, keepdim=True)
        )  # where rounding has carried the draw past the end
        seeds.append(torch.minimum(seed, last))
        nearest = torch.minimum(
            nearest, _sqdist(block, _rows(block.points, seeds[-1])).squeeze(2).clamp_(min=0.0)
        )
        weight = nearest * real
        weight = torch.where(
            weight.sum(1, keepdim=True) > 0, weight, real
        )  # all that is left are copies of the seeds
    return torch.cat(seeds, 1)


def _sqdist(block: _Block, centres: Tensor) -> Tensor:
    """Return the squared distance ``[K, M, P]`` of every point to ``centres`` ``[K, P, F]`` of its class, up to rounding."""
    near = block.squares[:, :, None] + centres.square().sum(2)[:, None, :]
    return torch.baddbmm(near, block.points, centres.mT, alpha=-2.0)


def _rows(points: Tensor, rows: Tensor) -> Tensor:
    """Return ``points[k, rows[k, p]]`` as ``[K, P, F]``."""
    return points.gather(1, rows[:, :, None].expand(-1, -1, points.shape[2]))


def _blocks(features: Tensor, order: Tensor, counts: list[int]) -> Iterator[_Block]:
    """Yield the classes in order, as many at a time as fit into ``BLOCK_ELEMENTS``."""
    if not torch.isfinite(features).all():
        row = int((~torch.isfinite(features).all(1)).nonzero()[0])
        raise DataError(
            f"select: expected finite features, got NaN or infinity in row {row}; check the "
            "network that made them"
        )
    by_class = order.to(features.device).split(counts)
    width = max(1, features.shape[1])
    first = 0
    while first < len(counts):
        last = first + 1
        while (
            last < len(counts)
            and (last + 1 - first) * max(counts[first : last + 1]) * width <= BLOCK_ELEMENTS
        ):
            last += 1
        points = features.new_zeros(
            (last - first, max(counts[first:last]), features.shape[1]), dtype=torch.float64
        )
        is_padding = torch.ones(points.shape[:2], dtype=torch.bool, device=features.device)
        for k, rows in enumerate(by_class[first:last]):
            own = features[rows].double()
            points[k, : len(rows)] = own - own.mean(0)
            is_padding[k, : len(rows)] = False
        yield _Block(points, is_padding, points.square().sum(2), first)
        first = last


SELECTIONS: dict[str, Callable[[Tensor, Tensor, list[int], int, int], Tensor]] = {
    "random": _random,
    "herding": _herding,
    "k_center": _k_center,
    "k_means": _k_means,
}
