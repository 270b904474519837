// out = avg_pool2d(relu((x - mean) * rstd * weight + bias), 2) with the statistics of each image and channel, and its backward.
//   x, dx [n, h, w, c], out, grad [n, h/2, w/2, c], weight, bias, dweight, dbias [groups, c], mean, rstd [n, c]: row-major,
//   contiguous, not overlapping; image i uses row i / (n / groups).  An odd last row or column is not pooled.
// One block per image and 32 channels; a warp spans the channels of a pixel, so that every access is coalesced, and the warps
// share the pixels.  The second look at x comes from L2.  All sums have a fixed order.
// Truth: kdistill/backends/reference/norm_act_pool.py, derivation: docs/ops/norm_act_pool.md
#include "common/cuda.hpp"
#include "cuda/ops.hpp"

namespace kd::cuda {
namespace {

constexpr int kLanes = 32;                     // channels of a block
constexpr int kChunk = 8;                      // pixels that a thread loads at once
constexpr int kFewWarps = 8, kManyWarps = 16;  // of a block; many keep few blocks in flight, whose images stay in L2
constexpr int64_t kFewPixels = kFewWarps * kChunk * 4;

struct Geometry {
  int64_t c, h, w, images;  // images that share a row of weight and bias

  // The top left pixel of pooling window j of an image; in 32 bits, where a division is cheap.
  __device__ int64_t first_pixel(int j) const {
    const int across = int(w / 2);
    return 2 * (j / across) * w + 2 * (j % across);
  }
  __device__ int windows() const { return int((h / 2) * (w / 2)); }
};

// Mean and sum of squared deviations of `seen` values.
template <typename T>
struct Moments {
  T mean = 0, squares = 0, seen = 0;

  __device__ void merge(T other_mean, T other_squares, T count) {  // Chan, Golub, LeVeque 1983
    if (count == T(0)) return;
    const T share = count / (seen + count), step = other_mean - mean;
    mean += step * share;
    squares += other_squares + step * step * seen * share;
    seen += count;
  }
};

// The pixels of chunks first, first + stride, ... of an image, in the order of the chunks.
template <typename T>
__device__ Moments<T> moments_of_thread(const T* x, int64_t pixels, int64_t c, int first, int stride) {
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

// A quarter of the activation of a pixel is relu(d * scale + shift) with d = x - mean; folding the mean into the shift would lose
// digits where it is large.
template <typename T>
struct Affine {
  T scale, shift;

  __device__ Affine(T weight, T bias, T rstd) : scale(T(0.25) * weight * rstd), shift(T(0.25) * bias) {}
  __device__ T operator()(T d) const { return d * scale + shift; }
};

template <typename T>
__device__ T relu(T y) {
  return y < T(0) ? T(0) : y;  // a NaN stays
}

template <typename T, int kWarps>
__global__ void __launch_bounds__(kLanes* kWarps)
    norm_act_pool_fwd_kernel(const T* x, const T* weight, const T* bias, T* out, T* mean, T* rstd, Geometry g, T eps) {
  __shared__ T partial[3][kWarps][kLanes], block_mean[kLanes], block_rstd[kLanes];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t tiles = ceil_div(g.c, kLanes), image = blockIdx.x / tiles, k = blockIdx.x % tiles * kLanes + tx;
  const bool inside = k < g.c;
  const T* from = x + image * g.h * g.w * g.c + k;
  Moments<T> m;
  if (inside) m = moments_of_thread(from, g.h * g.w, g.c, ty, kWarps);
  partial[0][ty][tx] = m.mean;
  partial[1][ty][tx] = m.squares;
  partial[2][ty][tx] = m.seen;
  __syncthreads();
  if (ty == 0 && inside) {
    Moments<T> all;
    for (int i = 0; i < kWarps; ++i) all.merge(partial[0][i][tx], partial[1][i][tx], partial[2][i][tx]);
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

// With h = grad where the activation is positive, else 0:  dx = scale * h + slope * (x - mean) + offset.
template <typename T, int kWarps>
__global__ void __launch_bounds__(kLanes* kWarps)
    norm_act_pool_bwd_kernel(const T* grad, const T* x, const T* weight, const T* bias, const T* mean, const T* rstd, T* dx,
                             T* partials, int64_t n, Geometry g) {
  __shared__ T partial[2][kWarps][kLanes], block_slope[kLanes], block_offset[kLanes];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t tiles = ceil_div(g.c, kLanes), image = blockIdx.x / tiles, k = blockIdx.x % tiles * kLanes + tx;
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
    for (int i = 0; i < 4; ++i) to[first + at[i]] = (affine(d[i]) > T(0) ? above : T(0)) + (d[i] * slope + offset);
  }
  const int64_t last = g.h % 2 * g.w, right = g.w % 2 * (g.h - g.h % 2);  // pixels outside every window
  for (int64_t j = ty; j < last + right; j += kWarps) {
    const int64_t pixel = j < last ? (g.h - 1) * g.w + j : (j - last) * g.w + g.w - 1;
    to[pixel * g.c] = (from[pixel * g.c] - mu) * slope + offset;
  }
}

// dweight and dbias from the partials [2, n, c] of the images.
template <typename T>
__global__ void norm_act_pool_sum_kernel(const T* partials, T* dweight, T* dbias, int64_t n, Geometry g) {
  __shared__ double partial[kFewWarps][kLanes];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t tiles = ceil_div(g.c, kLanes), group = blockIdx.x / tiles, k = blockIdx.x % tiles * kLanes + tx;
  for (int64_t which = 0; which < 2; ++which) {
    double sum = 0;
    for (int64_t i = group * g.images + ty; k < g.c && i < (group + 1) * g.images; i += kFewWarps)
      sum += double(partials[(which * n + i) * g.c + k]);
    __syncthreads();  // the sums of weight have been read
    partial[ty][tx] = sum;
    __syncthreads();
    if (ty == 0 && k < g.c) {
      for (int i = 1; i < kFewWarps; ++i) sum += partial[i][tx];
      (which == 0 ? dweight : dbias)[group * g.c + k] = T(sum);
    }
  }
}

void check(int64_t n, int64_t c, int64_t h, int64_t w, int64_t groups) {
  KD_CHECK(n >= 0 && c >= 0 && h > 0 && w > 0, "norm_act_pool: expected n, c >= 0 and h, w > 0");
  KD_CHECK(groups > 0 && n % groups == 0, "norm_act_pool: expected n divisible by groups");
  KD_CHECK(h < (int64_t{1} << 31) / w, "norm_act_pool: expected h * w below 2^31");
  KD_CHECK(ceil_div(c, kLanes) * (n > groups ? n : groups) < (int64_t{1} << 31),
           "norm_act_pool: expected n * ceil(c / 32) below 2^31; split the images");
}

}  // namespace

template <typename T>
void norm_act_pool(const T* x, const T* weight, const T* bias, T* out, T* mean, T* rstd, int64_t n, int64_t c, int64_t h,
                   int64_t w, int64_t groups, double eps, cudaStream_t stream) {
  check(n, c, h, w, groups);
  if (n == 0 || c == 0) return;  // an empty grid is a launch error
  const Geometry g{c, h, w, n / groups};
  const dim3 grid(n * ceil_div(c, kLanes));
  if (h * w <= kFewPixels) {
    KD_LAUNCH((norm_act_pool_fwd_kernel<T, kFewWarps>), grid, dim3(kLanes, kFewWarps), 0, stream, x, weight, bias, out, mean,
              rstd, g, T(eps));
  } else {
    KD_LAUNCH((norm_act_pool_fwd_kernel<T, kManyWarps>), grid, dim3(kLanes, kManyWarps), 0, stream, x, weight, bias, out, mean,
              rstd, g, T(eps));
  }
}

template <typename T>
void norm_act_pool_bwd(const T* grad, const T* x, const T* weight, const T* bias, const T* mean, const T* rstd, T* dx, T* dweight,
                       T* dbias, T* partials, int64_t n, int64_t c, int64_t h, int64_t w, int64_t groups, cudaStream_t stream) {
  check(n, c, h, w, groups);
  if (c == 0) return;
  const Geometry g{c, h, w, n / groups};
  const dim3 grid(n * ceil_div(c, kLanes));
  if (n > 0 && h * w <= kFewPixels) {
    KD_LAUNCH((norm_act_pool_bwd_kernel<T, kFewWarps>), grid, dim3(kLanes, kFewWarps), 0, stream, grad, x, weight, bias, mean,
              rstd, dx, partials, n, g);
  } else if (n > 0) {
    KD_LAUNCH((norm_act_pool_bwd_kernel<T, kManyWarps>), grid, dim3(kLanes, kManyWarps), 0, stream, grad, x, weight, bias, mean,
              rstd, dx, partials, n, g);
  }
  const dim3 sums(groups * ceil_div(c, kLanes));
  KD_LAUNCH(norm_act_pool_sum_kernel<T>, sums, dim3(kLanes, kFewWarps), 0, stream, partials, dweight, dbias, n, g);
}

template void norm_act_pool(const float*, const float*, const float*, float*, float*, float*, int64_t, int64_t, int64_t, int64_t,
                            int64_t, double, cudaStream_t);
template void norm_act_pool(const double*, const double*, const double*, double*, double*, double*, int64_t, int64_t, int64_t,
                            int64_t, int64_t, double, cudaStream_t);
template void norm_act_pool_bwd(const float*, const float*, const float*, const float*, const float*, const float*, float*,
                                float*, float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, cudaStream_t);
template void norm_act_pool_bwd(const double*, const double*, const double*, const double*, const double*, const double*, double*,
                                double*, double*, double*, int64_t, int64_t, int64_t, int64_t, int64_t, cudaStream_t);

}  // namespace kd::cuda
