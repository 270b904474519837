// out = silu(y), y = (1 + a) * (xhat * weight + bias) + b, with xhat the group-normalised x, and its
// backward.
//   x, out, grad, dx [n, pixels, c], weight, bias, dweight, dbias [c], modulation, dmodulation
//   [n, 2c] (a, then b; null without), mean, rstd [n, groups]: row-major, contiguous, not
//   overlapping.
// One block per image and group, whose second and third read of x come from L1 or L2; a sum of the
// backward over the pixels of a channel has a warp's lane for each channel.  All sums have a fixed
// order.
// Truth: kdistill/backends/reference/group_norm_silu.py, derivation: docs/ops/group_norm_silu.md
#include "cuda/ops.hpp"
#include "cuda/two_sums.hpp"

namespace kd::cuda {
namespace {

constexpr int kLanes = 32, kWarps = 8;  // channels and pixels of a block that sums over pixels

struct Groups {
  int64_t c, pixels, width, groups;

  // Where element e of a group lies in the image.
  __device__ int64_t at(int64_t group, int64_t e) const {
    return e / width * c + group * width + e % width;
  }
};

template <typename T>
__device__ T sigmoid(T z) {
  const T e = exp(z < T(0) ? z : -z);  // a NaN stays
  return z < T(0) ? e / (T(1) + e) : T(1) / (T(1) + e);
}

// y = (x - mean) * factor + shift of one channel of one image
template <typename T>
struct Affine {
  T gain, factor, shift;

  __device__ Affine(const T* weight, const T* bias, const T* modulation, T rstd, int64_t image,
                    int64_t c, int64_t k) {
    const T* row = modulation == nullptr ? nullptr : modulation + image * 2 * c;
    gain = row == nullptr ? T(1) : T(1) + row[k];
    factor = gain * weight[k] * rstd;
    shift = gain * bias[k] + (row == nullptr ? T(0) : row[c + k]);
  }
};

template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    group_norm_silu_fwd_kernel(const T* x, const T* weight, const T* bias, const T* modulation,
                               T* out, T* mean, T* rstd, Groups g, T eps) {
  __shared__ double tile[2][2][kSumWarps], sums[2][2];
  const int64_t image = blockIdx.x / g.groups, group = blockIdx.x % g.groups,
                count = g.pixels * g.width;
  const T* from = x + image * g.pixels * g.c;
  double sum = 0;
  for (int64_t e = threadIdx.x; e < count; e += kSumThreads) sum += double(from[g.at(group, e)]);
  sum_over_block(sum, 0.0, tile[0], sums[0]);
  __syncthreads();
  const T m = T(sums[0][0] / double(count));
  double squares = 0;
  for (int64_t e = threadIdx.x; e < count; e += kSumThreads) {
    const T d = from[g.at(group, e)] - m;
    squares += double(d * d);
  }
  sum_over_block(squares, 0.0, tile[1], sums[1]);
  __syncthreads();
  const T r = T(1) / sqrt(T(sums[1][0] / double(count)) + eps);
  if (threadIdx.x == 0) {
    mean[blockIdx.x] = m;
    rstd[blockIdx.x] = r;
  }
  T* to = out + image * g.pixels * g.c;
  for (int64_t e = threadIdx.x; e < count; e += kSumThreads) {
    const int64_t at = g.at(group, e), k = group * g.width + e % g.width;
    const Affine<T> affine(weight, bias, modulation, r, image, g.c, k);
    const T y = (from[at] - m) * affine.factor + affine.shift;
    to[at] = y * sigmoid(y);
  }
}

// With h the gradient of y: dx = h, and partials [2, n, c] of the sums of h and of h * xhat.
template <typename T>
__global__ void __launch_bounds__(kLanes* kWarps)
    group_norm_silu_sums_kernel(const T* grad, const T* x, const T* weight, const T* bias,
                                const T* modulation, const T* mean, const T* rstd, T* dx,
                                T* partials, int64_t n, Groups g) {
  __shared__ T partial[2][kWarps][kLanes];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t tiles = ceil_div(g.c, kLanes), image = blockIdx.x / tiles,
                k = blockIdx.x % tiles * kLanes + tx;
  const bool inside = k < g.c;
  T first = 0, second = 0, r = 0;
  if (inside) {
    const int64_t row = image * g.groups + k / g.width, start = image * g.pixels * g.c + k;
    const T m = mean[row];
    r = rstd[row];
    const Affine<T> affine(weight, bias, modulation, r, image, g.c, k);
    for (int64_t p = ty; p < g.pixels; p += kWarps) {
      const int64_t at = start + p * g.c;
      const T d = x[at] - m, y = d * affine.factor + affine.shift, s = sigmoid(y);
      const T h = grad[at] * (s * (T(1) + y * (T(1) - s)));
      dx[at] = h;
      first += h;
      second += h * d;
    }
  }
  partial[0][ty][tx] = first;
  partial[1][ty][tx] = second;
  __syncthreads();
  if (ty != 0 || !inside) return;
  first = second = 0;
  for (int i = 0; i < kWarps; ++i) first += partial[0][i][tx], second += partial[1][i][tx];
  partials[image * g.c + k] = first;
  partials[(n + image) * g.c + k] = r * second;
}

// dx from h, and dmodulation.
template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    group_norm_silu_bwd_kernel(const T* x, const T* weight, const T* bias, const T* modulation,
                               const T* mean, const T* rstd, T* dx, T* dmodulation,
                               const T* partials, int64_t n, Groups g) {
  __shared__ double tile[2][kSumWarps], sums[2];
  const int64_t image = blockIdx.x / g.groups, group = blockIdx.x % g.groups,
                count = g.pixels * g.width;
  const T m = mean[blockIdx.x], r = rstd[blockIdx.x];
  double q = 0, qx = 0;  // sums of the gradient of xhat, and of it times xhat
  for (int64_t j = threadIdx.x; j < g.width; j += kSumThreads) {
    const int64_t k = group * g.width + j;
    const T h = partials[image * g.c + k], hx = partials[(n + image) * g.c + k];
    const Affine<T> affine(weight, bias, modulation, r, image, g.c, k);
    q += double(affine.gain * h) * double(weight[k]);
    qx += double(affine.gain * hx) * double(weight[k]);
    if (modulation != nullptr) {
      dmodulation[image * 2 * g.c + k] = hx * weight[k] + h * bias[k];
      dmodulation[image * 2 * g.c + g.c + k] = h;
    }
  }
  sum_over_block(q, qx, tile, sums);
  __syncthreads();
  const T slope = T(-double(r) * double(r) * sums[1] / double(count)),
          offset = T(-double(r) * sums[0] / double(count));
  for (int64_t e = threadIdx.x; e < count; e += kSumThreads) {
    const int64_t k = group * g.width + e % g.width,
                  at = image * g.pixels * g.c + g.at(group, e);
    const Affine<T> affine(weight, bias, modulation, r, image, g.c, k);
    dx[at] = dx[at] * affine.factor + ((x[at] - m) * slope + offset);
  }
}

template <typename T>
__global__ void __launch_bounds__(kLanes* kWarps)
    group_norm_silu_parameters_kernel(const T* partials, const T* modulation, T* dweight, T* dbias,
                                      int64_t n, int64_t c) {
  __shared__ double partial[2][kWarps][kLanes];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t k = int64_t{blockIdx.x} * kLanes + tx;
  double h = 0, hx = 0;
  for (int64_t i = ty; k < c && i < n; i += kWarps) {
    const T gain = modulation == nullptr ? T(1) : T(1) + modulation[i * 2 * c + k];
    h += double(gain * partials[i * c + k]);
    hx += double(gain * partials[(n + i) * c + k]);
  }
  partial[0][ty][tx] = h;
  partial[1][ty][tx] = hx;
  __syncthreads();
  if (ty != 0 || k >= c) return;
  for (int i = 1; i < kWarps; ++i) h += partial[0][i][tx], hx += partial[1][i][tx];
  dbias[k] = T(h);
  dweight[k] = T(hx);
}

void check(int64_t n, int64_t c, int64_t pixels, int64_t groups) {
  KD_CHECK(n >= 0 && c > 0 && pixels > 0,
           "group_norm_silu: expected n >= 0, c > 0 and pixels > 0");
  KD_CHECK(groups > 0 && c % groups == 0, "group_norm_silu: expected c divisible by groups");
  KD_CHECK(c * (n > 0 ? n : 1) < (int64_t{1} << 31),
           "group_norm_silu: expected n * c below 2^31; split the images");
}

}  // namespace

template <typename T>
void group_norm_silu(const T* x, const T* weight, const T* bias, const T* modulation, T* out,
                     T* mean, T* rstd, int64_t n, int64_t c, int64_t pixels, int64_t groups,
                     double eps, cudaStream_t stream) {
  check(n, c, pixels, groups);
  if (n == 0) return;  // an empty grid is a launch error
  const Groups g{c, pixels, c / groups, groups};
  KD_LAUNCH(group_norm_silu_fwd_kernel<T>, dim3(n * groups), dim3(kSumThreads), 0, stream, x,
            weight, bias, modulation, out, mean, rstd, g, T(eps));
}

template <typename T>
void group_norm_silu_bwd(const T* grad, const T* x, const T* weight, const T* bias,
                         const T* modulation, const T* mean, const T* rstd, T* dx, T* dweight,
                         T* dbias, T* dmodulation, T* partials, int64_t n, int64_t c,
                         int64_t pixels, int64_t groups, cudaStream_t stream) {
  check(n, c, pixels, groups);
  const Groups g{c, pixels, c / groups, groups};
  if (n > 0) {
    KD_LAUNCH(group_norm_silu_sums_kernel<T>, dim3(n * ceil_div(c, kLanes)), dim3(kLanes, kWarps),
              0, stream, grad, x, weight, bias, modulation, mean, rstd, dx, partials, n, g);
    KD_LAUNCH(group_norm_silu_bwd_kernel<T>, dim3(n * groups), dim3(kSumThreads), 0, stream, x,
              weight, bias, modulation, mean, rstd, dx, dmodulation, partials, n, g);
  }
  KD_LAUNCH(group_norm_silu_parameters_kernel<T>, dim3(ceil_div(c, kLanes)), dim3(kLanes, kWarps),
            0, stream, partials, modulation, dweight, dbias, n, c);
}

KD_INSTANTIATE(group_norm_silu)
KD_INSTANTIATE(group_norm_silu_bwd)

}  // namespace kd::cuda
