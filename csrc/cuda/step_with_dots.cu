// out = y - step*x and dots = (<x, y>, <x, x>) of each row.
// Truth: kdistill/backends/reference/step_with_dots.py
//   y, x, out [g, p], step [1] or [g] (step_per_row), dots [g, 2], partials [g, ceil(p /
//   kSumBlock), 2]: row-major, contiguous.  out may be y or x: a thread reads an element before it
//   writes it, and no other reads it.
// A block per kSumBlock elements of a row reads x and y once and writes out once; a second launch
// adds the partials.  Single elements, coalesced: rows of a buffer [n + 1, p] are not aligned for
// vector loads.
#include "cuda/ops.hpp"
#include "cuda/two_sums.hpp"

namespace kd::cuda {
namespace {

template <typename T>
__global__ void step_with_dots_kernel(const T* y, const T* x, const T* step, T* out,
                                      double* partials, int64_t p, int64_t blocks,
                                      bool step_per_row) {
  __shared__ double tile[2][kSumWarps];
  const int64_t unit = blockIdx.x, row = unit / blocks,
                start = (unit % blocks) * kSumBlock + threadIdx.x;
  const T by = step[step_per_row ? row : 0];
  double xy = 0, xx = 0;
  for (int k = 0; k < kPerThread; k += kBatch) {
    T xs[kBatch], ys[kBatch];
    for (int b = 0; b < kBatch; ++b) {
      const int64_t i = start + int64_t{k + b} * kSumThreads;
      xs[b] = i < p ? x[row * p + i] : T(0);
      ys[b] = i < p ? y[row * p + i] : T(0);
    }
    for (int b = 0; b < kBatch; ++b) {
      const int64_t i = start + int64_t{k + b} * kSumThreads;
      if (i < p) out[row * p + i] = ys[b] - by * xs[b];
      xy += double(xs[b]) * double(ys[b]);
      xx += double(xs[b]) * double(xs[b]);
    }
  }
  sum_over_block(xy, xx, tile, partials + 2 * unit);
}

__global__ void step_with_dots_sum_kernel(const double* partials, double* dots, int64_t blocks) {
  __shared__ double tile[2][kSumWarps];
  const int64_t row = blockIdx.x;
  sum_partials(partials + 2 * row * blocks, blocks, tile, dots + 2 * row);
}

}  // namespace

template <typename T>
void step_with_dots(const T* y, const T* x, const T* step, T* out, double* dots, double* partials,
                    int64_t g, int64_t p, bool step_per_row, cudaStream_t stream) {
  if (g == 0) return;  // an empty grid is a launch error
  const int64_t blocks = ceil_div(p, kSumBlock);
  KD_CHECK(g <= INT32_MAX && g * blocks <= INT32_MAX,
           "step_with_dots: expected at most 2^43 elements; split the rows");
  if (blocks > 0) {
    KD_LAUNCH(step_with_dots_kernel<T>, dim3(g * blocks), dim3(kSumThreads), 0, stream, y, x, step,
              out, partials, p, blocks, step_per_row);
  }
  KD_LAUNCH(step_with_dots_sum_kernel, dim3(g), dim3(kSumThreads), 0, stream, partials, dots,
            blocks);
}

KD_INSTANTIATE(step_with_dots)

}  // namespace kd::cuda
