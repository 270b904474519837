"""Difficulty of every sample for a set of trained networks, by which data selection ranks.

Symbols: K checkpoints, P parameters, N samples, C channels, S their side, classes.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kdistill.engine.layers import check_labels
from kdistill.engine.students import Student
from kdistill.errors import ConfigError, ShapeError, did_you_mean
from kdistill.ops.softmax_scores import softmax_scores

METRICS = ("el2n", "grand", "grand_last", "loss", "margin", "entropy", "error")
SCORE_BATCH = 256


@runtime_checkable
class ImageSource(Protocol):
    """Images that need not be in memory: ``source[a:b]`` is a tensor ``[b - a, C, S, S]``."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Tensor: ...


@torch.no_grad()
def sample_scores(
    student: Student,
    thetas: Tensor,
    images: Tensor | ImageSource,
    labels: Tensor,
    metrics: Sequence[str] = ("el2n",),
    *,
    batch_size: int = SCORE_BATCH,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Return the difficulty of every sample, the mean over the checkpoints; larger is harder.

    With p the softmax of a checkpoint's logits, t the target (one-hot, or softmax(z)) and l the
    sample's own cross-entropy:

    - ``"el2n"``: ``|p - t|``, the norm of the error vector.
    - ``"grand"``: ``|dl/dtheta|`` over all parameters; no per-sample gradient is stored.
    - ``"grand_last"``: ``|dl/d(weight, bias)|`` of the last layer, ``|p - t| sqrt(1 +
      |features|^2)``.
    - ``"loss"``: l in nats.
    - ``"margin"``: largest other probability minus that of the label's class.
    - ``"entropy"``: of p, in nats.
    - ``"error"``: 0 where the label's class has the largest logit, else 1; so the share of
      checkpoints that are wrong.

    Args:
        student: The network.
        thetas: Checkpoints ``[K, P]``, or one ``[P]``, float32 or float64.
        images: Normalised, ``[N, C, S, S]`` on any device, or an ``ImageSource``; every batch is
            read once and converted like ``thetas``.
        labels: int64 ``[N]``, or float LOGITS z ``[N, classes]`` of soft labels.
        metrics: Names from above.
        batch_size: Images at a time.  Scores do not depend on it beyond rounding, except under
            batch statistics.
        on_batch: Called with (samples done, N) after every batch.

    Returns:
        For every metric ``[N]`` in the dtype of ``thetas`` on the device of ``labels``.  Not
        differentiable.  Same arguments,
        thread count and machine: same bits.

    Raises:
        ConfigError: Unknown metric; or ``"grand"`` under batch statistics, where no sample has a
            gradient of its own.
        ShapeError: Checkpoints, images or labels do not fit the student.

    Cost: K forward passes over N images; K backward passes more for ``"grand"``.  Memory of one
        batch beside the result.

    References: EL2N and GraNd: Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS
        2021; the last layer's:
    Guo, Zhao and Bai, DeepCore, DEXA 2022.
    """
    names = _checked(metrics)
    thetas = thetas[None] if thetas.ndim == 1 else thetas
    count = len(images)
    if thetas.ndim != 2 or not len(thetas) or batch_size < 1:
        raise ShapeError(
            "sample_scores: expected thetas [K, P] with K >= 1 and batch_size >= 1, got "
            f"{list(thetas.shape)} and {batch_size}; pass one row per checkpoint"
        )
    check_labels("sample_scores", labels, (count,), student.classes)
    sums = {
        name: thetas.new_zeros(count, dtype=torch.float64, device=labels.device) for name in names
    }
    want = [kind for name, kind in (("grand", "all"), ("grand_last", "last")) if name in names]
    for start in range(0, count, batch_size):
        rows = slice(start, min(start + batch_size, count))
        batch, targets = images[rows].to(thetas), labels[rows].to(thetas.device)
        targets = targets.to(thetas.dtype) if targets.is_floating_point() else targets
        for theta in thetas:
            for name, value in _scores(student, theta, batch, targets, names, want).items():
                sums[name][rows] += value.to(labels.device)
        if on_batch is not None:
            on_batch(rows.stop, count)
    return {name: (total / len(thetas)).to(thetas.dtype) for name, total in sums.items()}


def _scores(
    student: Student,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    want: Sequence[str],
) -> dict[str, Tensor]:
    """Return the scores of one batch for one checkpoint, float64."""
    grads = student.sample_grads(theta, images, labels, want=want)
    statistics = softmax_scores(grads.logits, labels)
    scores: dict[str, Tensor] = {"error": 1.0 - statistics.correct}
    scores |= {name: getattr(statistics, name) for name in ("el2n", "loss", "margin", "entropy")}
    if grads.all is not None:
        scores["grand"] = grads.all.sqrt()
    if grads.last is not None:
        scores["grand_last"] = grads.last.sqrt()
    return {name: scores[name].double() for name in names}


def _checked(metrics: Sequence[str]) -> tuple[str, ...]:
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for name in names:
        if name not in METRICS:
            raise ConfigError(
                f"sample_scores: expected a known metric, got '{name}'; "
                f"{did_you_mean(name, list(METRICS))}"
            )
    return tuple(dict.fromkeys(names))
