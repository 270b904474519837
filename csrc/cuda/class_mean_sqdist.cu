// value = sum_c |w_c * (mean_c(real) - mean_c(syn))|^2.
// Truth: kdistill/backends/reference/class_mean_sqdist.py
//   real [n, f], syn [m, f], weights [num_classes, f] or null, diff [num_classes, f], partials
//   [num_classes, ceil(f / kCols)]: row-major, contiguous, not overlapping.  *_order and *_offsets
//   list the rows of each class.
// One block per class and kCols features; its kLanes rows of threads each sum every kLanes-th row,
// then add up in a fixed order: every row is read once, coalesced, and the result does not depend
// on scheduling.
#include "common/cuda.hpp"
#include "cuda/ops.hpp"

namespace kd::cuda {
namespace {

constexpr int kCols = 32;   // one warp spans 32 neighbouring features
constexpr int kLanes = 16;  // rows in flight per block

template <typename T>
__device__ T class_mean(const T* x, const int64_t* order, int64_t first, int64_t last, int64_t col,
                        int64_t f, T (*tile)[kCols]) {
  const int tx = threadIdx.x, ty = threadIdx.y;
  T even = 0, odd = 0;  // two chains, so that two loads are in flight
  int64_t i = first + ty;
  if (col < f) {
    for (; i + kLanes < last; i += 2 * kLanes) {
      even += x[order[i] * f + col];
      odd += x[order[i + kLanes] * f + col];
    }
    if (i < last) even += x[order[i] * f + col];
  }
  __syncthreads();  // the tile may still be read by the previous call
  tile[ty][tx] = even + odd;
  __syncthreads();
  T sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += tile[lane][tx];
  return sum / T(last - first);
}

template <typename T>
__global__ void class_mean_sqdist_fwd_kernel(const T* real, const int64_t* real_order,
                                             const int64_t* real_offsets, const T* syn,
                                             const int64_t* syn_order, const int64_t* syn_offsets,
                                             const T* weights, T* diff, T* partials, int64_t f) {
  __shared__ T tile[kLanes][kCols];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t c = blockIdx.y, col = int64_t{blockIdx.x} * kCols + tx;
  const int64_t r0 = real_offsets[c], r1 = real_offsets[c + 1], s0 = syn_offsets[c],
                s1 = syn_offsets[c + 1];
  T d = 0;
  if (r1 > r0 && s1 > s0) {  // the same for the whole block: all or none reach the barriers inside
    const T real_mean = class_mean(real, real_order, r0, r1, col, f, tile);
    d = real_mean - class_mean(syn, syn_order, s0, s1, col, f, tile);
  }
  T scaled = 0;
  if (ty == 0 && col < f) {
    diff[c * f + col] = d;
    scaled = weights ? weights[c * f + col] * d : d;
  }
  if (ty == 0) {
    T square = scaled * scaled;
    for (int step = 16; step > 0; step /= 2) square += __shfl_down_sync(0xffffffffu, square, step);
    if (tx == 0) partials[c * gridDim.x + blockIdx.x] = square;
  }
}

// value = sum of the partials, by one warp in a fixed order, in float64.
template <typename T>
__global__ void class_mean_sqdist_sum_kernel(const T* partials, T* value, int64_t count) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += 32) sum += double(partials[i]);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
  if (threadIdx.x == 0) *value = T(sum);
}

template <typename T>
__global__ void class_mean_sqdist_bwd_kernel(const T* table, const int64_t* labels, T* out,
                                             int64_t n, int64_t f, int64_t num_classes) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n * f; i += stride) {
    const int64_t label = labels[i / f];
    out[i] = label >= 0 && label < num_classes ? table[label * f + i % f] : T(0);
  }
}

}  // namespace

template <typename T>
void class_mean_sqdist(const T* real, const int64_t* real_order, const int64_t* real_offsets,
                       const T* syn, const int64_t* syn_order, const int64_t* syn_offsets,
                       const T* weights, T* value, T* diff, T* partials, int64_t f,
                       int64_t num_classes, cudaStream_t stream) {
  KD_CHECK(num_classes <= 65535, "class_mean_sqdist: expected at most 65535 classes; split them");
  if (f > 0 && num_classes > 0) {
    const dim3 grid(ceil_div(f, kCols), num_classes), block(kCols, kLanes);
    KD_LAUNCH(class_mean_sqdist_fwd_kernel<T>, grid, block, 0, stream, real, real_order,
              real_offsets, syn, syn_order, syn_offsets, weights, diff, partials, f);
  }
  KD_LAUNCH(class_mean_sqdist_sum_kernel<T>, dim3(1), dim3(32), 0, stream, partials, value,
            num_classes * ceil_div(f, kCols));
}

// out[i] = table[labels[i]], or 0 for a label outside 0..num_classes-1.  table [num_classes, f] is
// 2*grad*w^2*diff/count, out [n, f].
template <typename T>
void class_mean_sqdist_bwd(const T* table, const int64_t* labels, T* out, int64_t n, int64_t f,
                           int64_t num_classes, cudaStream_t stream) {
  if (n == 0 || f == 0) return;  // an empty grid is a launch error
  const int64_t blocks = ceil_div(n * f, int64_t{1024});
  const dim3 grid(blocks < 65536 ? blocks : 65536), block(256);
  KD_LAUNCH(class_mean_sqdist_bwd_kernel<T>, grid, block, 0, stream, table, labels, out, n, f,
            num_classes);
}

KD_INSTANTIATE(class_mean_sqdist)
KD_INSTANTIATE(class_mean_sqdist_bwd)

}  // namespace kd::cuda
