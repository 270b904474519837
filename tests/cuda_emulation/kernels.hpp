// Launchers of the test kernels: kernels.cu is right, faulty.cu is wrong on purpose.
#pragma once
#include <cstdint>

#include "common/cuda.hpp"

namespace kd::test {

template <typename T>
void block_sums(const T* x, T* out, int64_t n, int blocks, int threads, cudaStream_t stream);
template <typename T>
void transpose(const T* x, T* out, int64_t rows, int64_t cols, cudaStream_t stream);
// dynamic shared memory
void reverse_tiles(const float* x, float* out, int64_t n, int tile, cudaStream_t stream);
// 100 KiB of it
void big_tile(float* out, int64_t n, cudaStream_t stream);
void histogram(const int* x, int* counts, int64_t n, int bins, cudaStream_t stream);
template <typename T>
void shuffles(T* out, int width, cudaStream_t stream);  // [4, 64]: by index, up, down, xor
void votes(unsigned* out, cudaStream_t stream);         // [6, 64]
// [64]: the halves of a warp apart, with masks of their own
void half_warps(int* out, cudaStream_t stream);
void atomics(float* f, double* d, int* i, unsigned* u, unsigned long long* l, cudaStream_t stream);
void indices(unsigned* out, dim3 grid, dim3 block, cudaStream_t stream);
// float4, __ldg, __constant__, intrinsics
void vectors(const float* x, float* out, int64_t n, cudaStream_t stream);
// [4, blocks]: shared memory as a block finds it
void unwritten(float* out, int blocks, cudaStream_t stream);
void churn(float* x, int64_t n, int barriers, int threads, cudaStream_t stream);

void rotate_without_barrier(const int* x, int* out, int n, cudaStream_t stream);
void rotate_with_barrier(const int* x, int* out, int n, cudaStream_t stream);
// each block reads what the one before wrote
void blocks_in_order(int* out, int blocks, cudaStream_t stream);
void barrier_in_branch(int* out, cudaStream_t stream);
void return_before_barrier(int* out, cudaStream_t stream);
void two_barriers(int* out, cudaStream_t stream);
void missing_lanes(int* out, cudaStream_t stream);
void outside_mask(int* out, cudaStream_t stream);
void warp_and_barrier(int* out, cudaStream_t stream);
void past_dynamic(float* out, int bytes, cudaStream_t stream);
void past_static(float* out, int index, cudaStream_t stream);
void past_stack(float* out, int index, cudaStream_t stream);
void any_launch(int* out, dim3 grid, dim3 block, int shared_bytes, cudaStream_t stream);
void static_and_dynamic(float* out, int shared_bytes, cudaStream_t stream);  // 32 KiB static

}  // namespace kd::test
