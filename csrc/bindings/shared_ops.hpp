// The ops that have a kernel on the CPU and on CUDA: BIND(op) for each of them.
#pragma once

#define KD_SHARED_OPS(BIND)       \
  BIND(class_mean_sqdist)         \
  BIND(class_mean_sqdist_bwd)     \
  BIND(conv_grad_sqnorm)          \
  BIND(diff_augment)              \
  BIND(diff_augment_bwd)          \
  BIND(filtered_lrelu)            \
  BIND(filtered_lrelu_bwd)        \
  BIND(fir_bias_act)              \
  BIND(fir_bias_act_bwd)          \
  BIND(group_norm_silu)           \
  BIND(group_norm_silu_bwd)       \
  BIND(norm_act_pool)             \
  BIND(norm_act_pool_bwd)         \
  BIND(norm_act_pool_bwd_tangent) \
  BIND(norm_act_pool_tangent)     \
  BIND(row_cosine_distance)       \
  BIND(softmax_scores)            \
  BIND(step_with_dots)            \
  BIND(trajectory_loss)
