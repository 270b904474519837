// What norm_act_pool and its tangents share on the GPU: geometry, moments, the activation, and the
// sum over images.
#pragma once
#include "common/cuda.hpp"

namespace kd::cuda {
namespace {

constexpr int kLanes = 32;  // channels of a block
constexpr int kChunk = 8;   // pixels that a thread loads at once
// of a block; many keep few blocks in flight, whose images stay in L2
constexpr int kFewWarps = 8, kManyWarps = 16;
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

// Mean and sum of squared deviations of `total` values.
template <typename T>
struct Moments {
  T mean = 0, squares = 0, total = 0;

  __device__ void merge(T other_mean, T other_squares, T count) {  // Chan, Golub, LeVeque 1983
    if (count == T(0)) return;
    const T share = count / (total + count), step = other_mean - mean;
    mean += step * share;
    squares += other_squares + step * step * total * share;
    total += count;
  }
};

// A quarter of the activation of a pixel is relu(d * scale + shift) with d = x - mean; folding the
// mean into the shift would lose digits where it is large.
template <typename T>
struct Affine {
  T scale, shift;

  __device__ Affine(T weight, T bias, T rstd)
      : scale(T(0.25) * weight * rstd), shift(T(0.25) * bias) {}
  __device__ T operator()(T d) const { return d * scale + shift; }
};

template <typename T>
__device__ T relu(T y) {
  return y < T(0) ? T(0) : y;  // a NaN stays
}

// dweight and dbias from the partials [2, n, c] of the images.
template <typename T>
__global__ void norm_act_pool_sum_kernel(const T* partials, T* dweight, T* dbias, int64_t n,
                                         Geometry g) {
  __shared__ double partial[kFewWarps][kLanes];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t tiles = ceil_div(g.c, kLanes), group = blockIdx.x / tiles,
                k = blockIdx.x % tiles * kLanes + tx;
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
}  // namespace kd::cuda
