// Runs a kernel over a grid: every thread of a block is a fiber, in an order drawn from a seed; the
// blocks come one after another.
#pragma once
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "cuda_emulation/host_api.hpp"
#include "cuda_emulation/types.hpp"

namespace kd::emulation {

struct Launch {
  const char* name;
  const void* kernel;
  dim3 grid, block;
  std::size_t shared_bytes;
  void (*run)(const void* call);  // one thread: the kernel with its arguments, which are in `call`
  const void* call;
};

// Sets cudaGetLastError where CUDA would refuse the launch.  Throws kd::Error where threads wait
// for each other in vain, where dynamic shared memory is written beyond its end, and what the
// kernel itself throws.  One launch at a time; others wait.
void launch(const Launch& launch);

template <typename... P>
struct Prepared {
  const char* name;
  void (*kernel)(P...);
  dim3 grid, block;
  std::size_t shared_bytes;

  void operator()(P... arguments) const {
    using Call = std::tuple<void (*)(P...), P...>;
    static_assert((!std::is_reference_v<P> && ...), "a kernel takes its arguments by value");
    const Call call(kernel, arguments...);
    const auto run = [](const void* call) {
      std::apply([](auto kernel, const P&... arguments) { kernel(arguments...); },
                 *static_cast<const Call*>(call));
    };
    launch({name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, run, &call});
  }
};

template <typename... P>
Prepared<P...> prepare(const char* name, void (*kernel)(P...), dim3 grid, dim3 block,
                       std::size_t shared_bytes, cudaStream_t) {
  return {name, kernel, grid, block, shared_bytes};
}

// The dynamic shared memory of the running block.
void* dynamic_shared();

// The seed of the thread and block order: KDISTILL_EMULATION_SEED if set, else the number of
// launches before this one.
std::uint64_t last_seed();
std::uint64_t num_launches();
std::uint64_t num_switches();  // between fibers, since the process began

}  // namespace kd::emulation
