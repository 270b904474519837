"""Squared norm of each image's own weight gradient of a 3x3 convolution, without that gradient: GraNd's heaviest part.

Symbols: N images, C channels in, K channels out, H x W the map that comes in, h x w the one that
    goes out, p padding.
Derivation, the two forms and which is cheaper: docs/ops/conv_grad_sqnorm.md.
"""

from typing import cast

from torch import Tensor

from kdistill.errors import ConfigError, ShapeError, did_you_mean
from kdistill.ops._registry import check_same_dtype_and_device, plain

GRAD_ORDER = 0
FORMS = ("auto", "gram", "products")

_run = plain("conv_grad_sqnorm")


def conv_grad_sqnorm(x: Tensor, grad: Tensor, padding: int = 1, *, form: str = "auto") -> Tensor:
    """Return ``|dl_n/dw|^2`` of every image n, for the 3x3 convolution of ``x`` with stride 1 whose result has gradient ``grad``.

    With P_n the 3x3 neighbourhoods ``[9*C, h*w]`` of image n and G_n its gradient ``[h*w, K]`` it
    is ``|P_n G_n|^2``: either that product (``"products"``), or the sum over pairs of pixels of the
    inner products of both (``"gram"``).  Those of neighbourhoods are sums of nine of single pixels,
    so the latter takes ``C*(H*W)^2 + K*(h*w)^2`` multiplications where the former takes
    ``9*C*K*h*w``.

    Args:
        x: What went into the convolution, ``[N, C, H, W]``, float32 or float64.  Channels-last
            memory is read as it is.
        grad: The gradient of what came out, of the sum of the images' losses, ``[N, K, h, w]``, h =
            H + 2p - 2, w = W + 2p - 2.
        padding: p, zeros around the map.
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
        Mao and Xu, Scalable and
    Efficient Training of Large Convolutional Neural Networks with Differential Privacy, NeurIPS
    2022 (choosing by layer).
    """
    sizes = tuple(side + 2 * padding - 2 for side in x.shape[2:])
    if (
        x.ndim != 4
        or grad.ndim != 4
        or padding < 0
        or min(sizes) < 1
        or (grad.shape[0], *grad.shape[2:]) != (x.shape[0], *sizes)
    ):
        raise ShapeError(
            "conv_grad_sqnorm: expected x [N, C, H, W] and grad [N, K, H + 2p - 2, W + 2p - 2], "
            f"got {list(x.shape)}, "
            f"{list(grad.shape)} and padding {padding}; pass what a 3x3 convolution with stride 1 "
            "read, and its result's gradient"
        )
    if form not in FORMS:
        raise ConfigError(
            f"conv_grad_sqnorm: expected a known form, got '{form}'; "
            f"{did_you_mean(form, list(FORMS))}"
        )
    check_same_dtype_and_device("conv_grad_sqnorm", x=x, grad=grad)
    if not x.numel() or not grad.numel():  # no image, or no channel: no gradient
        return x.new_zeros(len(x))
    gram = form == "gram" or (
        form == "auto"
        and is_gram_cheaper(x.shape[1], grad.shape[1], x.shape[2:].numel(), grad.shape[2:].numel())
    )
    return cast("Tensor", _run(x, grad, padding, gram)).to(x.dtype)


def is_gram_cheaper(channels: int, width: int, pixels: int, outs: int) -> bool:
    """Say whether the Gram form takes fewer multiplications, for C, K, H*W and h*w."""
    gram = (
        channels * pixels**2 + width * outs**2 + 9 * outs**2
    )  # the sum over pairs is memory-bound: counted in full
    return gram < 9 * channels * width * outs
