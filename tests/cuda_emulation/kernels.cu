// Correct kernels that use everything the emulation has.
#include "common/cuda_bf16.hpp"
#include "kernels.hpp"

namespace kd::test {

template <typename T>
__device__ T sum_of_block(T value) {
  __shared__ T parts[32];  // in a function that the kernel calls
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : T(0);
  if (threadIdx.x < 32)
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  __syncthreads();
  return value;
}

template <typename T>
__global__ void block_sums_kernel(const T* __restrict__ x, T* __restrict__ out, int64_t n) {
  T sum = 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x)
    sum += x[i];
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

template <typename T, int kTile>
__global__ void __launch_bounds__(kTile* kTile)
    transpose_kernel(const T* x, T* out, int64_t rows, int64_t cols) {
  __shared__ T tile[kTile][kTile + 1];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t row = int64_t{blockIdx.y} * kTile, col = int64_t{blockIdx.x} * kTile;
  if (row + ty < rows && col + tx < cols) tile[ty][tx] = x[(row + ty) * cols + col + tx];
  __syncthreads();
  if (col + ty < cols && row + tx < rows) out[(col + ty) * rows + row + tx] = tile[tx][ty];
}

__global__ void reverse_tiles_kernel(const float* x, float* out, int64_t n) {
  KD_DYNAMIC_SHARED(float, tile);
  const int64_t first = int64_t{blockIdx.x} * blockDim.x, i = first + threadIdx.x;
  tile[threadIdx.x] = i < n ? x[i] : 0.0f;
  __syncthreads();
  if (i < n) out[i] = tile[blockDim.x - 1 - threadIdx.x];
}

__global__ void big_tile_kernel(float* out, int64_t n) {
  KD_DYNAMIC_SHARED(float, tile);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) tile[i] = float(i);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) out[i] = tile[n - 1 - i];
}

__global__ void histogram_kernel(const int* x, int* counts, int64_t n, int bins) {
  KD_DYNAMIC_SHARED(int, local);
  for (int b = threadIdx.x; b < bins; b += blockDim.x) local[b] = 0;
  __syncthreads();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(&local[x[i]], 1);
  __syncthreads();
  for (int b = threadIdx.x; b < bins; b += blockDim.x) atomicAdd(&counts[b], local[b]);
}

template <typename T>
__global__ void shuffles_kernel(T* out, int width) {
  // exact, and in both halves of 8 bytes
  const T mine = T(threadIdx.x) * T(sizeof(T) == 8 ? 100003ll << 20 : 100003ll);
  out[threadIdx.x] = __shfl_sync(0xffffffffu, mine, int(threadIdx.x) * 3 + 1, width);
  out[64 + threadIdx.x] = __shfl_up_sync(0xffffffffu, mine, 3, width);
  out[128 + threadIdx.x] = __shfl_down_sync(0xffffffffu, mine, 5, width);
  out[192 + threadIdx.x] = __shfl_xor_sync(0xffffffffu, mine, 6, width);
}

__global__ void votes_kernel(unsigned* out) {
  const int t = threadIdx.x;
  out[t] = __ballot_sync(0xffffffffu, t % 3 == 0);
  out[64 + t] = __any_sync(0xffffffffu, t == 40);
  out[128 + t] = __all_sync(0xffffffffu, t < 32);
  out[192 + t] = __syncthreads_count(t % 5 == 0);
  out[256 + t] = __syncthreads_or(t == 63);
  out[320 + t] = __syncthreads_and(t != 63);
}

__global__ void half_warps_kernel(int* out) {
  const int lane = threadIdx.x % 32;
  int sum = threadIdx.x;
  if (lane < 16) {
    for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(0x0000ffffu, sum, step);
  } else {
    for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(0xffff0000u, sum, step);
    __syncwarp(0xffff0000u);
  }
  __syncwarp();
  out[threadIdx.x] = sum;
}

__global__ void atomics_kernel(float* f, double* d, int* i, unsigned* u, unsigned long long* l) {
  const int t = threadIdx.x;
  atomicAdd(f, 1.0f);
  atomicAdd(d, 0.5);
  atomicAdd(&i[0], t);
  atomicMax(&i[1], t);
  atomicMin(&i[2], -t);
  atomicAdd(&u[0], 2u);
  atomicMax(&u[1], unsigned(t));
  atomicOr(&u[2], 1u << (t % 32));
  atomicAdd(l, 1ull << 33);
  int seen = i[3];
  for (int expected = seen + 1; seen != expected;) {  // a lock-free product
    expected = seen;
    seen = atomicCAS(&i[3], expected, expected + 2);
  }
  if (t == 7) atomicExch(&i[4], 99);
}

__global__ void indices_kernel(unsigned* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  out[i] += i + 1;
}

__constant__ float kFactors[4] = {1.0f, 2.0f, 3.0f, 4.0f};

__global__ void vectors_kernel(const float* x, float* out, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n / 4) return;
  const float4 v = reinterpret_cast<const float4*>(x)[i];
  const float2 w = make_float2(__ldg(x + 4 * i), fminf(v.y, 0.5f));
  const float small = __bfloat162float(__float2bfloat16(v.z));
  reinterpret_cast<float4*>(out)[i] =
      make_float4(kFactors[0] * w.x, kFactors[1] * w.y, kFactors[2] * small,
                  kFactors[3] * (__expf(-v.w) + rsqrtf(1.0f + v.w * v.w) + max(v.x, 0.0f)));
}

__device__ float* scratch() {
  __shared__ float value[3];
  return value;
}

__global__ void unwritten_kernel(float* out, int blocks) {
  __shared__ float value[5];
  KD_DYNAMIC_SHARED(float, dynamic);
  out[blockIdx.x] = value[4];
  out[blocks + blockIdx.x] = scratch()[2];
  out[2 * blocks + blockIdx.x] = dynamic[7];
  out[3 * blocks + blockIdx.x] = float(reinterpret_cast<size_t>(dynamic) % 16);
  value[4] = scratch()[2] = dynamic[7] = 1.0f;
}

__global__ void churn_kernel(float* x, int64_t n, int barriers) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (int k = 0; k < barriers; ++k) __syncthreads();
  if (i < n) x[i] = 0.5f * x[i] + 1.0f;
}

template <typename T>
void block_sums(const T* x, T* out, int64_t n, int blocks, int threads, cudaStream_t stream) {
  KD_LAUNCH(block_sums_kernel<T>, blocks, threads, 0, stream, x, out, n);
}
template void block_sums(const float*, float*, int64_t, int, int, cudaStream_t);
template void block_sums(const double*, double*, int64_t, int, int, cudaStream_t);
template void block_sums(const int*, int*, int64_t, int, int, cudaStream_t);

template <typename T>
void transpose(const T* x, T* out, int64_t rows, int64_t cols, cudaStream_t stream) {
  const dim3 grid(ceil_div(cols, 16), ceil_div(rows, 16)), block(16, 16);
  KD_LAUNCH((transpose_kernel<T, 16>), grid, block, 0, stream, x, out, rows, cols);
}
template void transpose(const float*, float*, int64_t, int64_t, cudaStream_t);
template void transpose(const double*, double*, int64_t, int64_t, cudaStream_t);

void reverse_tiles(const float* x, float* out, int64_t n, int tile, cudaStream_t stream) {
  KD_LAUNCH(reverse_tiles_kernel, ceil_div(n, tile), tile, tile * sizeof(float), stream, x, out, n);
}

void big_tile(float* out, int64_t n, cudaStream_t stream) {
  const int bytes = int(n * int64_t{sizeof(float)});
  check_cuda(
      cudaFuncSetAttribute(big_tile_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
      "big_tile");
  KD_LAUNCH(big_tile_kernel, 2, 64, bytes, stream, out, n);
}

void histogram(const int* x, int* counts, int64_t n, int bins, cudaStream_t stream) {
  KD_LAUNCH(histogram_kernel, ceil_div(n, 128), 128, bins * sizeof(int), stream, x, counts, n,
            bins);
}

template <typename T>
void shuffles(T* out, int width, cudaStream_t stream) {
  KD_LAUNCH(shuffles_kernel<T>, 1, 64, 0, stream, out, width);
}
template void shuffles(int*, int, cudaStream_t);
template void shuffles(unsigned*, int, cudaStream_t);
template void shuffles(int64_t*, int, cudaStream_t);
template void shuffles(float*, int, cudaStream_t);
template void shuffles(double*, int, cudaStream_t);

void votes(unsigned* out, cudaStream_t stream) { KD_LAUNCH(votes_kernel, 1, 64, 0, stream, out); }
void half_warps(int* out, cudaStream_t stream) {
  KD_LAUNCH(half_warps_kernel, 1, 64, 0, stream, out);
}
void atomics(float* f, double* d, int* i, unsigned* u, unsigned long long* l, cudaStream_t stream) {
  KD_LAUNCH(atomics_kernel, 1, 100, 0, stream, f, d, i, u, l);
}
void indices(unsigned* out, dim3 grid, dim3 block, cudaStream_t stream) {
  KD_LAUNCH(indices_kernel, grid, block, 0, stream, out);
}
void vectors(const float* x, float* out, int64_t n, cudaStream_t stream) {
  KD_LAUNCH(vectors_kernel, ceil_div(n, 512), 128, 0, stream, x, out, n);
}
void unwritten(float* out, int blocks, cudaStream_t stream) {
  KD_LAUNCH(unwritten_kernel, blocks, 1, 8 * sizeof(float), stream, out, blocks);
}
void churn(float* x, int64_t n, int barriers, int threads, cudaStream_t stream) {
  KD_LAUNCH(churn_kernel, ceil_div(n, threads), threads, 0, stream, x, n, barriers);
}

}  // namespace kd::test
