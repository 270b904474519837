// The running block: its threads, who may run, who waits for what.  One block at a time in the
// process (launch.cpp holds a lock).
#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>

#include "cuda_emulation/fiber.hpp"
#include "cuda_emulation/launch.hpp"
#include "cuda_emulation/sync.hpp"

namespace kd::emulation {

constexpr unsigned kMaxThreads = 1024;

struct Thread {
  Fiber* fiber = nullptr;   // null before it starts and after it returns
  std::uint64_t value = 0;  // what it brings to a warp operation, then what it takes away
  const char* name = nullptr;
  const char* file = nullptr;
  int line = 0, argument = 0, width = 0;
  unsigned mask = 0;
  Wait wait = Wait::none;
};

struct Block {
  const Launch* launch = nullptr;  // null while no kernel runs
  std::uint64_t seed = 0;
  unsigned num_threads = 0, num_returned = 0;
  unsigned current = 0;  // the running thread

  unsigned num_ready = 0;  // threads that may run, the not yet started ones too, in any order
  std::uint16_t ready[kMaxThreads];
  std::uint64_t random = 0;

  unsigned num_at_barrier = 0, num_predicates = 0;
  unsigned last_at_barrier = 0;  // the thread that came last
  bool is_one_barrier = true;    // all that wait do so at the same place
  unsigned barrier_result = 0;   // of the last complete barrier

  std::exception_ptr error;
  Thread threads[kMaxThreads];
  uint3 indices[kMaxThreads];  // threadIdx of each
};

extern Block block;

// Numbers the threads of a launch.
void begin_launch(const Launch& launch, std::uint64_t seed);
// Runs all threads of blockIdx to their ends; throws what a kernel or a barrier threw.
void run_block(std::uint64_t order_seed);
void end_launch();

// Runs other threads until this one is ready again.  Throws kd::Error if no thread can go on.
void wait();
inline void make_ready(unsigned thread) { block.ready[block.num_ready++] = std::uint16_t(thread); }

// Whether the calling OS thread is in a kernel.
bool is_kernel_thread();

// Why no thread can go on: the text of the error.
std::string describe_deadlock();

std::uint64_t mix(std::uint64_t seed);  // a bijection that spreads neighbours (splitmix64)

}  // namespace kd::emulation
