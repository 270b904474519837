"""Class-balanced selection of real images: random, herding, k-center, k-means, and correct ones.

The greedy selections handle all classes at once: their features lie in one padded float64 block
``[K, M, F]``, centred on the class mean, and every step is a batched matrix product over it.  In
float64, with ties broken towards the first image, the choice hardly depends on the machine.  They
are our own as no library has them batched over classes and deterministic.

Symbols: N images, F features, K classes, M images of the largest class of a block.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdistill.errors import ConfigError, DataError, ShapeError
from kdistill.keys import make_key, permutation, uniforms
from kdistill.options import Words, check_value
from kdistill.selection.difficulty_scores import class_name

# most padded features at a time (512 MB), but never less than those of one class
BLOCK_ELEMENTS = 2**26
KMEANS_ROUNDS = 50  # Lloyd's algorithm stops earlier when no image changes its cluster


@dataclass(frozen=True)
class _Block:
    """Some classes, padded.

    Attributes:
        points: ``[K, M, F]``, centred on each class mean, zero where ``is_padding``.
        is_padding: ``[K, M]``.
        squares: Squared norms of the points, ``[K, M]``.
        first_class: Number of the first class.
    """

    points: Tensor
    is_padding: Tensor
    squares: Tensor
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
        features: ``[N, F]``, float; ``random`` uses its length only.
        labels: ``[N]``, int64, 0..K-1.
        ipc: Images per class.
        key: Key of the draws of ``random`` and ``k_means``; the other two draw nothing.
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
        of one size), and a float64 copy of the features of a block of classes.

    References:
        Welling, "Herding dynamical weights to learn", ICML 2009; Sener and Savarese, "Active
        learning for convolutional neural networks: a core-set approach", ICLR 2018 (k-center,
        greedy); Arthur and Vassilvitskii, "k-means++", SODA 2007 (seeding).
    """
    method = name.replace("-", "_")
    check_value("select", method, Words(tuple(SELECTIONS)))
    if ipc < 1:
        raise ConfigError(f"select: expected at least 1 image per class, got {ipc}; raise ipc")
    if features.ndim != 2 or labels.shape != features.shape[:1] or labels.dtype != torch.int64:
        raise ShapeError(
            f"select: expected features [N, F] and int64 labels [N], got {list(features.shape)} "
            f"and {labels.dtype} {list(labels.shape)}; flatten images with flatten(1)"
        )
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    total = high + 1 if num_classes is None else num_classes
    if low < 0 or high >= total or total < 1:
        raise DataError(
            f"select: expected labels in 0..{total - 1}, got {low}..{high}; number the classes "
            "from 0"
        )
    by_class = torch.argsort(labels, stable=True)
    pools = by_class.split(torch.bincount(labels, minlength=total).tolist())
    filled = _filled_up(pools, ipc, classes)
    with torch.no_grad():
        chosen = SELECTIONS[method](features, filled, ipc, key)  # positions within the class
    return torch.cat([rows[at] for rows, at in zip(filled, chosen.to(labels.device), strict=True)])


def select_correct(
    predictions: Callable[[int], Tensor],
    networks: int,
    labels: Tensor,
    ipc: int,
    key: int,
    *,
    num_classes: int,
    classes: Sequence[str] = (),
) -> Tensor:
    """Choose ``ipc`` images of every class that a network classifies correctly.

    The images of a class are shuffled; those that network 0 gets right come first, then those that
    network 1 gets right and network 0 does not, and so on.  Images that no network gets right come
    last, so that a class is full in any case.

    Args:
        predictions: Network number to the classes int64 ``[N]`` that it gives all images; called
            only as far as it is needed.
        networks: Number of networks.
        labels: int64 ``[N]``.
        ipc: Images per class.
        key: Key of the shuffling.
        num_classes: Number of classes, K.
        classes: Names for the error message.

    Returns:
        int64 ``[K*ipc]`` row numbers, class-major; the images of a class of fewer than ``ipc`` are
        taken in turn.

    Raises:
        DataError: No class has ``ipc`` images, or a class has none.

    Cost: a pass over the data for each network that is asked.

    References: ``samples_predicted_correctly`` in the released code of Guo et al., "Towards
        lossless dataset distillation via difficulty-aligned trajectory matching", ICLR 2024.
    """
    device, labels = labels.device, labels.cpu()
    shuffled = permutation(make_key(key, "select correct"), len(labels))
    pools = [shuffled[labels[shuffled] == label] for label in range(num_classes)]
    pools = _filled_up(pools, ipc, classes)
    chosen: list[list[Tensor]] = [[] for _ in pools]
    missing = [ipc] * num_classes
    for network in range(networks):
        if not any(missing):
            break
        is_correct = predictions(network).cpu() == labels
        for label, pool in enumerate(pools):
            right = is_correct[pool]
            chosen[label].append(pool[right][: missing[label]])
            missing[label] -= len(chosen[label][-1])
            pools[label] = pool[~right]
    rest = [pool[:count] for pool, count in zip(pools, missing, strict=True)]
    full = [torch.cat([*own, last]) for own, last in zip(chosen, rest, strict=True)]
    return torch.cat(full).to(device)


def _filled_up(pools: Sequence[Tensor], ipc: int, classes: Sequence[str]) -> list[Tensor]:
    """Return the rows of every class, those of a small class in turn until there are ``ipc``.

    Raises:
        DataError: A class has no image, or none has ``ipc``.
    """
    largest = max(map(len, pools))
    for label, pool in enumerate(pools):
        if len(pool) == 0 or (len(pool) < ipc and largest < ipc):
            raise DataError(
                f"select: expected at least ipc={ipc} images of {class_name(label, classes)}, got "
                f"{len(pool)}; lower ipc or add images"
            )
    return [
        pool[torch.arange(max(len(pool), ipc), device=pool.device) % len(pool)] for pool in pools
    ]


def _random(features: Tensor, pools: list[Tensor], ipc: int, key: int) -> Tensor:
    return torch.stack(
        [
            permutation(make_key(key, "select random", label), len(pool))[:ipc]
            for label, pool in enumerate(pools)
        ]
    )


def _by_block(
    choose: Callable[[_Block, int, int], Tensor],
) -> Callable[[Tensor, list[Tensor], int, int], Tensor]:
    """Return ``choose``, which handles a block of classes, as a selection from all of them."""
    return lambda features, pools, ipc, key: torch.cat(
        [choose(block, ipc, key) for block in _blocks(features, pools)]
    )


def _herding(block: _Block, ipc: int, key: int) -> Tensor:
    """Choose ``i`` that minimises ``|mu - (S + x_i)/(t+1)|²``, S the sum of the t chosen.

    With mu = 0 that is ``|x_i|² + 2 x_i·S`` up to a constant.
    """
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


def _k_center(block: _Block, ipc: int, key: int) -> Tensor:
    best = block.squares.masked_fill(block.is_padding, torch.inf).argmin(1)
    nearest = torch.full_like(block.squares, torch.inf).masked_fill_(block.is_padding, -torch.inf)
    chosen = []
    for _ in range(ipc):
        chosen.append(best)
        distance = _sqdist(block, _rows(block.points, best[:, None])).squeeze(2)
        # minus infinity: never again, even if all that is left are copies of it
        nearest = torch.minimum(nearest, distance).scatter_(1, best[:, None], -torch.inf)
        best = nearest.argmax(1)
    return torch.stack(chosen, 1)


def _k_means(block: _Block, ipc: int, key: int) -> Tensor:
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
        means = member.mT @ points / sizes.clamp(min=1.0)
        centres = torch.where(sizes > 0, means, centres)  # an empty cluster stays where it is
    far = _sqdist(block, centres).masked_fill_(block.is_padding[:, :, None], torch.inf)
    chosen = []
    for centre in range(ipc):  # one image per centre, no image twice
        best = far[:, :, centre].argmin(1)
        far.scatter_(1, best[:, None, None].expand(-1, 1, ipc), torch.inf)
        chosen.append(best)
    return torch.stack(chosen, 1)


def _plus_plus(block: _Block, ipc: int, key: int) -> Tensor:
    """Return k-means++ seeds ``[K, ipc]``.

    Each next one is drawn in proportion to the squared distance to those before it.
    """
    squares, real = block.squares, (~block.is_padding).double()
    keys = (make_key(key, "select k_means", block.first_class + k) for k in range(len(squares)))
    drawn = torch.from_numpy(np.stack([uniforms(k, ipc) for k in keys])).to(squares.device)
    nearest, weight = torch.full_like(squares, torch.inf), real
    seeds: list[Tensor] = []
    for step in range(ipc):
        ends = weight.cumsum(1)
        seed = torch.searchsorted(ends, drawn[:, step : step + 1] * ends[:, -1:], right=True)
        # where rounding has carried the draw past the end
        last = (weight > 0).double().cumsum(1).argmax(1, keepdim=True)
        seeds.append(torch.minimum(seed, last))
        distance = _sqdist(block, _rows(block.points, seeds[-1])).squeeze(2)
        nearest = torch.minimum(nearest, distance.clamp_(min=0.0))
        weight = nearest * real
        # no weight: all that is left are copies of the seeds
        weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, real)
    return torch.cat(seeds, 1)


def _sqdist(block: _Block, centres: Tensor) -> Tensor:
    """Return squared distances ``[K, M, P]`` of points to ``centres`` ``[K, P, F]`` of their class.

    They are right up to rounding, and may be a little below 0.
    """
    near = block.squares[:, :, None] + centres.square().sum(2)[:, None, :]
    return torch.baddbmm(near, block.points, centres.mT, alpha=-2.0)


def _rows(points: Tensor, rows: Tensor) -> Tensor:
    """Return ``points[k, rows[k, p]]`` as ``[K, P, F]``."""
    return points.gather(1, rows[:, :, None].expand(-1, -1, points.shape[2]))


def _blocks(features: Tensor, pools: list[Tensor]) -> Iterator[_Block]:
    """Yield the classes in order, as many at a time as fit into ``BLOCK_ELEMENTS``."""
    if not torch.isfinite(features).all():
        row = int((~torch.isfinite(features).all(1)).nonzero()[0])
        raise DataError(
            f"select: expected finite features, got NaN or infinity in row {row}; check the "
            "network that made them"
        )
    width = max(1, features.shape[1])
    first = 0
    while first < len(pools):
        last = first + 1
        while (
            last < len(pools)
            and (last + 1 - first) * max(map(len, pools[first : last + 1])) * width
            <= BLOCK_ELEMENTS
        ):
            last += 1
        block = pools[first:last]
        shape = len(block), max(map(len, block)), features.shape[1]
        points = features.new_zeros(shape, dtype=torch.float64)
        is_padding = torch.ones(shape[:2], dtype=torch.bool, device=features.device)
        for k, rows in enumerate(block):
            own = features[rows.to(features.device)].double()
            points[k, : len(rows)] = own - own.mean(0)
            is_padding[k, : len(rows)] = False
        yield _Block(points, is_padding, points.square().sum(2), first)
        first = last


SELECTIONS: dict[str, Callable[[Tensor, list[Tensor], int, int], Tensor]] = {
    "random": _random,
    "herding": _by_block(_herding),
    "k_center": _by_block(_k_center),
    "k_means": _by_block(_k_means),
}
