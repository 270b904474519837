"""Reference of diff_augment: any floating dtype and device, twice differentiable in the images.

Symbols: B images, C channels, H x W pixels, S parameter sets, N images of one family.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# column 0 of a row of params; the columns behind it hold
IDENTITY = 0  # nothing
COLOR = 1  # brightness, saturation, contrast
CROP = 2  # shift_h, shift_w
CUTOUT = 3  # centre_h, centre_w, side_h, side_w
FLIP = 4  # 1 mirrors left and right, 0 does nothing
AFFINE = 5  # theta row by row: t00, t01, t10, t11
ROW = 8  # columns

Part = Callable[[Tensor, Tensor], Tensor]


def diff_augment(
    images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool
) -> Tensor:
    return _by_family(
        images, params, index,
        color=lambda x, p: _color(x, p, offset=not linear),
        crop=lambda x, p: _crop(x, *_shifts(x, p)),
        affine=lambda x, p: _affine(x, p, align_corners),
    )  # fmt: skip


def diff_augment_bwd(grad: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Tensor:
    # the transpose of the linear part; color, cutout and flip are their own
    return _by_family(
        grad, params, index,
        color=lambda g, p: _color(g, p, offset=False),
        crop=lambda g, p: _crop(g, *(-s for s in _shifts(g, p))),
        affine=lambda g, p: _affine_transpose(g, p, align_corners),
    )  # fmt: skip


def _by_family(
    x: Tensor, params: Tensor, index: Tensor, *, color: Part, crop: Part, affine: Part
) -> Tensor:
    parts = {COLOR: color, CROP: crop, CUTOUT: _cutout, FLIP: _flip, AFFINE: affine}
    out = x.clone()
    if x.numel() == 0:
        return out
    rows = params[index.clamp(0, len(params) - 1)]  # [B, ROW]
    for family, part in parts.items():
        of_family = (rows[:, 0].long() == family).nonzero().squeeze(1)  # [N]
        if len(of_family):
            out = out.index_copy(0, of_family, part(x[of_family], rows[of_family, 1:]))
    return out


def _color(x: Tensor, p: Tensor, *, offset: bool) -> Tensor:
    brightness, saturation, contrast = (
        column[:, None, None, None].to(x.dtype) for column in p[:, :3].unbind(1)
    )
    if offset:
        x = x + brightness
    over_channels = x.mean(1, keepdim=True)
    x = (x - over_channels) * saturation + over_channels
    over_image = x.mean((1, 2, 3), keepdim=True)
    return (x - over_image) * contrast + over_image


def _shifts(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    h, w = x.shape[2:]
    return p[:, 0].clamp(-h, h).long(), p[:, 1].clamp(-w, w).long()


def _crop(x: Tensor, shift_h: Tensor, shift_w: Tensor) -> Tensor:
    # out[i, j] = x[i + shift_h, j + shift_w], zero where that lies outside
    n, _, h, w = x.shape
    rows = torch.arange(h, device=x.device) + shift_h[:, None]  # [N, H]
    cols = torch.arange(w, device=x.device) + shift_w[:, None]  # [N, W]
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((cols >= 0) & (cols < w))[:, None, :]
    image = torch.arange(n, device=x.device)[:, None, None]
    moved = x[
        image, :, rows.clamp(0, h - 1)[:, :, None], cols.clamp(0, w - 1)[:, None, :]
    ]  # [N, H, W, C]
    return torch.where(inside[:, None], moved.permute(0, 3, 1, 2), torch.zeros_like(x))


def _cutout(x: Tensor, p: Tensor) -> Tensor:
    def cut(centre: Tensor, side: Tensor, size: int) -> Tensor:
        side = side.clamp(0, 2 * size).long()
        start = centre.clamp(-4 * size, 4 * size).long() - side // 2
        at = torch.arange(size, device=x.device)
        return (at >= start[:, None]) & (at < (start + side)[:, None])  # [N, size]

    rows, cols = cut(p[:, 0], p[:, 2], x.shape[2]), cut(p[:, 1], p[:, 3], x.shape[3])
    return torch.where((rows[:, :, None] & cols[:, None, :])[:, None], torch.zeros_like(x), x)


def _flip(x: Tensor, p: Tensor) -> Tensor:
    return torch.where((p[:, 0] != 0)[:, None, None, None], x.flip(3), x)


def _taps(x: Tensor, p: Tensor, align_corners: bool) -> list[tuple[Tensor, Tensor]]:
    """Return, for each of four taps, the pixel that it reads ``[N, H*W]`` and its weight."""
    h, w = x.shape[2:]
    size_h, size_w = (h - 1, w - 1) if align_corners else (h, w)
    dy = (torch.arange(h, device=x.device, dtype=torch.float64) - (h - 1) / 2)[:, None]  # [H, 1]
    dx = torch.arange(w, device=x.device, dtype=torch.float64) - (w - 1) / 2  # [W]
    t00, t01, t10, t11 = (column[:, None, None].double() for column in p[:, :4].unbind(1))
    at_x = t00 * dx + t01 * (size_w / size_h if size_h else 0.0) * dy + (w - 1) / 2  # [N, H, W]
    at_y = t10 * (size_h / size_w if size_w else 0.0) * dx + t11 * dy + (h - 1) / 2
    at_x, at_y = at_x.clamp(-1, w).flatten(1), at_y.clamp(-1, h).flatten(1)
    x0, y0 = at_x.floor(), at_y.floor()
    taps = []
    for tap_y, weight_y in ((y0, 1 - (at_y - y0)), (y0 + 1, at_y - y0)):
        for tap_x, weight_x in ((x0, 1 - (at_x - x0)), (x0 + 1, at_x - x0)):
            inside = (tap_x >= 0) & (tap_x < w) & (tap_y >= 0) & (tap_y < h)
            pixel = (tap_y.clamp(0, h - 1) * w + tap_x.clamp(0, w - 1)).long()
            taps.append((pixel, (weight_y * weight_x * inside).to(x.dtype)))
    return taps


def _affine(x: Tensor, p: Tensor, align_corners: bool) -> Tensor:
    flat, out = x.flatten(2), torch.zeros_like(x).flatten(2)
    for pixel, weight in _taps(x, p, align_corners):
        out = out + weight[:, None] * flat.gather(2, pixel[:, None].expand_as(flat))
    return out.unflatten(2, x.shape[2:])


def _affine_transpose(g: Tensor, p: Tensor, align_corners: bool) -> Tensor:
    flat, out = g.flatten(2), torch.zeros_like(g).flatten(2)
    for pixel, weight in _taps(g, p, align_corners):
        out = out.scatter_add(2, pixel[:, None].expand_as(flat), weight[:, None] * flat)
    return out.unflatten(2, g.shape[2:])
