// Kernels with the mistakes that the emulation is there to find.  nvcc compiles them without a
// word.
#include "kernels.hpp"

namespace kd::test {

template <bool kHasBarrier>
__global__ void rotate_kernel(const int* x, int* out, int n) {
  __shared__ int tile[256];
  const int t = threadIdx.x;
  tile[t] = x[t];
  if (kHasBarrier) __syncthreads();
  out[t] = tile[(t + 1) % n];
}

__global__ void blocks_in_order_kernel(int* out) {
  const int b = blockIdx.x;
  out[b] = b == 0 ? 1 : out[b - 1] + 1;
}

__global__ void barrier_in_branch_kernel(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void return_before_barrier_kernel(int* out) {
  if (threadIdx.x >= 60 && blockIdx.x == 1) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void two_barriers_kernel(int* out) {
  if (threadIdx.x % 2) {
    out[threadIdx.x] = 1;
    __syncthreads();
  } else {
    __syncthreads();
    out[threadIdx.x] = 2;
  }
}

__global__ void missing_lanes_kernel(int* out) {
  int sum = threadIdx.x;
  if (threadIdx.x != 35) sum += __shfl_down_sync(0xffffffffu, sum, 1);
  out[threadIdx.x] = sum;
}

__global__ void outside_mask_kernel(int* out) { out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 0); }

__global__ void warp_and_barrier_kernel(int* out) {
  if (threadIdx.x < 8) __syncwarp();
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void past_dynamic_kernel(float* out, int bytes) {
  KD_DYNAMIC_SHARED(float, tile);
  tile[bytes / int(sizeof(float))] = 1.0f;
  *out = tile[0];
}

__global__ void past_static_kernel(float* out, int index) {
  __shared__ float tile[13];
  float* const p = tile;
  p[index] = 1.0f;
  __syncthreads();
  *out = p[0];
}

__global__ void past_stack_kernel(float* out, int index) {
  float tile[13];
  float* volatile p = tile;
  p[index] = 1.0f;
  __syncthreads();
  *out = p[index];
}

__global__ void any_launch_kernel(int* out) {
  if (threadIdx.x == 0) *out = 1;
}

__global__ void static_and_dynamic_kernel(float* out) {
  __shared__ float tile[8 * 1024];
  KD_DYNAMIC_SHARED(float, more);
  tile[threadIdx.x] = 1.0f;
  more[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[31 - threadIdx.x] + more[31 - threadIdx.x];
}

void rotate_without_barrier(const int* x, int* out, int n, cudaStream_t stream) {
  KD_LAUNCH(rotate_kernel<false>, 1, n, 0, stream, x, out, n);
}
void rotate_with_barrier(const int* x, int* out, int n, cudaStream_t stream) {
  KD_LAUNCH(rotate_kernel<true>, 1, n, 0, stream, x, out, n);
}
void blocks_in_order(int* out, int blocks, cudaStream_t stream) {
  KD_LAUNCH(blocks_in_order_kernel, blocks, 1, 0, stream, out);
}
void barrier_in_branch(int* out, cudaStream_t stream) {
  KD_LAUNCH(barrier_in_branch_kernel, 1, 64, 0, stream, out);
}
void return_before_barrier(int* out, cudaStream_t stream) {
  KD_LAUNCH(return_before_barrier_kernel, 3, 64, 0, stream, out);
}
void two_barriers(int* out, cudaStream_t stream) {
  KD_LAUNCH(two_barriers_kernel, 1, 64, 0, stream, out);
}
void missing_lanes(int* out, cudaStream_t stream) {
  KD_LAUNCH(missing_lanes_kernel, 1, 64, 0, stream, out);
}
void outside_mask(int* out, cudaStream_t stream) {
  KD_LAUNCH(outside_mask_kernel, 1, 64, 0, stream, out);
}
void warp_and_barrier(int* out, cudaStream_t stream) {
  KD_LAUNCH(warp_and_barrier_kernel, 1, 64, 0, stream, out);
}
void past_dynamic(float* out, int bytes, cudaStream_t stream) {
  KD_LAUNCH(past_dynamic_kernel, 1, 1, bytes, stream, out, bytes);
}
void past_static(float* out, int index, cudaStream_t stream) {
  KD_LAUNCH(past_static_kernel, 1, 1, 0, stream, out, index);
}
void past_stack(float* out, int index, cudaStream_t stream) {
  KD_LAUNCH(past_stack_kernel, 1, 1, 0, stream, out, index);
}
void any_launch(int* out, dim3 grid, dim3 block, int shared_bytes, cudaStream_t stream) {
  KD_LAUNCH(any_launch_kernel, grid, block, shared_bytes, stream, out);
}
void static_and_dynamic(float* out, int shared_bytes, cudaStream_t stream) {
  KD_LAUNCH(static_and_dynamic_kernel, 1, 32, shared_bytes, stream, out);
}

}  // namespace kd::test
