// Two float64 sums per row in a fixed order: threads of a block, then blocks of a row.  No atomics,
// so two runs agree bit by bit.
#pragma once
#include <cstdint>

#include "common/cuda.hpp"

namespace kd::cuda {

constexpr int kSumThreads = 256;  // of every block that sums
constexpr int kSumWarps = kSumThreads / 32;
// elements, kSumThreads apart: neighbours read neighbours
constexpr int kPerThread = 16;
// of them loaded before the first is stored, which may alias
constexpr int kBatch = 4;
// elements behind one pair of partial sums
constexpr int64_t kSumBlock = int64_t{kSumThreads} * kPerThread;

// Adds a and b over the threads of the block; thread 0 writes them to sums[0] and sums[1].  All
// threads call it, once.
inline __device__ void sum_over_block(double a, double b, double (*tile)[kSumWarps], double* sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int step = 16; step > 0; step /= 2) {
    a += __shfl_down_sync(0xffffffffu, a, step);
    b += __shfl_down_sync(0xffffffffu, b, step);
  }
  if (lane == 0) {
    tile[0][warp] = a;
    tile[1][warp] = b;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  a = b = 0;
  for (int i = 0; i < kSumWarps; ++i) {
    a += tile[0][i];
    b += tile[1][i];
  }
  sums[0] = a;
  sums[1] = b;
}

// Adds the partials [blocks, 2] of one row; thread 0 writes them to sums[0] and sums[1].
inline __device__ void sum_partials(const double* partials, int64_t blocks,
                                    double (*tile)[kSumWarps], double* sums) {
  double a = 0, b = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += kSumThreads) {
    a += partials[2 * i];
    b += partials[2 * i + 1];
  }
  sum_over_block(a, b, tile, sums);
}

}  // namespace kd::cuda
