"""The public ops: fused kernels with a reference, and the choice of backend."""

from kdistill.ops._capture import capture
from kdistill.ops._registry import (
    AUTOMATIC_ORDER,
    BACKENDS,
    FASTEST,
    automatic_order,
    fast_apply,
    implementation,
    op_of,
    requested_backend,
    use_backend,
)
from kdistill.ops.class_mean_sqdist import class_mean_sqdist
from kdistill.ops.conv_grad_sqnorm import conv_grad_sqnorm
from kdistill.ops.diff_augment import diff_augment
from kdistill.ops.filtered_lrelu import filtered_lrelu
from kdistill.ops.fir_bias_act import fir_bias_act
from kdistill.ops.group_norm_silu import group_norm_silu
from kdistill.ops.norm_act_pool import norm_act_pool
from kdistill.ops.row_cosine_distance import row_cosine_distance
from kdistill.ops.softmax_scores import SoftmaxScores, softmax_scores
from kdistill.ops.step_with_dots import step_with_dots
from kdistill.ops.styled_conv import styled_conv
from kdistill.ops.trajectory_loss import trajectory_loss
from kdistill.ops.winograd_conv import winograd_conv

__all__ = [
    "AUTOMATIC_ORDER",
    "BACKENDS",
    "FASTEST",
    "SoftmaxScores",
    "automatic_order",
    "capture",
    "class_mean_sqdist",
    "conv_grad_sqnorm",
    "diff_augment",
    "fast_apply",
    "filtered_lrelu",
    "fir_bias_act",
    "group_norm_silu",
    "implementation",
    "norm_act_pool",
    "op_of",
    "requested_backend",
    "row_cosine_distance",
    "softmax_scores",
    "step_with_dots",
    "styled_conv",
    "trajectory_loss",
    "use_backend",
    "winograd_conv",
]
