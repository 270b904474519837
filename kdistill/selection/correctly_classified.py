"""First images that trained networks classify correctly (DATM's ``samples_predicted_correctly``).

Source: the released code of Guo et al., Towards Lossless Dataset Distillation via
    Difficulty-Aligned Trajectory Matching, ICLR
2024.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdistill.errors import DataError
from kdistill.keys import make_key, permutation


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
        networks: How many there are.
        labels: int64 ``[N]``.
        ipc: Images per class.
        key: Of the shuffling.
        num_classes: K.
        classes: Names for the error message.

    Returns:
        int64 ``[K*ipc]`` row numbers, class-major; the images of a class of fewer than ``ipc`` are
        taken in turn.

    Raises:
        DataError: No class has ``ipc`` images, or a class has none.

    Cost: a pass over the data for each network that is asked.
    """
    device, labels = labels.device, labels.cpu()
    shuffled = permutation(make_key(key, "select correct"), len(labels))
    pools = [shuffled[labels[shuffled] == label] for label in range(num_classes)]
    largest = max(map(len, pools))
    for label, pool in enumerate(pools):
        if len(pool) == 0 or (len(pool) < ipc and largest < ipc):
            called = f"class {label} ('{classes[label]}')" if classes else f"class {label}"
            raise DataError(
                f"select: expected at least ipc={ipc} images of {called}, got {len(pool)}; lower "
                "ipc or add images"
            )
    pools = [pool[torch.arange(max(len(pool), ipc)) % len(pool)] for pool in pools]
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
    return torch.cat([torch.cat([*own, last]) for own, last in zip(chosen, rest, strict=True)]).to(
        device
    )
