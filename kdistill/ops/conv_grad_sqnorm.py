"""Squared norm of each image's own weight gradient of a 3x3 convolution, without that gradient.

It is the heaviest part of GraNd.

Symbols: N images, C channels in, K channels out, H x W input, h x w result, p padding.
Derivation, the two forms and which is cheaper: docs/ops/conv_grad_sqnorm.md.
"""

from typing import cast

from torch import Tensor

from kdistill.errors import ConfigError, did_you_mean
from kdistill.ops._layout import Layout, Signature, require
from kdistill.ops._registry import plain

GRAD_ORDER = 0
FORMS = ("auto", "gram", "products")


def _declare(x: Tensor, grad: Tensor, padding: int, gram: bool) -> Signature:
    form = "x [N, C, H, W] and grad [N, K, H + 2p - 2, W + 2p - 2]"
    hint = "pass what a 3x3 convolution with stride 1 read, and its result's gradient"
    got = f"{list(x.shape)}, {list(grad.shape)} and padding {padding}"
    require(x.ndim == grad.ndim == 4 and padding >= 0, form, got, hint)
    outs = tuple(side + 2 * padding - 2 for side in x.shape[2:])
    fits = min(outs) >= 1 and (grad.shape[0], *grad.shape[2:]) == (x.shape[0], *outs)
    require(fits, form, got, hint)
    return Signature((Layout(tuple(x.shape), order=None), Layout(tuple(grad.shape), order=None)))


_run = plain("conv_grad_sqnorm", _declare)


def conv_grad_sqnorm(x: Tensor, grad: Tensor, padding: int = 1, *, form: str = "auto") -> Tensor:
    """Return ``|dl_n/dw|^2`` of every image n, for a 3x3 convolution of ``x`` with stride 1.

    The result of the convolution has gradient ``grad``.  With P_n the 3x3 neighbourhoods ``[9*C,
    h*w]`` of image n and G_n its gradient ``[h*w, K]`` it is ``|P_n G_n|^2``: either that product
    (``"products"``), or the sum over pairs of pixels of the inner products of both (``"gram"``).
    Those of neighbourhoods are sums of nine of single pixels, so the latter takes ``C*(H*W)^2 +
    K*(h*w)^2`` multiplications where the former takes ``9*C*K*h*w``.

    Args:
        x: What went into the convolution, ``[N, C, H, W]``, float32 or float64.  Channels-last
            memory is read as it is.
        grad: The gradient of what came out, of the sum of the images' losses, ``[N, K, h, w]``, h =
            H + 2p - 2, w = W + 2p - 2.
        padding: p, zeros around the image.
        form: ``"auto"`` takes the one with fewer multiplications.

    Returns:
        ``[N]``, dtype of ``x``; summed in float64.  Not differentiable.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        ConfigError: ``form`` is unknown.
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: the smaller of the two counts above for each image, and ``4.5*(h*w)^2`` multiplications of
        the Gram form's sum; memory
        of a few images' intermediate matrices, 16 MB.

    References: Goodfellow, Efficient Per-Example Gradient Computations, 2015 (linear layers); Bu,
        Mao and Xu, Scalable and Efficient Training of Large Convolutional Neural Networks with
        Differential Privacy, NeurIPS 2022 (choosing by layer).
    """
    if form not in FORMS:
        raise ConfigError(
            f"conv_grad_sqnorm: expected a known form, got '{form}'; "
            f"{did_you_mean(form, list(FORMS))}"
        )
    gram = form == "gram" or (
        form == "auto"
        and x.ndim == grad.ndim == 4
        and is_gram_cheaper(x.shape[1], grad.shape[1], x.shape[2:].numel(), grad.shape[2:].numel())
    )
    return cast("Tensor", _run(x, grad, padding, gram and x.numel() * grad.numel() > 0)).to(x.dtype)


def is_gram_cheaper(channels: int, width: int, pixels: int, outs: int) -> bool:
    """Say whether the Gram form takes fewer multiplications, for C, K, H*W and h*w."""
    # the sum over pairs is memory-bound: counted in full
    gram = channels * pixels**2 + width * outs**2 + 9 * outs**2
    return gram < 9 * channels * width * outs
