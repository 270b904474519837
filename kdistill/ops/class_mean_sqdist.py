"""Squared distance between the class means of real and synthetic features: the objective of DM.

Symbols: N real rows, M synthetic rows, F features, K classes.  Derivation and traffic:
    docs/ops/class_mean_sqdist.md.
"""

from typing import Any, cast

import torch
from torch import Tensor

from kdistill.backends.reference import class_mean_sqdist as _reference
from kdistill.ops._layout import (
    Signature,
    array,
    contiguous,
    records_graph,
    require,
    require_constant,
    require_labels,
    sizes_of,
)
from kdistill.ops._registry import fast_apply, plain, register

GRAD_ORDER = 2


def _declare_fwd(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None,
) -> Signature:
    flatten = "flatten features with x.flatten(1)"
    n, f = sizes_of(real, "real [N, F]", flatten)
    m, _ = sizes_of(syn, "syn [M, F]", flatten)
    require(num_classes >= 0, "num_classes from 0 on", num_classes, "count the classes")
    labels = [array(k, dtype=torch.int64, hint="pass one class index per row") for k in (n, m)]
    diff = array(num_classes, f, hint="pass one row of weights per class")
    inputs = (array(n, f), labels[0], array(m, f, hint=flatten), labels[1], diff)
    return Signature(inputs, (array(), diff))


def _declare_bwd(
    grad: Tensor, diff: Tensor, weights: Tensor | None, labels: Tensor, sign: float
) -> Signature:
    k, f = sizes_of(diff, "diff [K, F]")
    (n,) = sizes_of(labels, "labels [N]")
    inputs = (array(), array(k, f), array(k, f), array(n, dtype=torch.int64))
    return Signature(inputs, (array(n, f),))


_fwd = register("class_mean_sqdist", _declare_fwd, outputs=2)
_bwd = register("class_mean_sqdist_bwd", _declare_bwd)
_value_and_grad = plain("class_mean_sqdist_and_grad", _declare_fwd)


class _ClassMeanSqdist(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor]", _fwd(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.num_classes, weights = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, weights, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, weights, diff = ctx.saved_tensors
        bwd: Any = _bwd
        # being differentiated again: from the inputs, never from what the kernel saved
        if torch.is_grad_enabled():
            inputs = (*tensors, ctx.num_classes, weights)
            _, diff = _reference.class_mean_sqdist(*inputs)
            bwd = _reference.class_mean_sqdist_bwd
        _, real_labels, _, syn_labels = tensors
        wants_real, _, wants_syn, *_ = ctx.needs_input_grad
        grad_real = bwd(grad, diff, weights, real_labels, 1.0) if wants_real else None
        grad_syn = bwd(grad, diff, weights, syn_labels, -1.0) if wants_syn else None
        return grad_real, None, grad_syn, None, None, None


_apply = fast_apply(_ClassMeanSqdist)


def class_mean_sqdist(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Return ``sum_c |w_c * (mean_c(real) - mean_c(syn))|^2``.

    Args:
        real: Features of the real rows, ``[N, F]``, float32 or float64.
        real_labels: Class of each real row, int64 ``[N]``, in any order.
        syn: Features of the synthetic rows, ``[M, F]``, same dtype and device as ``real``.
        syn_labels: Class of each synthetic row, int64 ``[M]``.
        num_classes: Number of classes, K.  A class that is absent on either side contributes 0.
        weights: ``[K, F]``, multiplies the difference inside the square (class-relevant distances);
            a constant.

    Returns:
        A scalar in the squared unit of the features.  Differentiable twice in ``syn`` and, where it
        requires grad, in ``real``.

    Raises:
        ShapeError: A shape, dtype or device does not fit, or a label lies outside ``0..K-1`` (on a
            GPU such a row is left out instead: checking would stop the stream).
        NotDifferentiableError: ``weights`` requires grad.

    Cost: ``(N + M + 5*K)*F`` flops; reads ``(N + M)*F`` elements once and writes ``K*F``; the
        backward writes ``M*F`` (and ``N*F`` for ``real``).

    References: Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023, eq. 5.
    """
    require_constant("class_mean_sqdist", weights=weights)
    require_labels("class_mean_sqdist", "real_labels", real_labels, num_classes)
    require_labels("class_mean_sqdist", "syn_labels", syn_labels, num_classes)
    rows = contiguous(real, real_labels, syn, syn_labels)
    forward = _apply if records_graph(real, syn) else _fwd
    return cast("Tensor", forward(*rows, num_classes, *contiguous(weights))[0])


def class_mean_sqdist_and_grad(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the value and its gradient in ``syn`` without an autograd graph.

    The arguments are those of ``class_mean_sqdist``, all tensors contiguous.

    Cost: one pass: reads ``(N + M)*F`` elements once and writes ``(K + M)*F``.
    """
    with torch.no_grad():
        results = _value_and_grad(real, real_labels, syn, syn_labels, num_classes, weights)
    return cast("tuple[Tensor, Tensor]", results)
