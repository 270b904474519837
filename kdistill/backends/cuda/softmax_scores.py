"""softmax_scores through csrc/cuda/softmax_scores.cu."""

from functools import partial

from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cuda")


def softmax_scores(logits: Tensor, labels: Tensor) -> Tensor:
    n, k = logits.shape
    out, is_soft = logits.new_empty((5, n)), labels.is_floating_point()
    run = _native.kernel("_cuda", "softmax_scores", logits.dtype, logits.device)
    addresses = (0, labels.data_ptr()) if is_soft else (labels.data_ptr(), 0)
    with _native.stream_of(logits) as stream:
        run(logits.data_ptr(), *addresses, out.data_ptr(), n, k, stream)
    return out
