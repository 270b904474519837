"""Five statistics of every row of logits against its label: the cheap difficulty scores.

Symbols: N samples, K classes.  Derivation and traffic: docs/ops/softmax_scores.md.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from kdistill.ops._layout import Signature, array, require, require_labels, sizes_of
from kdistill.ops._registry import plain

GRAD_ORDER = 0


def _declare(logits: Tensor, labels: Tensor) -> Signature:
    form, hint = "logits [N, K] with K >= 2", "pass one row of class logits per sample"
    n, k = sizes_of(logits, form, hint)
    require(k >= 2, form, list(logits.shape), hint)
    per_row = "pass one class index, or one row of logits of a soft label, per row"
    soft = array(n, k, hint=per_row)
    hard = array(n, dtype=torch.int64, hint=per_row)
    return Signature((array(n, k), soft if labels.is_floating_point() else hard))


_run = plain("softmax_scores", _declare)


class SoftmaxScores(NamedTuple):
    """One number per sample, each ``[N]`` in the dtype of the logits.

    Below, p is the softmax of the logits and t the distribution of the label.

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
    if logits.ndim == 2:
        require_labels("softmax_scores", "labels", labels, logits.shape[1])
    return SoftmaxScores(*cast("Tensor", _run(logits.contiguous(), labels.contiguous())))
