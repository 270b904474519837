"""Keyed randomness: every random draw is a pure function of a key.

A key is a 64-bit integer made from (run seed, purpose, indices...).  Nothing in kdistill reads or
seeds a global generator, so the same seed gives the same bits whatever else ran before, and a
resumed run continues as if it had never stopped.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

WORDS = 4  # numbers of 64 bits that one step of Philox's counter yields
BLOCK = 8_192  # words that are drawn at once, so that they stay in the cache


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


def normals(key: int, rows: range, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal draws of some rows; row i depends on ``key`` and i alone.

    Counter-based (Philox4x64-10, as ``uniforms``): row i has its own stretch of the stream, so the
    rows have the same bits in whatever chunks they are drawn.  Pairs by the method of Box and
    Muller (1958) from two uniforms of 32 bits each, in float64.

    Args:
        key: Key of the draws.
        rows: Numbers of the rows, consecutive and not negative.
        shape: Shape of a row.

    Returns:
        Float64 ``[len(rows), *shape]`` within ±6.8, equal to rounding on every machine.

    Raises:
        ValueError: The rows are negative or not consecutive.

    Cost: one pass of vectorised operations; no work per row in Python.
    """
    if rows.step != 1 or rows.start < 0:
        raise ValueError(f"normals: expected consecutive rows from 0 on, got {rows}; use a range")
    count = math.prod(shape)
    steps = math.ceil(count / (2 * WORDS))  # of the counter, for one row
    pairs = steps * WORDS
    stream = np.random.Philox(key=key, counter=steps * rows.start)
    draws = torch.empty(len(rows), 2, pairs, dtype=torch.float64)
    for part in draws.split(max(BLOCK // max(pairs, 1), 1)):
        words = stream.random_raw(len(part) * pairs).view(np.int32)
        u = torch.from_numpy(words).view(part.shape).double()
        radius, turn = u.mul_(2.0**-32).add_(0.5 + 2.0**-33).unbind(1)  # never 0 or 1
        radius, angle = radius.log().mul_(-2.0).sqrt_(), turn.mul(2.0 * math.pi)
        torch.mul(radius, angle.cos(), out=part[:, 0])
        torch.mul(radius, angle.sin(), out=part[:, 1])
    return draws.view(len(rows), 2 * pairs)[:, :count].reshape(len(rows), *shape)


def permutation(key: int, count: int) -> Tensor:
    """Return a random permutation of ``0..count-1`` as int64, a pure function of ``key``."""
    return torch.from_numpy(np.argsort(uniforms(key, count), kind="stable"))
