"""The same numbers in another place of memory."""

import torch

LAYOUTS = ("channels_last", "contiguous", "strided", "misaligned")


def moved(x, layout):
    """Return the feature maps ``x [N, C, H, W]`` with other strides or at an odd address."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "misaligned":
        n, c, h, w = x.shape
        memory = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:]
        return memory.reshape(n, h, w, c).permute(0, 3, 1, 2).copy_(x)
    return x
