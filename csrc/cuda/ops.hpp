// Every CUDA kernel's launcher, one line each.
#pragma once
#include <cstdint>

#include "common/cuda.hpp"

namespace kd::cuda {

// clang-format off
template <typename T>
void class_mean_sqdist(const T* real, const int64_t* real_order, const int64_t* real_offsets, const T* syn, const int64_t* syn_order, const int64_t* syn_offsets, const T* weights, T* value, T* diff, T* partials, int64_t f, int64_t num_classes, cudaStream_t stream);
template <typename T>
void class_mean_sqdist_bwd(const T* table, const int64_t* labels, T* out, int64_t n, int64_t f, int64_t num_classes, cudaStream_t stream);
// clang-format on

}  // namespace kd::cuda
