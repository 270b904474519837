// Every CPU kernel, one line each, declared in the namespace of every instruction set.
#pragma once
#include <cstdint>

#include "common/instantiate.hpp"

#if defined(KD_HAS_X86_VARIANTS)
#define KD_CPU_OP(name, ...) \
  namespace kd::generic {    \
  template <typename T>      \
  void name(__VA_ARGS__);    \
  }                          \
  namespace kd::avx2 {       \
  template <typename T>      \
  void name(__VA_ARGS__);    \
  }                          \
  namespace kd::avx512 {     \
  template <typename T>      \
  void name(__VA_ARGS__);    \
  }
#else
#define KD_CPU_OP(name, ...) \
  namespace kd::generic {    \
  template <typename T>      \
  void name(__VA_ARGS__);    \
  }
#endif

KD_CPU_OP(class_mean_sqdist, const T* real, const int64_t* real_labels, const T* syn,
          const int64_t* syn_labels, const T* weights, T* value, T* diff, T* grad_syn,
          int64_t* lists, T* partials, int64_t n, int64_t m, int64_t f, int64_t num_classes,
          int threads)
KD_CPU_OP(class_mean_sqdist_bwd, const T* grad, const T* diff, const T* weights,
          const int64_t* labels, T* out, int64_t* counts, T* table, int64_t n, int64_t f,
          int64_t num_classes, double sign, int threads)
KD_CPU_OP(conv_grad_sqnorm, const T* gx, const T* gg, double* out, double* partials, int64_t n,
          int64_t H, int64_t W, int64_t padding, int threads)
KD_CPU_OP(diff_augment, const T* images, const double* params, const int64_t* index, T* out,
          int64_t n, int64_t c, int64_t h, int64_t w, int64_t sets, bool align_corners, bool linear,
          int threads)
KD_CPU_OP(diff_augment_bwd, const T* grad, const double* params, const int64_t* index, T* out,
          int64_t n, int64_t c, int64_t h, int64_t w, int64_t sets, bool align_corners, int threads)
KD_CPU_OP(filtered_lrelu, const T* x, const T* bias, const T* up_taps, const T* down_taps, T* out,
          uint8_t* mask, T* scratch, int64_t n, int64_t c, int64_t h, int64_t w, int64_t R,
          int64_t S, int64_t oh, int64_t ow, int64_t t, int64_t s, int64_t up, int64_t down,
          int64_t left, int64_t above, double slope, double gain, double limit, int64_t tile,
          int64_t tables, int64_t per_thread, int threads)
KD_CPU_OP(filtered_lrelu_bwd, const T* grad, const uint8_t* mask, const T* up_taps,
          const T* down_taps, T* dx, T* dbias, T* partials, T* scratch, int64_t n, int64_t c,
          int64_t h, int64_t w, int64_t R, int64_t S, int64_t oh, int64_t ow, int64_t t, int64_t s,
          int64_t up, int64_t down, int64_t left, int64_t above, double slope, double gain,
          int64_t tile, int64_t tables, int64_t per_thread, int threads)
KD_CPU_OP(fir_bias_act, const T* x, const T* scale, const T* bias, const T* noise, const T* taps,
          T* out, int64_t n, int64_t c, int64_t h, int64_t w, int64_t noise_rows, double slope,
          double gain, double limit, int64_t rows, int threads)
KD_CPU_OP(fir_bias_act_bwd, const T* grad, const T* out, const T* x, const T* scale, const T* taps,
          T* dx, T* dscale, T* dbias, T* dnoise, T* of_images, T* partials, int64_t n, int64_t c,
          int64_t h, int64_t w, int64_t noise_rows, double slope, double gain, double limit,
          int64_t rows, int threads)
KD_CPU_OP(group_norm_silu, const T* x, const T* weight, const T* bias, const T* modulation, T* out,
          T* mean, T* rstd, T* scratch, int64_t n, int64_t c, int64_t pixels, int64_t groups,
          double eps, int threads)
KD_CPU_OP(group_norm_silu_bwd, const T* grad, const T* x, const T* weight, const T* bias,
          const T* modulation, const T* mean, const T* rstd, T* dx, T* dweight, T* dbias,
          T* dmodulation, T* scratch, int64_t n, int64_t c, int64_t pixels, int64_t groups,
          int threads)
KD_CPU_OP(norm_act_pool, const T* x, const T* weight, const T* bias, T* out, T* mean, T* rstd,
          int64_t n, int64_t c, int64_t h, int64_t w, int64_t groups, double eps, int threads)
KD_CPU_OP(norm_act_pool_bwd, const T* grad, const T* x, const T* weight, const T* bias,
          const T* mean, const T* rstd, T* dx, T* dweight, T* dbias, T* partials, int64_t n,
          int64_t c, int64_t h, int64_t w, int64_t groups, int threads)
KD_CPU_OP(styled_conv, const T* x, const T* weight, const T* styles, const T* scale, const T* bias,
          const T* noise, T* y, T* out, T* scratch, int64_t n, int64_t h, int64_t w, int64_t c,
          int64_t k, int64_t noise_rows, double slope, double gain, double limit, int64_t block,
          bool by_panels, int64_t shared, int64_t per_thread, int threads)
KD_CPU_OP(styled_conv_input_bwd, const T* dy, const T* x, const T* weight, const T* styles, T* dx,
          T* dstyles, T* of_tiles, T* scratch, int64_t n, int64_t h, int64_t w, int64_t c,
          int64_t k, bool doubles, int64_t block, bool by_panels, int64_t shared,
          int64_t per_thread, int threads)
KD_CPU_OP(styled_conv_demodulation, const T* weight, const T* styles, T* squares, T* scale,
          int64_t n, int64_t c, int64_t k, int threads)
KD_CPU_OP(styled_conv_demodulation_bwd, T* dscale, const T* scale, const T* weight, const T* styles,
          T* squares, T* dstyles, T* dweight, int64_t n, int64_t c, int64_t k, int threads)
KD_CPU_OP(styled_conv_doubled, const T* x, const T* weight, const T* styles, T* y, T* scratch,
          int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t block, bool by_panels,
          int64_t shared, int64_t per_thread, int threads)
KD_CPU_OP(styled_conv_doubled_weight_grad, const T* x, const T* styles, const T* dy, T* dweight,
          T* scratch, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t block,
          int64_t of_tiles, int64_t of_inputs, int64_t of_outputs, int64_t per_thread, int threads)
KD_CPU_OP(winograd_conv, const T* x0, const T* x1, const T* weight0, const T* weight1, T* y,
          T* scratch, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t padding,
          bool turned, int64_t block, bool by_panels, int64_t shared, int64_t per_thread,
          int threads)
KD_CPU_OP(winograd_conv_weight_grad, const T* x0, const T* x1, const T* scale, const T* dy0,
          const T* dy1, T* dweight, T* scratch, int64_t n, int64_t h, int64_t w, int64_t c,
          int64_t k, int64_t padding, int64_t block, int64_t of_tiles, int64_t of_inputs,
          int64_t of_outputs, int64_t per_thread, int threads)
KD_CPU_OP(softmax_scores, const T* logits, const int64_t* labels, const T* soft, T* out, int64_t n,
          int64_t k, int threads)
KD_CPU_OP(step_with_dots, const T* y, const T* x, const T* step, T* out, double* dots,
          double* partials, int64_t g, int64_t p, bool step_per_row, int threads)
KD_CPU_OP(trajectory_loss, const T* final, const T* target, const T* start, const T* mask,
          double* loss, T* grad, double* denominator, double* partials, int64_t g, int64_t p,
          bool mask_per_row, int threads)
KD_CPU_OP(row_cosine_distance, const T* syn, const T* real, const int64_t* rows, const T* mask,
          double* loss, T* grad, double* values, int64_t g, int64_t p, int64_t r,
          bool mask_per_group, double eps, int threads)
KD_CPU_OP(norm_act_pool_tangent, const T* x, const T* x_dot, const T* weight, const T* weight_dot,
          const T* bias, const T* bias_dot, T* out, T* out_dot, T* mean, T* rstd, T* x_dot_mean,
          T* x_dot_proj, int64_t n, int64_t c, int64_t h, int64_t w, int64_t groups, double eps,
          int threads)
KD_CPU_OP(norm_act_pool_bwd_tangent, const T* grad, const T* grad_dot, const T* x, const T* x_dot,
          const T* weight, const T* weight_dot, const T* bias, const T* mean, const T* rstd,
          const T* x_dot_mean, const T* x_dot_proj, T* dx, T* dx_dot, T* dweight, T* dweight_dot,
          T* dbias, T* dbias_dot, T* partials, int64_t n, int64_t c, int64_t h, int64_t w,
          int64_t groups, int threads)
