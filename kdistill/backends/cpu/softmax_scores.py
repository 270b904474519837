"""softmax_scores through csrc/cpu/softmax_scores.cpp."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native

supports = partial(_native.refusal, "_cpu")


def softmax_scores(logits: Tensor, labels: Tensor) -> Tensor:
    n, k = logits.shape
    out, is_soft = logits.new_empty((5, n)), labels.is_floating_point()
    run = _native.kernel("_cpu", "softmax_scores", logits.dtype)
    addresses = (0, labels.data_ptr()) if is_soft else (labels.data_ptr(), 0)
    run(logits.data_ptr(), *addresses, out.data_ptr(), n, k, torch.get_num_threads())
    return out
