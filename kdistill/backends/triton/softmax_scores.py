"""softmax_scores in Triton."""

import triton
import triton.language as tl
from torch import Tensor

_MOST = 1024  # columns at a time


@triton.jit
def _load_row(row_ptr, j, K):
    return tl.load(row_ptr + j, mask=j < K, other=float("-inf"))  # [BLOCK]


# one kernel is one function: its parts share what is in registers
@triton.jit
def _softmax_scores_kernel(
    logits_ptr, labels_ptr, out_ptr, N, K, SOFT: tl.constexpr, BLOCK: tl.constexpr
):
    # one program per row; int64 because N*K may pass 2^31.  Of a soft label's equal largest logits
    # the first is its class
    i = tl.program_id(0).to(tl.int64)
    row, columns = logits_ptr + i * K, tl.arange(0, BLOCK)
    label_row, label_most = labels_ptr + i * K, 0.0
    own = tl.zeros((), tl.int64)
    if SOFT:
        top = tl.zeros((BLOCK,), logits_ptr.dtype.element_ty) + float("-inf")
        for j in range(0, K, BLOCK):
            top = tl.maximum(top, _load_row(label_row, j + columns, K))
        label_most = tl.max(top, axis=0)
        first = tl.zeros((BLOCK,), tl.int64) + K
        for j in range(0, K, BLOCK):
            z = _load_row(label_row, j + columns, K)
            first = tl.minimum(
                first,
                tl.where((z == label_most) & (j + columns < K), (j + columns).to(tl.int64), K),
            )
        own = tl.min(first, axis=0)
    else:
        own = tl.load(labels_ptr + i)
    inside = (own >= 0) & (own < K)
    own = tl.where(inside, own, 0)
    own_logit = tl.load(row + own)
    top = tl.zeros((BLOCK,), logits_ptr.dtype.element_ty) + float("-inf")
    before = tl.zeros((BLOCK,), tl.int32)  # equals of the own logit in front of it
    for j in range(0, K, BLOCK):
        a = _load_row(row, j + columns, K)
        top = tl.maximum(top, tl.where(j + columns == own, float("-inf"), a))
        before += ((j + columns < own) & (a == own_logit)).to(tl.int32)
    other = tl.max(top, axis=0)
    most = tl.maximum(own_logit, other)
    rests = tl.zeros((BLOCK,), logits_ptr.dtype.element_ty)
    squares, moments, wholes = rests, rests, rests
    for j in range(0, K, BLOCK):
        shifted = _load_row(row, j + columns, K) - most
        e = tl.exp(shifted)
        moments += e * tl.maximum(shifted, -1e30)  # 0 where e is, not 0 * inf
        e = tl.where(j + columns == own, 0.0, e)
        rests += e
        squares += e * e
        if SOFT:
            wholes += tl.exp(_load_row(label_row, j + columns, K) - label_most)
    rest, own_e, other_e = tl.sum(rests, axis=0), tl.exp(own_logit - most), tl.exp(other - most)
    total = rest + own_e
    # log(1 + rest) where the own class is the largest: exact for a small rest by the quotient of
    # Goldberg and Kahan
    one_more = 1.0 + rest
    log_more = tl.where(
        one_more == 1.0,
        rest,
        tl.log(one_more) * (rest / tl.where(one_more == 1.0, 1.0, one_more - 1.0)),
    )
    log_sum = tl.where(own_e == 1.0, log_more, tl.log(total))
    loss, distance = (
        log_sum - (own_logit - most),
        tl.sqrt(tl.sum(squares, axis=0) + rest * rest) / total,
    )
    if SOFT:
        whole = tl.sum(wholes, axis=0)
        losses, distances = (
            tl.zeros((BLOCK,), logits_ptr.dtype.element_ty),
            tl.zeros((BLOCK,), logits_ptr.dtype.element_ty),
        )
        for j in range(0, K, BLOCK):
            t = tl.exp(_load_row(label_row, j + columns, K) - label_most) / whole
            shifted = tl.where(j + columns < K, _load_row(row, j + columns, K) - most, 0.0)
            apart = tl.where(j + columns < K, tl.exp(shifted) / total - t, 0.0)
            losses += tl.where(t == 0.0, 0.0, t * (log_sum - shifted))
            distances += apart * apart
        loss, distance = tl.sum(losses, axis=0), tl.sqrt(tl.sum(distances, axis=0))
    correct = (
        inside
        & (total == total)
        & ((own_logit > other) | ((own_logit == other) & (tl.sum(before, axis=0) == 0)))
    )
    missing = tl.where(inside, 0.0, float("nan"))
    tl.store(out_ptr + i, loss + missing)
    tl.store(out_ptr + N + i, distance + missing)
    tl.store(out_ptr + 2 * N + i, (other_e - own_e) / total + missing)
    tl.store(out_ptr + 3 * N + i, log_sum - tl.sum(moments, axis=0) / total + missing)
    tl.store(out_ptr + 4 * N + i, tl.where(correct, 1.0, 0.0))


def softmax_scores(logits: Tensor, labels: Tensor) -> Tensor:
    n, k = logits.shape
    out = logits.new_empty((5, n))
    if n:
        block = min(triton.next_power_of_2(k), _MOST)
        _softmax_scores_kernel[(n,)](
            logits, labels, out, n, k, SOFT=labels.is_floating_point(), BLOCK=block
        )
    return out
