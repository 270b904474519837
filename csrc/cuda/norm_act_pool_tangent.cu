// The derivative of norm_act_pool and of its backward in a direction, each in one pass with the
// values themselves.
//   x, x_dot, dx, dx_dot [n, h, w, c], out, out_dot, grad, grad_dot [n, h/2, w/2, c], weight, bias
//   and their *_dot [groups, c], mean, rstd, x_dot_mean, x_dot_proj [n, c]: row-major, contiguous,
//   not overlapping; image i uses row i / (n / groups).
// Blocks and the order of sums are those of norm_act_pool.cu, so that the values agree with it.
// Truth: kdistill/backends/reference/norm_act_pool.py, derivation: docs/ops/norm_act_pool.md
#include "cuda/norm_act_pool.hpp"
#include "cuda/ops.hpp"

namespace kd::cuda {
namespace {

// Moments of x, the mean of x_dot, and the sum of products of both deviations.
template <typename T>
struct DualMoments {
  Moments<T> of_x;
  T mean_dot = 0, products = 0;

  __device__ void merge(T other_mean, T other_squares, T other_mean_dot, T other_products,
                        T count) {
    if (count == T(0)) return;
    const T share = count / (of_x.total + count), step_dot = other_mean_dot - mean_dot;
    mean_dot += step_dot * share;
    products += other_products + (other_mean - of_x.mean) * step_dot * of_x.total * share;
    of_x.merge(other_mean, other_squares, count);
  }
};

// The pixels of chunks first, first + stride, ... of an image, in the order of the chunks.
template <typename T>
__device__ DualMoments<T> dual_moments_of_thread(const T* x, const T* x_dot, int64_t pixels,
                                                 int64_t c, int first, int stride) {
  DualMoments<T> m;
  for (int64_t p = int64_t{first} * kChunk; p < pixels; p += int64_t{stride} * kChunk) {
    const T *from = x + p * c, *from_dot = x_dot + p * c;
    if (p + kChunk <= pixels) {
      T v[kChunk], v_dot[kChunk], mean = 0, mean_dot = 0, squares = 0, products = 0;
      for (int i = 0; i < kChunk; ++i) v[i] = from[i * c], v_dot[i] = from_dot[i * c];
      for (int i = 0; i < kChunk; i += 2)
        mean += v[i] + v[i + 1], mean_dot += v_dot[i] + v_dot[i + 1];
      mean *= T(1.0 / kChunk);
      mean_dot *= T(1.0 / kChunk);
      for (int i = 0; i < kChunk; ++i) {
        squares += (v[i] - mean) * (v[i] - mean);
        products += (v[i] - mean) * (v_dot[i] - mean_dot);
      }
      m.merge(mean, squares, mean_dot, products, T(kChunk));
    } else {
      for (; p < pixels; ++p, from += c, from_dot += c) m.merge(*from, T(0), *from_dot, T(0), T(1));
    }
  }
  return m;
}

// A quarter of the derivative of an activation is e * scale + (d * scale_dot + shift_dot) with d =
// x - mean, e = x_dot - its mean.
template <typename T>
struct DualAffine : Affine<T> {
  T scale_dot, shift_dot;

  __device__ DualAffine(T weight, T weight_dot, T bias, T bias_dot, T rstd, T proj)
      : Affine<T>(weight, bias, rstd),
        scale_dot(rstd * (T(0.25) * weight_dot - this->scale * proj)),
        shift_dot(T(0.25) * bias_dot) {}
  __device__ T derivative(T d, T e) const { return e * this->scale + (d * scale_dot + shift_dot); }
};

template <typename T, int kWarps>
__global__ void __launch_bounds__(kLanes* kWarps)
    norm_act_pool_tangent_kernel(const T* x, const T* x_dot, const T* weight, const T* weight_dot,
                                 const T* bias, const T* bias_dot, T* out, T* out_dot, T* mean,
                                 T* rstd, T* x_dot_mean, T* x_dot_proj, Geometry g, T eps) {
  __shared__ T partial[5][kWarps][kLanes], of_block[4][kLanes];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t tiles = ceil_div(g.c, kLanes), image = blockIdx.x / tiles,
                k = blockIdx.x % tiles * kLanes + tx;
  const bool inside = k < g.c;
  const T *from = x + image * g.h * g.w * g.c + k, *from_dot = x_dot + image * g.h * g.w * g.c + k;
  DualMoments<T> m;
  if (inside) m = dual_moments_of_thread(from, from_dot, g.h * g.w, g.c, ty, kWarps);
  partial[0][ty][tx] = m.of_x.mean;
  partial[1][ty][tx] = m.of_x.squares;
  partial[2][ty][tx] = m.mean_dot;
  partial[3][ty][tx] = m.products;
  partial[4][ty][tx] = m.of_x.total;
  __syncthreads();
  if (ty == 0 && inside) {
    DualMoments<T> all;
    for (int i = 0; i < kWarps; ++i)
      all.merge(partial[0][i][tx], partial[1][i][tx], partial[2][i][tx], partial[3][i][tx],
                partial[4][i][tx]);
    const T pixels = T(g.h * g.w), r = T(1) / sqrt(all.of_x.squares / pixels + eps);
    mean[image * g.c + k] = of_block[0][tx] = all.of_x.mean;
    rstd[image * g.c + k] = of_block[1][tx] = r;
    x_dot_mean[image * g.c + k] = of_block[2][tx] = all.mean_dot;
    x_dot_proj[image * g.c + k] = of_block[3][tx] = all.products * (r / pixels);
  }
  __syncthreads();
  if (!inside) return;
  const int64_t row = image / g.images * g.c + k, down = g.w * g.c;
  const int windows = g.windows();
  const DualAffine<T> affine(weight[row], weight_dot[row], bias[row], bias_dot[row],
                             of_block[1][tx], of_block[3][tx]);
  const T mu = of_block[0][tx], mu_dot = of_block[2][tx];
  T *to = out + image * windows * g.c + k, *to_dot = out_dot + image * windows * g.c + k;
  for (int j = ty; j < windows; j += kWarps) {
    const int64_t first = g.first_pixel(j) * g.c, at[4] = {0, g.c, down, down + g.c};
    T y[4], y_dot[4];
    for (int i = 0; i < 4; ++i) {
      const T d = from[first + at[i]] - mu, e = from_dot[first + at[i]] - mu_dot, value = affine(d);
      y[i] = relu(value);
      y_dot[i] = value <= T(0) ? T(0) : affine.derivative(d, e);  // a NaN stays
    }
    to[j * g.c] = (y[0] + y[1]) + (y[2] + y[3]);
    to_dot[j * g.c] = (y_dot[0] + y_dot[1]) + (y_dot[2] + y_dot[3]);
  }
}

// dx = scale * h + slope * d + offset as in norm_act_pool.cu; its derivative is that of every
// factor.
template <typename T>
struct DualLine {
  T slope, offset, slope_dot, offset_dot;
};

template <typename T, int kWarps>
__global__ void __launch_bounds__(kLanes* kWarps)
    norm_act_pool_bwd_tangent_kernel(const T* grad, const T* grad_dot, const T* x, const T* x_dot,
                                     const T* weight, const T* weight_dot, const T* bias,
                                     const T* mean, const T* rstd, const T* x_dot_mean,
                                     const T* x_dot_proj, T* dx, T* dx_dot, T* partials, int64_t n,
                                     Geometry g) {
  __shared__ T partial[5][kWarps][kLanes];
  __shared__ T of_block[4][kLanes];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t tiles = ceil_div(g.c, kLanes), image = blockIdx.x / tiles,
                k = blockIdx.x % tiles * kLanes + tx;
  const bool inside = k < g.c;
  const int64_t row = image / g.images * g.c + k, of = image * g.c + k, down = g.w * g.c,
                start = image * g.h * g.w * g.c + k;
  const int windows = g.windows();
  const T *from = x + start, *from_dot = x_dot + start;
  const T *up = grad + image * windows * g.c + k, *up_dot = grad_dot + image * windows * g.c + k;
  const T mu = inside ? mean[of] : T(0), mu_dot = inside ? x_dot_mean[of] : T(0);
  const T r = inside ? rstd[of] : T(0), proj = inside ? x_dot_proj[of] : T(0);
  const DualAffine<T> affine(inside ? weight[row] : T(0), inside ? weight_dot[row] : T(0),
                             inside ? bias[row] : T(0), T(0), r, proj);
  T h = 0, hd = 0, h_dot = 0, hd_dot = 0, he = 0;  // sums of h, h * d, h_dot, h_dot * d, h * e
  for (int j = ty; inside && j < windows; j += kWarps) {
    const int64_t first = g.first_pixel(j) * g.c, at[4] = {0, g.c, down, down + g.c};
    const T above = up[j * g.c], above_dot = up_dot[j * g.c];
    T d[4], e[4];
    for (int i = 0; i < 4; ++i)
      d[i] = from[first + at[i]] - mu, e[i] = from_dot[first + at[i]] - mu_dot;
    for (int i = 0; i < 4; ++i) {
      const bool positive = affine(d[i]) > T(0);
      const T active = positive ? above : T(0), active_dot = positive ? above_dot : T(0);
      h += active;
      hd += active * d[i];
      h_dot += active_dot;
      hd_dot += active_dot * d[i];
      he += active * e[i];
    }
  }
  partial[0][ty][tx] = h;
  partial[1][ty][tx] = hd;
  partial[2][ty][tx] = h_dot;
  partial[3][ty][tx] = hd_dot;
  partial[4][ty][tx] = he;
  __syncthreads();
  if (ty == 0 && inside) {
    T sum[5] = {0, 0, 0, 0, 0};
    for (int i = 0; i < kWarps; ++i) {
      for (int which = 0; which < 5; ++which) sum[which] += partial[which][i][tx];
    }
    const T turn = r * proj, pixels = T(g.h * g.w);  // turn: minus the derivative of log rstd
    const T db = T(0.25) * sum[0], dw = sum[1] * (T(0.25) * r), db_dot = T(0.25) * sum[2];
    const T dw_dot = T(0.25) * r * (sum[3] + sum[4]) - turn * dw;
    const T gain = T(-4) * affine.scale / pixels, gain_dot = T(-4) * affine.scale_dot / pixels;
    of_block[0][tx] = gain * r * dw;
    of_block[1][tx] = gain * db;
    of_block[2][tx] = r * (gain * dw_dot + (gain_dot - gain * turn) * dw);
    of_block[3][tx] = gain * db_dot + gain_dot * db;
    partials[of] = dw;
    partials[n * g.c + of] = db;
    partials[2 * n * g.c + of] = dw_dot;
    partials[3 * n * g.c + of] = db_dot;
  }
  __syncthreads();
  if (!inside) return;
  const DualLine<T> line{of_block[0][tx], of_block[1][tx], of_block[2][tx], of_block[3][tx]};
  T *to = dx + start, *to_dot = dx_dot + start;
  for (int j = ty; j < windows; j += kWarps) {
    const int64_t first = g.first_pixel(j) * g.c, at[4] = {0, g.c, down, down + g.c};
    const T scaled = up[j * g.c] * affine.scale,
            scaled_dot = up_dot[j * g.c] * affine.scale + up[j * g.c] * affine.scale_dot;
    T d[4], e[4];
    for (int i = 0; i < 4; ++i)
      d[i] = from[first + at[i]] - mu, e[i] = from_dot[first + at[i]] - mu_dot;
    for (int i = 0; i < 4; ++i) {
      const bool positive = affine(d[i]) > T(0);
      to[first + at[i]] = (positive ? scaled : T(0)) + (d[i] * line.slope + line.offset);
      to_dot[first + at[i]] = (positive ? scaled_dot : T(0)) +
                              (e[i] * line.slope + (d[i] * line.slope_dot + line.offset_dot));
    }
  }
  // pixels outside every window
  const int64_t last = g.h % 2 * g.w, right = g.w % 2 * (g.h - g.h % 2);
  for (int64_t j = ty; j < last + right; j += kWarps) {
    const int64_t at = (j < last ? (g.h - 1) * g.w + j : (j - last) * g.w + g.w - 1) * g.c;
    const T d = from[at] - mu, e = from_dot[at] - mu_dot;
    to[at] = d * line.slope + line.offset;
    to_dot[at] = e * line.slope + (d * line.slope_dot + line.offset_dot);
  }
}

}  // namespace

template <typename T>
void norm_act_pool_tangent(const T* x, const T* x_dot, const T* weight, const T* weight_dot,
                           const T* bias, const T* bias_dot, T* out, T* out_dot, T* mean, T* rstd,
                           T* x_dot_mean, T* x_dot_proj, int64_t n, int64_t c, int64_t h, int64_t w,
                           int64_t groups, double eps, cudaStream_t stream) {
  check(n, c, h, w, groups);
  if (n == 0 || c == 0) return;  // an empty grid is a launch error
  const Geometry g{c, h, w, n / groups};
  const dim3 grid(n * ceil_div(c, kLanes));
  if (h * w <= kFewPixels) {
    KD_LAUNCH((norm_act_pool_tangent_kernel<T, kFewWarps>), grid, dim3(kLanes, kFewWarps), 0,
              stream, x, x_dot, weight, weight_dot, bias, bias_dot, out, out_dot, mean, rstd,
              x_dot_mean, x_dot_proj, g, T(eps));
  } else {
    KD_LAUNCH((norm_act_pool_tangent_kernel<T, kManyWarps>), grid, dim3(kLanes, kManyWarps), 0,
              stream, x, x_dot, weight, weight_dot, bias, bias_dot, out, out_dot, mean, rstd,
              x_dot_mean, x_dot_proj, g, T(eps));
  }
}

// partials [4, n, c]: the gradients of weight and bias from each image, and their derivatives.
template <typename T>
void norm_act_pool_bwd_tangent(const T* grad, const T* grad_dot, const T* x, const T* x_dot,
                               const T* weight, const T* weight_dot, const T* bias, const T* mean,
                               const T* rstd, const T* x_dot_mean, const T* x_dot_proj, T* dx,
                               T* dx_dot, T* dweight, T* dweight_dot, T* dbias, T* dbias_dot,
                               T* partials, int64_t n, int64_t c, int64_t h, int64_t w,
                               int64_t groups, cudaStream_t stream) {
  check(n, c, h, w, groups);
  if (c == 0) return;
  const Geometry g{c, h, w, n / groups};
  const dim3 grid(n * ceil_div(c, kLanes));
  if (n > 0 && h * w <= kFewPixels) {
    KD_LAUNCH((norm_act_pool_bwd_tangent_kernel<T, kFewWarps>), grid, dim3(kLanes, kFewWarps), 0,
              stream, grad, grad_dot, x, x_dot, weight, weight_dot, bias, mean, rstd, x_dot_mean,
              x_dot_proj, dx, dx_dot, partials, n, g);
  } else if (n > 0) {
    KD_LAUNCH((norm_act_pool_bwd_tangent_kernel<T, kManyWarps>), grid, dim3(kLanes, kManyWarps), 0,
              stream, grad, grad_dot, x, x_dot, weight, weight_dot, bias, mean, rstd, x_dot_mean,
              x_dot_proj, dx, dx_dot, partials, n, g);
  }
  const dim3 sums(groups * ceil_div(c, kLanes)), block(kLanes, kFewWarps);
  KD_LAUNCH(norm_act_pool_sum_kernel<T>, sums, block, 0, stream, partials, dweight, dbias, n, g);
  KD_LAUNCH(norm_act_pool_sum_kernel<T>, sums, block, 0, stream, partials + 2 * n * c, dweight_dot,
            dbias_dot, n, g);
}

KD_INSTANTIATE(norm_act_pool_tangent)
KD_INSTANTIATE(norm_act_pool_bwd_tangent)

}  // namespace kd::cuda
