// Every CUDA kernel's launcher, one line each.
#pragma once
#include <cstdint>

#include "common/cuda.hpp"
#include "common/instantiate.hpp"

namespace kd::cuda {

template <typename T>
void class_mean_sqdist(const T* real, const int64_t* real_order, const int64_t* real_offsets,
                       const T* syn, const int64_t* syn_order, const int64_t* syn_offsets,
                       const T* weights, T* value, T* diff, T* partials, int64_t f,
                       int64_t num_classes, cudaStream_t stream);
template <typename T>
void class_mean_sqdist_bwd(const T* table, const int64_t* labels, T* out, int64_t n, int64_t f,
                           int64_t num_classes, cudaStream_t stream);
template <typename T>
void conv_grad_sqnorm(const T* gx, const T* gg, double* out, double* partials, int64_t n, int64_t H,
                      int64_t W, int64_t padding, cudaStream_t stream);
template <typename T>
void diff_augment(const T* images, const double* params, const int64_t* index, T* out,
                  double* partials, int64_t n, int64_t c, int64_t h, int64_t w, int64_t sets,
                  bool align_corners, bool linear, cudaStream_t stream);
template <typename T>
void diff_augment_bwd(const T* grad, const double* params, const int64_t* index, T* out,
                      double* partials, int64_t n, int64_t c, int64_t h, int64_t w, int64_t sets,
                      bool align_corners, cudaStream_t stream);
template <typename T>
void filtered_lrelu(const T* x, const T* bias, const T* up_taps, const T* down_taps, T* out,
                    uint8_t* mask, int64_t n, int64_t c, int64_t h, int64_t w, int64_t R, int64_t S,
                    int64_t oh, int64_t ow, int64_t t, int64_t s, int64_t up, int64_t down,
                    int64_t left, int64_t above, double slope, double gain, double limit,
                    cudaStream_t stream);
template <typename T>
void filtered_lrelu_bwd(const T* grad, const uint8_t* mask, const T* up_taps, const T* down_taps,
                        T* dx, T* dbias, T* partials, int64_t n, int64_t c, int64_t h, int64_t w,
                        int64_t R, int64_t S, int64_t oh, int64_t ow, int64_t t, int64_t s,
                        int64_t up, int64_t down, int64_t left, int64_t above, double slope,
                        double gain, cudaStream_t stream);
template <typename T>
void fir_bias_act(const T* x, const T* scale, const T* bias, const T* noise, const T* taps, T* out,
                  int64_t n, int64_t c, int64_t h, int64_t w, int64_t noise_rows, double slope,
                  double gain, double limit, cudaStream_t stream);
template <typename T>
void fir_bias_act_bwd(const T* grad, const T* out, const T* x, const T* scale, const T* taps, T* dx,
                      T* dscale, T* dbias, T* dnoise, T* of_tiles, T* partials, int64_t n,
                      int64_t c, int64_t h, int64_t w, int64_t noise_rows, double slope,
                      double gain, double limit, cudaStream_t stream);
template <typename T>
void group_norm_silu(const T* x, const T* weight, const T* bias, const T* modulation, T* out,
                     T* mean, T* rstd, int64_t n, int64_t c, int64_t pixels, int64_t groups,
                     double eps, cudaStream_t stream);
template <typename T>
void group_norm_silu_bwd(const T* grad, const T* x, const T* weight, const T* bias,
                         const T* modulation, const T* mean, const T* rstd, T* dx, T* dweight,
                         T* dbias, T* dmodulation, T* partials, int64_t n, int64_t c,
                         int64_t pixels, int64_t groups, cudaStream_t stream);
template <typename T>
void norm_act_pool(const T* x, const T* weight, const T* bias, T* out, T* mean, T* rstd, int64_t n,
                   int64_t c, int64_t h, int64_t w, int64_t groups, double eps,
                   cudaStream_t stream);
template <typename T>
void norm_act_pool_bwd(const T* grad, const T* x, const T* weight, const T* bias, const T* mean,
                       const T* rstd, T* dx, T* dweight, T* dbias, T* partials, int64_t n,
                       int64_t c, int64_t h, int64_t w, int64_t groups, cudaStream_t stream);
template <typename T>
void softmax_scores(const T* logits, const int64_t* labels, const T* soft, T* out, int64_t n,
                    int64_t k, cudaStream_t stream);
template <typename T>
void step_with_dots(const T* y, const T* x, const T* step, T* out, double* dots, double* partials,
                    int64_t g, int64_t p, bool step_per_row, cudaStream_t stream);
template <typename T>
void trajectory_loss(const T* final, const T* target, const T* start, const T* mask, double* loss,
                     T* grad, double* denominator, double* partials, int64_t g, int64_t p,
                     bool mask_per_row, cudaStream_t stream);
template <typename T>
void row_cosine_distance(const T* syn, const T* real, const int64_t* rows, const T* mask,
                         double* loss, T* grad, double* values, int64_t g, int64_t p, int64_t r,
                         bool mask_per_group, double eps, cudaStream_t stream);
template <typename T>
void norm_act_pool_tangent(const T* x, const T* x_dot, const T* weight, const T* weight_dot,
                           const T* bias, const T* bias_dot, T* out, T* out_dot, T* mean, T* rstd,
                           T* x_dot_mean, T* x_dot_proj, int64_t n, int64_t c, int64_t h, int64_t w,
                           int64_t groups, double eps, cudaStream_t stream);
template <typename T>
void norm_act_pool_bwd_tangent(const T* grad, const T* grad_dot, const T* x, const T* x_dot,
                               const T* weight, const T* weight_dot, const T* bias, const T* mean,
                               const T* rstd, const T* x_dot_mean, const T* x_dot_proj, T* dx,
                               T* dx_dot, T* dweight, T* dweight_dot, T* dbias, T* dbias_dot,
                               T* partials, int64_t n, int64_t c, int64_t h, int64_t w,
                               int64_t groups, cudaStream_t stream);

}  // namespace kd::cuda
