"""Reference of winograd_conv: its six linear maps as matrices, built from the points.  Any dtype and device."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial import polynomial
from torch import Tensor

POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)  # and infinity


@cache
def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A' [4, 6], G [6, 3] and B' [6, 6] of F(4, 3) by Cook and Toom: interpolation at the points and at infinity."""
    others = [[q for q in POINTS if q != p] for p in POINTS]
    last_output, last_weight = [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0]
    output = np.array([[p**r for r in range(4)] for p in POINTS] + [last_output]).T
    weight = np.array(
        [[p**r / np.prod([p - q for q in rest]) for r in range(3)] for p, rest in zip(POINTS, others, strict=True)]
        + [last_weight]
    )
    rows = [[*polynomial.polyfromroots(rest), 0.0] for rest in others]
    return output, weight, np.array([*rows, polynomial.polyfromroots(POINTS)])


def _maps(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, g, b = (torch.from_numpy(m).to(like) for m in _matrices())
    return a, g, b


def _flat(tiles: Tensor) -> Tensor:
    """Return tiles ``[N, C, down, across, 6, 6]`` as ``[36, N*down*across, C]``."""
    n, c, down, across = tiles.shape[:4]
    return tiles.permute(4, 5, 0, 2, 3, 1).reshape(36, n * down * across, c)


def _unflat(planes: Tensor, n: int, down: int, across: int) -> Tensor:
    return planes.reshape(6, 6, n, down, across, planes.shape[2]).permute(2, 5, 3, 4, 0, 1)


def winograd_conv_input(x: Tensor, padding: int) -> Tensor:
    _, _, b = _maps(x)
    h, w = x.shape[2:]
    down, across = (h + 2 * padding + 1) // 4, (w + 2 * padding + 1) // 4
    padded = F.pad(x, (padding, 4 * across + 2 - w - padding, padding, 4 * down + 2 - h - padding))
    return _flat(b @ padded.unfold(2, 6, 4).unfold(3, 6, 4) @ b.T)


def winograd_conv_input_bwd(planes: Tensor, n: int, h: int, w: int, padding: int) -> Tensor:
    _, _, b = _maps(planes)
    down, across = (h + 2 * padding + 1) // 4, (w + 2 * padding + 1) // 4
    tiles = b.T @ _unflat(planes, n, down, across) @ b
    out = planes.new_zeros((n, planes.shape[2], 4 * down + 2, 4 * across + 2))
    for i in range(down):
        for j in range(across):
            out[:, :, 4 * i : 4 * i + 6, 4 * j : 4 * j + 6] += tiles[:, :, i, j]
    return out[:, :, padding : padding + h, padding : padding + w].contiguous(memory_format=torch.channels_last)


def winograd_conv_output(planes: Tensor, n: int, h: int, w: int) -> Tensor:
    a, _, _ = _maps(planes)
    down, across = -(-h // 4), -(-w // 4)
    tiles = a @ _unflat(planes, n, down, across) @ a.T
    y = tiles.permute(0, 1, 2, 4, 3, 5).reshape(n, planes.shape[2], 4 * down, 4 * across)
    return y[:, :, :h, :w].contiguous(memory_format=torch.channels_last)


def winograd_conv_output_bwd(grad: Tensor) -> Tensor:
    a, _, _ = _maps(grad)
    h, w = grad.shape[2:]
    padded = F.pad(grad, (0, -w % 4, 0, -h % 4))
    return _flat(a.T @ padded.unfold(2, 4, 4).unfold(3, 4, 4) @ a)


def winograd_conv_weight(weight: Tensor) -> Tensor:
    _, g, _ = _maps(weight)
    return (g @ weight @ g.T).permute(2, 3, 1, 0).reshape(36, *weight.shape[1::-1])


def winograd_conv_weight_bwd(planes: Tensor) -> Tensor:
    _, g, _ = _maps(planes)
    return g.T @ planes.reshape(6, 6, *planes.shape[1:]).permute(3, 2, 0, 1) @ g


def winograd_conv(x: Tensor, weight: Tensor, padding: int, turned: bool) -> Tensor:
    weight = weight.flip(2, 3).transpose(0, 1) if turned else weight
    return F.conv2d(x, weight, padding=padding).contiguous(memory_format=torch.channels_last)


def winograd_conv_weight_grad(x: Tensor, grad: Tensor, padding: int, scale: Tensor | None) -> Tensor:
    x = x if scale is None else x * scale[:, :, None, None]
    return torch.nn.grad.conv2d_weight(x, [grad.shape[1], x.shape[1], 3, 3], grad, padding=padding)
