// What a .cu source of this project may use, for g++: include common/cuda.hpp instead of this
// file.  Each thread of a block is a fiber, the blocks run one after another on the calling thread;
// docs/design/cuda_emulation.md.
#pragma once

#if !defined(__linux__) || !defined(__GNUC__) || defined(__clang__) || __GNUC__ < 11
#error \
    "cuda_emulation: expected g++ 11 or newer on Linux, whose "
    "attribute noinit finds the static shared memory"
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Every __shared__ variable, of a template too, lands in a section .noinit*: the runtime finds
// these and poisons them.
#define __shared__ static __attribute__((noinit))

#include "cuda_emulation/atomics.hpp"
#include "cuda_emulation/host_api.hpp"
#include "cuda_emulation/launch.hpp"
#include "cuda_emulation/math.hpp"
#include "cuda_emulation/sync.hpp"
#include "cuda_emulation/types.hpp"
