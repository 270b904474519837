"""winograd_conv through csrc/cpu/winograd_conv.cpp."""

import math

import torch
from torch import Tensor

from kdistill.backends.arguments import empty_channels_last
from kdistill.backends.cpu import launch, scratch

# planes of filters, and of feature maps whose size stays; of those whose size is doubled or halved
PLANES, DOUBLED = 36, 81
_PANEL = 32  # outputs that the native pass multiplies at a time, at most (float32, AVX-512)
_GAP = 16  # elements between two of its planes
_BLOCK = 40  # tiles that a thread takes through all channels together, at most
_FILTERS = 8 << 20  # bytes of transformed filters, from which on a pass goes by panels
_MOST_TILES_OF_A_PANEL = 96
# of which threads take whole ones; fewer go by panels, however many threads: these must change no
# bit
_FEWEST_IMAGES = 4
_FEW_FILTERS, _MOST_PARTS = 64 * 64, 8  # a weight gradient of fewer goes by parts of the tiles


def plan(
    like: Tensor,
    inputs: int,
    outputs: int,
    tiles: int,
    planes: int = PLANES,
    images: int | None = None,
) -> tuple[Tensor, tuple[int, bool, int, int]]:
    """Return memory for the native pass, which must outlive it, and the last numbers that it takes.

    ``images``: where a thread takes whole ones only, their number.
    """
    threads, width = torch.get_num_threads(), _padded_to_panels(outputs)
    if PLANES * inputs * width * like.element_size() > _FILTERS or (
        images is not None and images < _FEWEST_IMAGES
    ):
        block = max(1, min(tiles, _MOST_TILES_OF_A_PANEL))
        shared = planes * (block * inputs + _GAP)
        per_thread = PLANES * (inputs * _PANEL + _GAP) + planes * (block * _PANEL + _GAP)
        by_panels = True
    else:
        share = max(
            1,
            -(-tiles // threads)
            if images is None
            else -(-images // threads) * (tiles // max(1, images)),
        )
        block = -(
            -share // -(-share // (_BLOCK * PLANES // planes))
        )  # equal ones, as many for every thread
        shared, per_thread = (
            PLANES * (inputs * width + _GAP),
            planes * (block * (inputs + width) + 2 * _GAP),
        )
        by_panels = False
    memory = scratch(like, shared + threads * per_thread)
    return memory, (block, by_panels, shared, per_thread)


def winograd_conv(
    x: Tensor, weight: Tensor, padding: int, turned: bool, x1: Tensor | None, weight1: Tensor | None
) -> Tensor:
    n, c, h, w = x.shape
    k = weight.shape[1 if turned else 0]
    y = empty_channels_last(x, n, k, h + 2 * padding - 2, w + 2 * padding - 2)
    memory, way = plan(x, c if x1 is None else 2 * c, k, tiles_of(y))
    tensors = (x, x1, weight, weight1, y, memory)
    launch("winograd_conv", tensors, n, h, w, c, k, padding, turned, *way)
    return y


def winograd_conv_weight_grad(
    x: Tensor, grad: Tensor, padding: int, x1: Tensor | None, grad1: Tensor | None
) -> Tensor:
    return weight_grad(x, grad, padding, None, x1, grad1)


def weight_grad(
    x: Tensor,
    grad: Tensor,
    padding: int,
    scale: Tensor | None,
    x1: Tensor | None = None,
    grad1: Tensor | None = None,
    *,
    doubles: bool = False,
) -> Tensor:
    """Return the weight's gradient in the convolution of ``x * scale``, plus that of another pair.

    ``doubles``: in the transposed convolution of stride 2, without padding.
    """
    (n, c, h, w), k, threads = x.shape, grad.shape[1], torch.get_num_threads()
    planes, tiles = (DOUBLED, tiles_of(x)) if doubles else (PLANES, tiles_of(grad))
    # few channels: parts of the tiles, as many for any number of threads; many: a square of parts
    # of both channels
    terms = 1 if x1 is None else 2
    of_tiles = max(1, min(terms * tiles // _BLOCK, _MOST_PARTS)) if c * k <= _FEW_FILTERS else 1
    rest = max(1, threads // of_tiles)
    of_outputs = min(math.isqrt(rest), -(-k // _PANEL))
    of_inputs = min(rest // of_outputs, -(-c // _PANEL))
    own, width = _padded_to_panels(-(-c // of_inputs)), _padded_to_panels(-(-k // of_outputs))
    per_thread = planes * (_BLOCK * (own + width) + 2 * _GAP) + PLANES * (own * width + _GAP)
    dweight, memory = x.new_empty((of_tiles, k, c, 3, 3)), scratch(x, threads * per_thread)
    way = (_BLOCK, of_tiles, of_inputs, of_outputs, per_thread)
    if doubles:
        tensors = (x, scale, grad, dweight, memory)
        launch("styled_conv_doubled_weight_grad", tensors, n, h, w, c, k, *way)
    else:
        tensors = (x, x1, scale, grad, grad1, dweight, memory)
        launch("winograd_conv_weight_grad", tensors, n, h, w, c, k, padding, *way)
    return dweight[0] if of_tiles == 1 else dweight[0].clone()  # not a view of all parts


def tiles_of(y: Tensor) -> int:
    """Return how many tiles of 4x4 pixels ``[N, K, h, w]`` has."""
    n, _, h, w = y.shape
    return n * -(-h // 4) * -(-w // 4)


def _padded_to_panels(outputs: int) -> int:
    return -(-outputs // _PANEL) * _PANEL
