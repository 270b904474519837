#include "cuda_emulation/launch.hpp"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <string>

#include "common/check.hpp"
#include "cuda_emulation/scheduler.hpp"
#include "cuda_emulation/shared_memory.hpp"

namespace kd::emulation {
namespace {

std::mutex one_launch;  // the built-in variables and the shared memory exist once
std::uint64_t launches = 0, seed_of_last = 0;

StaticShared& static_shared() {
  static StaticShared memory;
  return memory;
}

DynamicShared& dynamic_memory() {
  static DynamicShared memory;
  return memory;
}

std::uint64_t next_seed() {
  const std::uint64_t count = launches++;
  const char* const text = std::getenv("KDISTILL_EMULATION_SEED");  // read each time: tests set it
  if (!text || !*text) return count;
  char* end = nullptr;
  const std::uint64_t seed = std::strtoull(text, &end, 10);
  if (*end != '\0' || *text < '0' || *text > '9')
    fail(("KDISTILL_EMULATION_SEED: expected a whole number, got '" + std::string(text) +
          "'; unset it or give digits")
             .c_str());
  return seed;
}

// The limits of the CUDA programming guide, "technical specifications per compute capability", 9.0.
cudaError_t check_sizes(const Launch& launch) {
  const dim3 g = launch.grid, b = launch.block;
  const auto threads = static_cast<unsigned long long>(b.x) * b.y * b.z;
  const bool is_block =
      b.x && b.y && b.z && b.x <= 1024 && b.y <= 1024 && b.z <= 64 && threads <= kMaxThreads;
  const bool is_grid = g.x && g.y && g.z && g.x <= 2147483647u && g.y <= 65535 && g.z <= 65535;
  if (!is_block || !is_grid) return cudaErrorInvalidConfiguration;
  const KernelShared& shared = static_shared().of(launch.kernel);
  if (launch.shared_bytes > shared.max_total ||
      shared.static_bytes + launch.shared_bytes > shared.max_total)
    return cudaErrorInvalidValue;
  return cudaSuccess;
}

// Visits 0..count-1 in an order drawn from the seed, without a list: i -> (start + i*step) mod
// count.
class BlockOrder {
 public:
  BlockOrder(std::uint64_t count, std::uint64_t seed)
      : count_(count), next_(mix(seed) % count), step_(mix(seed + 1) % count) {
    while (std::gcd(step_, count_) != 1) step_ = (step_ + 1) % count_;
  }
  std::uint64_t next() {
    const std::uint64_t now = next_;
    next_ = now >= count_ - step_ ? now - (count_ - step_) : now + step_;
    return now;
  }

 private:
  std::uint64_t count_, next_, step_;
};

void check_red_zone(const Launch& launch, std::uint64_t seed) {
  if (dynamic_memory().is_intact()) return;
  fail((std::string(launch.name) + ": expected writes inside the " +
        std::to_string(launch.shared_bytes) +
        " bytes of dynamic shared memory, got one beyond them in block (" +
        std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
        std::to_string(blockIdx.z) + "); ask for more or write less (KDISTILL_EMULATION_SEED=" +
        std::to_string(seed) + " repeats this order)")
           .c_str());
}

void run_grid(const Launch& launch, std::uint64_t seed, KernelShared& shared) {
  const std::uint64_t per_layer = static_cast<std::uint64_t>(launch.grid.x) * launch.grid.y,
                      count = per_layer * launch.grid.z;
  BlockOrder order(count, seed);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t linear = order.next();
    blockIdx = {unsigned(linear % launch.grid.x), unsigned(linear / launch.grid.x % launch.grid.y),
                unsigned(linear / per_layer)};
    // finds the variables of functions that the kernel calls
    if (i == 1) static_shared().poison_written(shared);
    if (i > 1) StaticShared::poison(shared);
    dynamic_memory().begin_block(launch.shared_bytes);
    run_block(mix(seed) + linear);
    check_red_zone(launch, seed);
  }
}

// Whatever ends a launch, the next one finds all shared memory poisoned and no kernel running.
struct AtEnd {
  KernelShared& shared;
  ~AtEnd() {
    end_launch();
    dynamic_memory().end_launch();
    static_shared().poison_written(shared);
  }
};

}  // namespace

std::uint64_t last_seed() { return seed_of_last; }
std::uint64_t num_launches() { return launches; }
void* dynamic_shared() { return dynamic_memory().data(); }

void launch(const Launch& launch) {
  // the OS thread that runs the kernel holds the lock already
  if (is_kernel_thread())
    fail((std::string(launch.name) + ": expected a launch from host code, got one inside a kernel")
             .c_str());
  const std::lock_guard<std::mutex> lock(one_launch);
  const cudaError_t status = check_sizes(launch);
  if (status != cudaSuccess) {
    set_last_error(status);
    return;
  }
  seed_of_last = next_seed();
  KernelShared& shared = static_shared().of(launch.kernel);
  begin_launch(launch, seed_of_last);
  const AtEnd at_end{shared};
  run_grid(launch, seed_of_last, shared);
}

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;  // a hint
  const std::lock_guard<std::mutex> lock(one_launch);
  KernelShared& shared = static_shared().of(kernel);
  if (value < 0 || shared.static_bytes + static_cast<std::size_t>(value) > kSharedOptIn)
    return set_last_error(cudaErrorInvalidValue);
  shared.max_total =
      std::max(kSharedDefault, shared.static_bytes + static_cast<std::size_t>(value));
  return cudaSuccess;
}

}  // namespace kd::emulation
