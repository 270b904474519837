"""Five statistics of every row of logits against its label in one pass: what the cheap difficulty scores are made of.

Symbols: N samples, K classes.  Derivation and traffic: docs/ops/softmax_scores.md.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from kdistill.errors import ShapeError
from kdistill.ops._registry import check_same_dtype_and_device, plain

GRAD_ORDER = 0

_run = plain("softmax_scores")


class SoftmaxScores(NamedTuple):
    """One number per sample, each ``[N]`` in the dtype of the logits; p is the softmax of the logits, t the label's distribution.

    Attributes:
        loss: Cross-entropy ``-sum t log p``, in nats.
        el2n: ``|p - t|``, between 0 and sqrt(2).
        margin: Largest other probability minus that of the label's class, between -1 and 1.
        entropy: ``-sum p log p``, in nats.
        correct: 1 where the largest logit is that of the label's class (of equals, the first), else
            0.
    """

    loss: Tensor
    el2n: Tensor
    margin: Tensor
    entropy: Tensor
    correct: Tensor


def softmax_scores(logits: Tensor, labels: Tensor) -> SoftmaxScores:
    """Return loss, EL2N, margin, entropy and correctness of every sample.

    Args:
        logits: ``[N, K]`` with K >= 2, float32 or float64.
        labels: int64 ``[N]``, values 0..K-1 (hard), or float LOGITS z ``[N, K]`` of soft labels t =
            softmax(z), dtype of ``logits``.  The class of a soft label, for margin and correctness,
            is that of its largest z (of equals, the first).

    Returns:
        ``SoftmaxScores``.  Not differentiable.  A row with a NaN gives NaN, and is not correct.

    Raises:
        ShapeError: A shape, dtype or device does not fit, or a label is outside 0..K-1 (CPU
            tensors; on a GPU the check would stop the stream, and such a row gives NaN).
        NotDifferentiableError: An input requires grad while grad mode is on.

    Cost: one exponential and about 8 flops per logit; reads the logits (and z) once, writes ``5*N``
        elements.

    References: EL2N: Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ShapeError(
            f"softmax_scores: expected float logits [N, K] with K >= 2, got {logits.dtype} "
            f"{list(logits.shape)}; pass one row of "
            "class logits per sample"
        )
    wanted = tuple(logits.shape) if labels.is_floating_point() else (logits.shape[0],)
    if tuple(labels.shape) != wanted or not (
        labels.is_floating_point() or labels.dtype == torch.int64
    ):
        raise ShapeError(
            f"softmax_scores: expected labels int64 [{logits.shape[0]}] (hard) or float "
            f"{list(logits.shape)} (logits of soft "
            f"labels), got {labels.dtype} {list(labels.shape)}; pass one label per row"
        )
    if labels.is_floating_point():
        check_same_dtype_and_device("softmax_scores", logits=logits, labels=labels)
    else:
        _check_hard(labels, logits)
    return SoftmaxScores(*cast("Tensor", _run(logits.contiguous(), labels.contiguous())))


def _check_hard(labels: Tensor, logits: Tensor) -> None:
    if labels.device != logits.device:
        raise ShapeError(
            f"softmax_scores: expected labels on {logits.device}, where the logits are, got "
            f"{labels.device}; move them with .to()"
        )
    if labels.device.type != "cpu" or not len(labels):
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise ShapeError(
            f"softmax_scores: expected labels 0..{logits.shape[1] - 1}, got "
            f"{low if low < 0 else high}; use logits of as many "
            "classes as there are"
        )
