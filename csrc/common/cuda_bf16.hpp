// __nv_bfloat16 and its conversions, under nvcc and under the emulation.  Apart from cuda.hpp
// because it takes nvcc half a second.
#pragma once
#include "common/cuda.hpp"

#if defined(KD_CUDA_EMULATION)
#include "cuda_emulation/bfloat16.hpp"
#else
#include <cuda_bf16.h>
#endif
