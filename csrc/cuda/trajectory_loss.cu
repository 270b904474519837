// loss = |M(final - target)|^2 / D, D = |M(start - target)|^2, grad = 2 M(final - target) / D of
// each row.
// Truth: kdistill/backends/reference/trajectory_loss.py
//   final, target, start, grad [g, p], mask [p], [g, p] (mask_per_row) or null, loss and
//   denominator [g], partials [g, ceil(p / kSumBlock), 2]: row-major, contiguous, not overlapping.
// Three launches: M(final - target) into grad with the partial sums, the sums of each row, the
// scale of grad in place.
#include "cuda/ops.hpp"
#include "cuda/two_sums.hpp"

namespace kd::cuda {
namespace {

template <typename T>
__global__ void trajectory_loss_kernel(const T* final, const T* target, const T* start,
                                       const T* mask, T* grad, double* partials, int64_t p,
                                       int64_t blocks, bool mask_per_row) {
  __shared__ double tile[2][kSumWarps];
  const int64_t unit = blockIdx.x, row = unit / blocks,
                from = (unit % blocks) * kSumBlock + threadIdx.x;
  double left_sum = 0, whole_sum = 0;
  for (int k = 0; k < kPerThread; k += kBatch) {
    T left[kBatch], whole[kBatch];
    for (int b = 0; b < kBatch; ++b) {
      const int64_t i = from + int64_t{k + b} * kSumThreads, at = row * p + i;
      left[b] = i < p ? final[at] - target[at] : T(0);
      whole[b] = i < p ? start[at] - target[at] : T(0);
      if (mask && i < p) {
        const T keep = mask[mask_per_row ? at : i];
        left[b] *= keep;
        whole[b] *= keep;
      }
    }
    for (int b = 0; b < kBatch; ++b) {
      const int64_t i = from + int64_t{k + b} * kSumThreads;
      if (i < p) grad[row * p + i] = left[b];
      left_sum += double(left[b]) * double(left[b]);
      whole_sum += double(whole[b]) * double(whole[b]);
    }
  }
  sum_over_block(left_sum, whole_sum, tile, partials + 2 * unit);
}

__global__ void trajectory_loss_sum_kernel(const double* partials, double* loss,
                                           double* denominator, int64_t blocks) {
  __shared__ double tile[2][kSumWarps];
  const int64_t row = blockIdx.x;
  double sums[2];
  sum_partials(partials + 2 * row * blocks, blocks, tile, sums);
  if (threadIdx.x == 0) {
    loss[row] = sums[0] / sums[1];
    denominator[row] = sums[1];
  }
}

template <typename T>
__global__ void trajectory_loss_scale_kernel(T* grad, const double* denominator, int64_t p,
                                             int64_t blocks) {
  const int64_t unit = blockIdx.x, row = unit / blocks,
                from = (unit % blocks) * kSumBlock + threadIdx.x;
  const T factor = T(2 / denominator[row]);
  for (int k = 0; k < kPerThread; k += kBatch) {
    T values[kBatch];
    for (int b = 0; b < kBatch; ++b) {
      const int64_t i = from + int64_t{k + b} * kSumThreads;
      values[b] = i < p ? grad[row * p + i] : T(0);
    }
    for (int b = 0; b < kBatch; ++b) {
      const int64_t i = from + int64_t{k + b} * kSumThreads;
      if (i < p) grad[row * p + i] = factor * values[b];
    }
  }
}

}  // namespace

template <typename T>
void trajectory_loss(const T* final, const T* target, const T* start, const T* mask, double* loss,
                     T* grad, double* denominator, double* partials, int64_t g, int64_t p,
                     bool mask_per_row, cudaStream_t stream) {
  if (g == 0) return;  // an empty grid is a launch error
  const int64_t blocks = ceil_div(p, kSumBlock);
  KD_CHECK(g <= INT32_MAX && g * blocks <= INT32_MAX,
           "trajectory_loss: expected at most 2^43 elements; split the rows");
  const dim3 grid(g * blocks), block(kSumThreads);
  if (blocks > 0) {
    KD_LAUNCH(trajectory_loss_kernel<T>, grid, block, 0, stream, final, target, start, mask, grad,
              partials, p, blocks, mask_per_row);
  }
  KD_LAUNCH(trajectory_loss_sum_kernel, dim3(g), block, 0, stream, partials, loss, denominator,
            blocks);
  if (blocks > 0)
    KD_LAUNCH(trajectory_loss_scale_kernel<T>, grid, block, 0, stream, grad, denominator, p,
              blocks);
}

KD_INSTANTIATE(trajectory_loss)

}  // namespace kd::cuda
