// KD_LAUNCH, KD_DYNAMIC_SHARED and the CUDA runtime; or, when g++ compiles with KD_CUDA_EMULATION,
// their meaning on the CPU.  The same .cu source is compiled both ways
// (docs/design/cuda_emulation.md says what it may use).
#pragma once
#include <cstddef>
#include <cstdio>
#include <type_traits>

#include "common/check.hpp"

#if defined(KD_CUDA_EMULATION)
#include "cuda_emulation/cuda_emulation.hpp"
#else
#include <cuda_runtime.h>
#endif

namespace kd {

// How many steps of b cover a, for a >= 0 and b > 0.  ceil_div(n, 256) is the grid of 256-thread
// blocks.
template <typename A, typename B>
__host__ __device__ constexpr std::common_type_t<A, B> ceil_div(A a, B b) {
  using C = std::common_type_t<A, B>;
  return C(a) / C(b) + (C(a) % C(b) != 0);
}

// Throws kd::Error unless the call that gave this status succeeded; `name` says which call it was.
inline void check_cuda(cudaError_t status, const char* name) {
  if (status == cudaSuccess) return;
  char message[512];
  std::snprintf(
      message, sizeof message,
      "%s: expected cudaSuccess, got %s (%s); look at this call and at the kernels before it", name,
      cudaGetErrorName(status), cudaGetErrorString(status));
  fail(message);
}

// The same for a launch: the sizes are what is wrong most often.
inline void check_launch(cudaError_t status, const char* kernel, dim3 grid, dim3 block,
                         std::size_t shared_bytes) {
  if (status == cudaSuccess) return;
  char message[512];
  std::snprintf(message, sizeof message,
                "%s: expected a launch that CUDA accepts, got %s (%s) for grid (%u, %u, %u), block "
                "(%u, %u, %u) and %zu bytes of "
                "dynamic shared memory; look at these sizes and at the kernels before it",
                kernel, cudaGetErrorName(status), cudaGetErrorString(status), grid.x, grid.y,
                grid.z, block.x, block.y, block.z, shared_bytes);
  fail(message);
}

}  // namespace kd

// KD_LAUNCH(kernel<T>, grid, block, shared_bytes, stream, arguments...); kernels with commas need
// parentheses: (kernel<T, 4>).  KD_DYNAMIC_SHARED(T, name); declares T* name, the dynamic shared
// memory of the block, aligned to 16 bytes.
#if defined(KD_CUDA_EMULATION)
#define KD_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                           \
  (kd::emulation::prepare(#kernel, kernel, grid, block, shared_bytes, stream)(__VA_ARGS__), \
   kd::check_launch(cudaGetLastError(), #kernel, grid, block, shared_bytes))
#define KD_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(kd::emulation::dynamic_shared())
#else
#define KD_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__),    \
   kd::check_launch(cudaGetLastError(), #kernel, grid, block, shared_bytes))
// one type for every kernel: two extern arrays of one name and two types do not compile
#define KD_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char kd_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(kd_dynamic_shared)
#endif
