// out = avg_pool2d(relu((x - mean) * rstd * weight + bias), 2) with the statistics of each image
// and channel, and its backward.
//   x, dx [n, h, w, c], out, grad [n, h/2, w/2, c], weight, bias, dweight, dbias [groups, c], mean,
//   rstd [n, c]: row-major, contiguous, not overlapping; image i uses row i / (n / groups).  An odd
//   last row or column is not pooled.
// One block per image and 32 channels; a warp spans the channels of a pixel, so that every access
// is coalesced, and the warps share the pixels.  The second read of x comes from L2.  All sums have
// a fixed order.
// Truth: kdistill/backends/reference/norm_act_pool.py, derivation: docs/ops/norm_act_pool.md
#include "cuda/norm_act_pool.hpp"
#include "cuda/ops.hpp"

namespace kd::cuda {
namespace {

// The pixels of chunks first, first + stride, ... of an image, in the order of the chunks.
template <typename T>
__device__ Moments<T> moments_of_thread(const T* x, int64_t pixels, int64_t c, int first,
                                        int stride) {
  Moments<T> m;
  for (int64_t p = int64_t{first} * kChunk; p < pixels; p += int64_t{stride} * kChunk) {
    const T* from = x + p * c;
    if (p + kChunk <= pixels) {
      T v[kChunk], mean = 0, squares = 0;
      for (int i = 0; i < kChunk; ++i) v[i] = from[i * c];
      for (int i = 0; i < kChunk; i += 2) mean += v[i] + v[i + 1];
      mean *= T(1.0 / kChunk);
      for (int i = 0; i < kChunk; ++i) squares += (v[i] - mean) * (v[i] - mean);
      m.merge(mean, squares, T(kChunk));
    } else {
      for (; p < pixels; ++p, from += c) m.merge(*from, T(0), T(1));
    }
  }
  return m;
}

template <typename T, int kWarps>
__global__ void __launch_bounds__(kLanes* kWarps)
    norm_act_pool_fwd_kernel(const T* x, const T* weight, const T* bias, T* out, T* mean, T* rstd,
                             Geometry g, T eps) {
  __shared__ T partial[3][kWarps][kLanes], block_mean[kLanes], block_rstd[kLanes];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t tiles = ceil_div(g.c, kLanes), image = blockIdx.x / tiles,
                k = blockIdx.x % tiles * kLanes + tx;
  const bool inside = k < g.c;
  const T* from = x + image * g.h * g.w * g.c + k;
  Moments<T> m;
  if (inside) m = moments_of_thread(from, g.h * g.w, g.c, ty, kWarps);
  partial[0][ty][tx] = m.mean;
  partial[1][ty][tx] = m.squares;
  partial[2][ty][tx] = m.total;
  __syncthreads();
  if (ty == 0 && inside) {
    Moments<T> all;
    for (int i = 0; i < kWarps; ++i)
      all.merge(partial[0][i][tx], partial[1][i][tx], partial[2][i][tx]);
    mean[image * g.c + k] = block_mean[tx] = all.mean;
    rstd[image * g.c + k] = block_rstd[tx] = T(1) / sqrt(all.squares / T(g.h * g.w) + eps);
  }
  __syncthreads();
  if (!inside) return;
  const int64_t row = image / g.images * g.c + k, down = g.w * g.c;
  const int windows = g.windows();
  const Affine<T> affine(weight[row], bias[row], block_rstd[tx]);
  const T mu = block_mean[tx];
  T* to = out + image * windows * g.c + k;
  for (int j = ty; j < windows; j += kWarps) {
    const T* p = from + g.first_pixel(j) * g.c;
    const T upper = relu(affine(p[0] - mu)) + relu(affine(p[g.c] - mu));
    to[j * g.c] = upper + (relu(affine(p[down] - mu)) + relu(affine(p[down + g.c] - mu)));
  }
}

// With h = grad where the activation is positive, else 0:
// dx = scale * h + slope * (x - mean) + offset.
template <typename T, int kWarps>
__global__ void __launch_bounds__(kLanes* kWarps)
    norm_act_pool_bwd_kernel(const T* grad, const T* x, const T* weight, const T* bias,
                             const T* mean, const T* rstd, T* dx, T* partials, int64_t n,
                             Geometry g) {
  __shared__ T partial[2][kWarps][kLanes], block_slope[kLanes], block_offset[kLanes];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t tiles = ceil_div(g.c, kLanes), image = blockIdx.x / tiles,
                k = blockIdx.x % tiles * kLanes + tx;
  const bool inside = k < g.c;
  const int64_t row = image / g.images * g.c + k, down = g.w * g.c;
  const int windows = g.windows();
  const T *from = x + image * g.h * g.w * g.c + k, *up = grad + image * windows * g.c + k;
  const T mu = inside ? mean[image * g.c + k] : T(0), r = inside ? rstd[image * g.c + k] : T(0);
  const Affine<T> affine(inside ? weight[row] : T(0), inside ? bias[row] : T(0), r);
  T h = 0, hd = 0;  // sums of h and of h * (x - mean)
  for (int j = ty; inside && j < windows; j += kWarps) {
    const T* p = from + g.first_pixel(j) * g.c;
    const T d[4] = {p[0] - mu, p[g.c] - mu, p[down] - mu, p[down + g.c] - mu}, above = up[j * g.c];
    for (int i = 0; i < 4; ++i) {
      const T active = affine(d[i]) > T(0) ? above : T(0);
      h += active;
      hd += active * d[i];
    }
  }
  partial[0][ty][tx] = h;
  partial[1][ty][tx] = hd;
  __syncthreads();
  if (ty == 0 && inside) {
    T db = 0, dw = 0;
    for (int i = 0; i < kWarps; ++i) db += partial[0][i][tx], dw += partial[1][i][tx];
    db *= T(0.25);
    dw *= T(0.25) * r;
    const T gain = T(-4) * affine.scale / T(g.h * g.w);
    block_slope[tx] = gain * r * dw;
    block_offset[tx] = gain * db;
    partials[image * g.c + k] = dw;
    partials[(n + image) * g.c + k] = db;
  }
  __syncthreads();
  if (!inside) return;
  const T slope = block_slope[tx], offset = block_offset[tx];
  T* to = dx + image * g.h * g.w * g.c + k;
  for (int j = ty; j < windows; j += kWarps) {
    const int64_t first = g.first_pixel(j) * g.c, at[4] = {0, g.c, down, down + g.c};
    const T above = up[j * g.c] * affine.scale;
    T d[4];
    for (int i = 0; i < 4; ++i) d[i] = from[first + at[i]] - mu;
    for (int i = 0; i < 4; ++i)
      to[first + at[i]] = (affine(d[i]) > T(0) ? above : T(0)) + (d[i] * slope + offset);
  }
  // pixels outside every window
  const int64_t last = g.h % 2 * g.w, right = g.w % 2 * (g.h - g.h % 2);
  for (int64_t j = ty; j < last + right; j += kWarps) {
    const int64_t pixel = j < last ? (g.h - 1) * g.w + j : (j - last) * g.w + g.w - 1;
    to[pixel * g.c] = (from[pixel * g.c] - mu) * slope + offset;
  }
}

}  // namespace

template <typename T>
void norm_act_pool(const T* x, const T* weight, const T* bias, T* out, T* mean, T* rstd, int64_t n,
                   int64_t c, int64_t h, int64_t w, int64_t groups, double eps,
                   cudaStream_t stream) {
  check(n, c, h, w, groups);
  if (n == 0 || c == 0) return;  // an empty grid is a launch error
  const Geometry g{c, h, w, n / groups};
  const dim3 grid(n * ceil_div(c, kLanes));
  if (h * w <= kFewPixels) {
    KD_LAUNCH((norm_act_pool_fwd_kernel<T, kFewWarps>), grid, dim3(kLanes, kFewWarps), 0, stream, x,
              weight, bias, out, mean, rstd, g, T(eps));
  } else {
    KD_LAUNCH((norm_act_pool_fwd_kernel<T, kManyWarps>), grid, dim3(kLanes, kManyWarps), 0, stream,
              x, weight, bias, out, mean, rstd, g, T(eps));
  }
}

template <typename T>
void norm_act_pool_bwd(const T* grad, const T* x, const T* weight, const T* bias, const T* mean,
                       const T* rstd, T* dx, T* dweight, T* dbias, T* partials, int64_t n,
                       int64_t c, int64_t h, int64_t w, int64_t groups, cudaStream_t stream) {
  check(n, c, h, w, groups);
  if (c == 0) return;
  const Geometry g{c, h, w, n / groups};
  const dim3 grid(n * ceil_div(c, kLanes));
  if (n > 0 && h * w <= kFewPixels) {
    KD_LAUNCH((norm_act_pool_bwd_kernel<T, kFewWarps>), grid, dim3(kLanes, kFewWarps), 0, stream,
              grad, x, weight, bias, mean, rstd, dx, partials, n, g);
  } else if (n > 0) {
    KD_LAUNCH((norm_act_pool_bwd_kernel<T, kManyWarps>), grid, dim3(kLanes, kManyWarps), 0, stream,
              grad, x, weight, bias, mean, rstd, dx, partials, n, g);
  }
  const dim3 sums(groups * ceil_div(c, kLanes));
  KD_LAUNCH(norm_act_pool_sum_kernel<T>, sums, dim3(kLanes, kFewWarps), 0, stream, partials,
            dweight, dbias, n, g);
}

KD_INSTANTIATE(norm_act_pool)
KD_INSTANTIATE(norm_act_pool_bwd)

}  // namespace kd::cuda
