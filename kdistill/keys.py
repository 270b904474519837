"""Keyed randomness: every random draw is a pure function of a key.

A key is a 64-bit integer made from (run seed, purpose, indices...).  Nothing in kdistill reads or
seeds a global generator, so the same seed gives the same bits whatever else ran before, and a
resumed run continues as if it had never stopped.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor


def make_key(seed: int, purpose: str, *indices: int) -> int:
    """Return a 64-bit key for one draw.

    Args:
        seed: The run's seed, any integer.
        purpose: What the draw is for, e.g. ``"augment"``; different purposes give unrelated
            streams.
        indices: Iteration, class, image, ... in an order fixed by the purpose.
    """
    text = ":".join([str(int(seed)), purpose, *(str(int(i)) for i in indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh torch generator seeded by ``key``, for initial weights and permutations."""
    return torch.Generator(device).manual_seed(key % 2**63)


def uniforms(key: int, count: int) -> np.ndarray:
    """Return ``count`` float64 draws from U[0, 1), bit-identical on every machine.

    Counter-based (Philox4x64-10, Salmon et al. 2011, through NumPy's bit generator, whose stream is
    frozen by its stream policy).
    """
    raw = np.random.Philox(key=key).random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, count: int) -> Tensor:
    """Return a random permutation of ``0..count-1`` as int64, a pure function of ``key``."""
    return torch.from_numpy(np.argsort(uniforms(key, count), kind="stable"))
