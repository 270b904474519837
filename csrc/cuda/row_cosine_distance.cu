// loss = sum over rows of 1 - <a, b> / q, q = |a| |b| + eps, and grad = (<a, b> |b| / (|a| q^2)) a
// - b / q, in every group.
// Truth: kdistill/backends/reference/row_cosine_distance.py
//   syn, real, grad [g, p], rows [r, 2] (offset, length; ascending, not overlapping), mask [p], [g,
//   p] (mask_per_group) or null, loss [g], values [g, r]: row-major, contiguous, not overlapping.
//   grad is zero outside the rows already.
// A block per row of a group sums it and then writes it, from the cache the second time; a second
// launch adds the values.
#include "cuda/ops.hpp"
#include "cuda/two_sums.hpp"

namespace kd::cuda {
namespace {

template <typename T>
__global__ void row_cosine_distance_kernel(const T* syn, const T* real, const int64_t* rows,
                                           const T* mask, T* grad, double* values, int64_t p,
                                           int64_t r, bool mask_per_group, double eps) {
  __shared__ double tiles[2][2][kSumWarps];
  __shared__ double sums[4];  // <a, b>, <a, a>, <b, b>, how many elements the mask keeps
  const int64_t unit = blockIdx.x, group = unit / r, row = unit % r, offset = rows[2 * row],
                n = rows[2 * row + 1];
  const int64_t start = group * p + offset;
  const T* keep = mask ? mask + (mask_per_group ? start : offset) : mask;
  double dot = 0, squares_a = 0, squares_b = 0, mask_sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kSumThreads) {
    T a = syn[start + i], b = real[start + i];
    if (keep) {
      a *= keep[i];
      b *= keep[i];
      mask_sum += double(keep[i]);
    }
    dot += double(a) * double(b);
    squares_a += double(a) * double(a);
    squares_b += double(b) * double(b);
  }
  sum_over_block(dot, squares_a, tiles[0], sums);
  sum_over_block(squares_b, mask_sum, tiles[1], sums + 2);
  __syncthreads();
  const double norm_a = sqrt(sums[1]), norm_b = sqrt(sums[2]), q = norm_a * norm_b + eps;
  const T along_a = norm_a > 0 ? T(sums[0] * norm_b / (norm_a * q * q)) : T(0), along_b = T(1 / q);
  for (int64_t i = threadIdx.x; i < n; i += kSumThreads) {
    const T v = along_a * syn[start + i] - along_b * real[start + i];
    grad[start + i] = keep ? keep[i] * v : v;
  }
  if (threadIdx.x == 0) values[unit] = keep && !(sums[3] > 0) ? 0.0 : 1.0 - sums[0] / q;
}

__global__ void row_cosine_distance_sum_kernel(const double* values, double* loss, int64_t r) {
  __shared__ double tile[2][kSumWarps];
  const int64_t group = blockIdx.x;
  double sum = 0, sums[2];
  for (int64_t row = threadIdx.x; row < r; row += kSumThreads) sum += values[group * r + row];
  sum_over_block(sum, 0.0, tile, sums);
  if (threadIdx.x == 0) loss[group] = sums[0];
}

}  // namespace

template <typename T>
void row_cosine_distance(const T* syn, const T* real, const int64_t* rows, const T* mask,
                         double* loss, T* grad, double* values, int64_t g, int64_t p, int64_t r,
                         bool mask_per_group, double eps, cudaStream_t stream) {
  if (g == 0) return;  // an empty grid is a launch error
  KD_CHECK(g <= INT32_MAX && g * r <= INT32_MAX,
           "row_cosine_distance: expected at most 2^31 rows in all; split the groups");
  const dim3 block(kSumThreads);
  if (r > 0) {
    KD_LAUNCH(row_cosine_distance_kernel<T>, dim3(g * r), block, 0, stream, syn, real, rows, mask,
              grad, values, p, r, mask_per_group, eps);
  }
  KD_LAUNCH(row_cosine_distance_sum_kernel, dim3(g), block, 0, stream, values, loss, r);
}

KD_INSTANTIATE(row_cosine_distance)

}  // namespace kd::cuda
