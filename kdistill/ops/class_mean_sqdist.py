"""Squared distance between the class means of real and synthetic features: the objective of DM.

Symbols: N real rows, M synthetic rows, F features, K classes.  Derivation and traffic:
    docs/ops/class_mean_sqdist.md.
"""

from typing import Any

import torch
from torch import Tensor

from kdistill.backends.reference import class_mean_sqdist as _reference
from kdistill.errors import NotDifferentiableError, ShapeError
from kdistill.ops._layout import Layout, array, require, sizes_of
from kdistill.ops._registry import check_same_dtype_and_device, fast_apply, plain, register

GRAD_ORDER = 2


def _fake_fwd(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return real.new_empty(()), real.new_empty((num_classes, real.shape[1]))


def _layouts_fwd(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None,
) -> tuple[Layout, ...]:
    (n, f), (m, _) = sizes_of(real, "real [N, F]"), sizes_of(syn, "syn [M, F]")
    require(num_classes >= 0, "num_classes from 0 on", num_classes)
    of_real, of_syn = array(n, dtype=torch.int64), array(m, dtype=torch.int64)
    return array(n, f), of_real, array(m, f), of_syn, array(num_classes, f)


def _layouts_bwd(
    grad: Tensor, diff: Tensor, weights: Tensor | None, labels: Tensor, sign: float
) -> tuple[Layout, ...]:
    k, f = sizes_of(diff, "diff [K, F]")
    (n,) = sizes_of(labels, "labels [N]")
    return array(), array(k, f), array(k, f), array(n, dtype=torch.int64)


_fwd = register(
    "class_mean_sqdist",
    "(Tensor real, Tensor real_labels, Tensor syn, Tensor syn_labels, int num_classes, Tensor? "
    "weights) -> (Tensor, Tensor)",
    fake=_fake_fwd,
    layouts=_layouts_fwd,
)
_bwd = register(
    "class_mean_sqdist_bwd",
    "(Tensor grad, Tensor diff, Tensor? weights, Tensor labels, float sign) -> Tensor",
    fake=lambda grad, diff, weights, labels, sign: diff.new_empty((labels.shape[0], diff.shape[1])),
    layouts=_layouts_bwd,
)
_value_and_grad = plain("class_mean_sqdist_and_grad", _layouts_fwd)


class _ClassMeanSqdist(torch.autograd.Function):
    @staticmethod
    def forward(
        real: Tensor,
        real_labels: Tensor,
        syn: Tensor,
        syn_labels: Tensor,
        num_classes: int,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        value, diff = _fwd(real, real_labels, syn, syn_labels, num_classes, weights)
        return value, diff

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        real, real_labels, syn, syn_labels, num_classes, weights = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.num_classes = num_classes
        ctx.save_for_backward(real, real_labels, syn, syn_labels, weights, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        real, real_labels, syn, syn_labels, weights, diff = ctx.saved_tensors
        if (
            torch.is_grad_enabled()
        ):  # being differentiated again: from the inputs, never from what the kernel saved
            _, diff = _reference.class_mean_sqdist(
                real, real_labels, syn, syn_labels, ctx.num_classes, weights
            )
        bwd = _reference.class_mean_sqdist_bwd if torch.is_grad_enabled() else _bwd
        grad_real = bwd(grad, diff, weights, real_labels, 1.0) if ctx.needs_input_grad[0] else None
        grad_syn = bwd(grad, diff, weights, syn_labels, -1.0) if ctx.needs_input_grad[2] else None
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
        num_classes: K.  A class that is absent on either side contributes 0.
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
        backward writes ``M*F`` (and
    ``N*F`` for ``real``).

    References: Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023, eq. 5.
    """
    if real.ndim != 2 or syn.ndim != 2 or real.shape[1] != syn.shape[1]:
        raise ShapeError(
            f"class_mean_sqdist: expected real [N, F] and syn [M, F], got {list(real.shape)} and "
            f"{list(syn.shape)}; "
            "flatten features with x.flatten(1)"
        )
    check_same_dtype_and_device("class_mean_sqdist", real=real, syn=syn)
    real_labels = _checked_labels(real_labels, real, num_classes, "real_labels")
    syn_labels = _checked_labels(syn_labels, syn, num_classes, "syn_labels")
    if weights is not None:
        weights = _checked_weights(weights, real, num_classes)
    needs_graph = torch.is_grad_enabled() and (real.requires_grad or syn.requires_grad)
    forward = _apply if needs_graph else _fwd
    value, _ = forward(
        real.contiguous(), real_labels, syn.contiguous(), syn_labels, num_classes, weights
    )
    return value  # type: ignore[no-any-return]


def class_mean_sqdist_and_grad(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the value and its gradient in ``syn`` without an autograd graph; for arguments like its.

    Cost: one pass: reads ``(N + M)*F`` elements once and writes ``(K + M)*F``.
    """
    with torch.no_grad():
        return _value_and_grad(real, real_labels, syn, syn_labels, num_classes, weights)  # type: ignore[no-any-return]


def _checked_labels(labels: Tensor, rows: Tensor, num_classes: int, name: str) -> Tensor:
    if (
        labels.ndim != 1
        or labels.shape[0] != rows.shape[0]
        or labels.dtype != torch.int64
        or labels.device != rows.device
    ):
        raise ShapeError(
            f"class_mean_sqdist: expected {name} int64 [{rows.shape[0]}] on {rows.device}, got "
            f"{labels.dtype} "
            f"{list(labels.shape)} on {labels.device}; pass one class index per row"
        )
    if labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
        low, high = (int(v) for v in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ShapeError(
                f"class_mean_sqdist: expected {name} in 0..{num_classes - 1}, got {low}..{high}; "
                "pass the right num_classes"
            )
    return labels.contiguous()


def _checked_weights(weights: Tensor, real: Tensor, num_classes: int) -> Tensor:
    if weights.shape != (num_classes, real.shape[1]):
        raise ShapeError(
            f"class_mean_sqdist: expected weights [{num_classes}, {real.shape[1]}], got "
            f"{list(weights.shape)}; "
            "pass one row of weights per class"
        )
    check_same_dtype_and_device("class_mean_sqdist", real=real, weights=weights)
    if weights.requires_grad:
        raise NotDifferentiableError(
            "class_mean_sqdist: expected constant weights, got some that require grad; detach them"
        )
    return weights.contiguous()
