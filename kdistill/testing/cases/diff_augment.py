"""Case of diff_augment."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.backends.reference import diff_augment as reference
from kdistill.ops.diff_augment import (
    AFFINE,
    COLOR,
    CROP,
    CUTOUT,
    FLIP,
    IDENTITY,
    ROW,
    diff_augment,
)
from kdistill.testing.cases import Inputs, OpCase, Shape

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")


def _op(images: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Tensor:
    return diff_augment(images, params, index, align_corners=align_corners)


def _reference(images: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Tensor:
    return reference.diff_augment(images, params, index, align_corners, False)


def _row(family: str, h: int, w: int, u: list[float]) -> list[float]:
    # the published ranges; "wild" and "singular" are what a caller may pass besides
    c, s = math.cos(0.26 * (2 * u[0] - 1)), math.sin(0.26 * (2 * u[0] - 1))
    rows: dict[str, list[float]] = {
        "identity": [IDENTITY],
        "color": [COLOR, u[0] - 0.5, 2 * u[1], u[2] + 0.5],
        "crop": [
            CROP,
            *(
                round((2 * v - 1) * int(0.125 * size + 0.5))
                for v, size in zip(u, (h, w), strict=False)
            ),
        ],
        "cutout": [CUTOUT, int(u[0] * h), int(u[1] * w), int(h / 2 + 0.5), int(w / 2 + 0.5)],
        "flip": [FLIP, float(u[0] < 0.7)],
        "scale": [AFFINE, 0.83 + 0.37 * u[0], 0.0, 0.0, 0.83 + 0.37 * u[1]],
        "rotate": [AFFINE, c, -s, s, c],
        "wild": [AFFINE, *(6 * v - 3 for v in u)],
        "singular": [AFFINE, 0.5, -0.25, 0.5, -0.25],
        "far": [CROP, round(4 * h * (u[0] - 0.5)), round(4 * w * (u[1] - 0.5))],
        "outside": [
            CUTOUT,
            round(4 * h * (u[0] - 0.5)),
            round(4 * w * (u[1] - 0.5)),
            3 * u[2] * h // 1,
            2 * u[3] * w // 1,
        ],
    }
    return rows[family]


def _make(s: Shape, randn, generator: torch.Generator) -> Inputs:
    kinds = ["identity", *FAMILIES] if s.family == "mixed" else s.family.split("_")
    n = max(s.b, len(kinds))
    u = torch.rand(n, 4, generator=generator, dtype=torch.float64).tolist()
    params = torch.zeros(n, ROW, dtype=torch.float64)
    for i in range(n):
        row = _row(kinds[i % len(kinds)], s.h, s.w, u[i])
        params[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    index = torch.randperm(n, generator=generator)[: s.b]
    return randn(s.b, s.c, s.h, s.w), params, index, bool(getattr(s, "align", 0))


def _published(images: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Tensor:
    # one family per call, so a mixed batch is a loop over its families, as the published loop over
    # classes is
    rows = params[index].to(images)
    codes = rows[:, 0]
    if len(images) == 0 or bool((codes == codes[0]).all()):
        return _published_family(images, rows, align_corners)
    parts, order = [], []
    for code in codes.unique():
        of_family = (codes == code).nonzero().squeeze(1)
        order.append(of_family)
        parts.append(_published_family(images[of_family], rows[of_family], align_corners))
    return torch.cat(parts)[torch.cat(order).argsort()]


def _published_family(x: Tensor, rows: Tensor, align_corners: bool) -> Tensor:
    if len(x) == 0 or rows[0, 0] == IDENTITY:
        return x.clone()
    family, n, h, w = int(rows[0, 0]), len(x), x.shape[2], x.shape[3]
    p = [column[:, None, None] for column in rows[:, 1:5].unbind(1)]
    if family == COLOR:
        x = x + p[0][:, None]
        mean = x.mean(1, keepdim=True)
        x = (x - mean) * p[1][:, None] + mean
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * p[2][:, None] + mean
    if family == FLIP:
        return torch.where(p[0][:, None] != 0, x.flip(3), x)
    if family == AFFINE:
        theta = x.new_zeros(n, 2, 3)
        theta[:, :, :2] = rows[:, 1:5].reshape(n, 2, 2)
        return F.grid_sample(
            x,
            F.affine_grid(theta, list(x.shape), align_corners=align_corners),
            align_corners=align_corners,
        )
    size = (h, w) if family == CROP else (int(rows[0, 3]), int(rows[0, 4]))
    ranges = [torch.arange(count, device=x.device) for count in (n, *size)]
    batch, i, j = torch.meshgrid(*ranges, indexing="ij")
    if family == CROP:
        i = torch.clamp(i + p[0].long() + 1, 0, h + 1)
        j = torch.clamp(j + p[1].long() + 1, 0, w + 1)
        padded = F.pad(x, [1, 1, 1, 1]).permute(0, 2, 3, 1).contiguous()
        return padded[batch, i, j].permute(0, 3, 1, 2)
    i = torch.clamp(i + p[0].long() - size[0] // 2, 0, h - 1)
    j = torch.clamp(j + p[1].long() - size[1] // 2, 0, w - 1)
    mask = x.new_ones(n, h, w)
    mask[batch, i, j] = 0
    return x * mask[:, None]


def _depth(s: Shape) -> float:
    kinds = set(s.family.split("_"))
    if kinds <= {"crop", "cutout", "flip"}:
        return 1.0
    mean = s.c * s.h * s.w if kinds & {"mixed", "color"} else 1
    # a source position is as large as the image, and its rounding is that of the result times the
    # slope of the image; where a map is singular all outputs meet in one pixel
    return float(max(mean, (s.h + s.w) ** 2, s.h * s.w))


CASE = OpCase(
    name="diff_augment",
    op=_op,
    reference=_reference,
    make=_make,
    differentiable=(0,),
    tiny=Shape(b=7, c=2, h=3, w=4, family="mixed"),
    # one pixel; primes, not square; no image; more channels than are interleaved; several tiles;
    # every family by itself
    shapes=[
        Shape(b=8, c=1, h=1, w=1, family="mixed"),
        Shape(b=17, c=3, h=13, w=11, family="mixed"),
        Shape(b=17, c=3, h=7, w=19, family="mixed", align=1),
        Shape(b=0, c=3, h=8, w=8, family="mixed"),
        Shape(b=8, c=5, h=33, w=9, family="mixed"),
        Shape(b=7, c=1, h=41, w=37, family="mixed"),
        Shape(b=8, c=2, h=1, w=6, family="scale_rotate_wild", align=1),
        Shape(b=12, c=4, h=9, w=8, family="wild_singular_far_outside"),
        *(Shape(b=5, c=3, h=16, w=16, family=family) for family in FAMILIES),
    ],
    interpreted=[
        Shape(b=7, c=3, h=7, w=5, family="mixed"),
        Shape(b=5, c=1, h=4, w=6, family="wild_singular_far_outside_color", align=1),
    ],
    bench_shapes=[Shape(b=640, c=3, h=32, w=32, family=family) for family in (*FAMILIES, "mixed")],
    depth=_depth,
    flops=lambda s: 8 * s.b * s.c * s.h * s.w,
    bytes=lambda s, itemsize: 4 * itemsize * s.b * s.c * s.h * s.w,
    peers={"published ops": _published},
)
