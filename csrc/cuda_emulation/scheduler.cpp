#include "cuda_emulation/scheduler.hpp"

#include <utility>
#include <vector>

#include "common/check.hpp"

uint3 threadIdx{}, blockIdx{};
dim3 blockDim, gridDim;

namespace kd::emulation {

Block block;

namespace {

std::vector<Fiber*> all_fibers;
Fiber* free_fibers = nullptr;
Fiber os_thread;  // the fiber of the caller of launch()
std::uint64_t switches = 0;
thread_local bool is_running = false;  // a kernel, on this OS thread

void thread_main();

void release(Fiber* fiber) {
  fiber->next_free = free_fibers;
  free_fibers = fiber;
}

Fiber* take_fiber() {
  if (!free_fibers) {
    all_fibers.push_back(make_fiber(thread_main));
    return all_fibers.back();
  }
  Fiber* const fiber = free_fibers;
  free_fibers = fiber->next_free;
  return fiber;
}

// A random one of the ready threads.
unsigned take_ready() {
  block.random = block.random * 6364136223846793005u + 1442695040888963407u;
  const unsigned i = unsigned(((block.random >> 32) * block.num_ready) >> 32);
  const unsigned thread = block.ready[i];
  block.ready[i] = block.ready[--block.num_ready];
  return thread;
}

void set_current(unsigned thread) {
  block.current = thread;
  threadIdx = block.indices[thread];
}

// Leaves the fiber `from` for the thread, which is `current` already and gets a fiber if it has
// none.
void go_to_current(Fiber& from) {
  Thread& thread = block.threads[block.current];
  if (!thread.fiber) thread.fiber = take_fiber();
  ++switches;
  switch_fiber(from, *thread.fiber);
}

// Every fiber runs this: threads that never wait follow each other on one stack, without a switch.
void thread_main() {
  fiber_entered();
  for (;;) {
    Fiber* const self = block.threads[block.current].fiber;
    try {
      block.launch->run(block.launch->call);
    } catch (...) {
      block.error = std::current_exception();  // must not unwind into another stack
    }
    block.threads[block.current].fiber = nullptr;
    block.threads[block.current].wait = Wait::returned;
    block.num_returned += 1;
    if (!block.error && block.num_ready == 0 && block.num_returned < block.num_threads)
      block.error = std::make_exception_ptr(Error(describe_deadlock()));
    if (block.error || block.num_ready == 0) {
      release(self);
      ++switches;
      switch_fiber(*self, os_thread);
      continue;  // a later block gave this fiber a thread
    }
    set_current(take_ready());
    Thread& next = block.threads[block.current];
    if (!next.fiber) {
      next.fiber = self;
      continue;
    }
    release(self);
    go_to_current(*self);
  }
}

// After an error the other threads stay where they are for ever; their stacks are used again.
void reset_fibers() {
  free_fibers = nullptr;
  for (Fiber* fiber : all_fibers) {
    reset_fiber(*fiber, thread_main);
    release(fiber);
  }
}

}  // namespace

std::uint64_t num_switches() { return switches; }

std::uint64_t mix(std::uint64_t seed) {
  seed += 0x9e3779b97f4a7c15u;
  seed = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9u;
  seed = (seed ^ (seed >> 27)) * 0x94d049bb133111ebu;
  return seed ^ (seed >> 31);
}

void begin_launch(const Launch& launch, std::uint64_t seed) {
  is_running = true;
  block.launch = &launch;
  block.seed = seed;
  block.num_threads = launch.block.x * launch.block.y * launch.block.z;
  gridDim = launch.grid;
  blockDim = launch.block;
  unsigned thread = 0;
  for (unsigned z = 0; z < launch.block.z; ++z)
    for (unsigned y = 0; y < launch.block.y; ++y)
      for (unsigned x = 0; x < launch.block.x; ++x) block.indices[thread++] = {x, y, z};
}

void end_launch() {
  block.launch = nullptr;
  is_running = false;
}

bool is_kernel_thread() { return is_running; }

void run_block(std::uint64_t order_seed) {
  block.random = mix(order_seed);
  block.num_returned = block.num_ready = block.num_at_barrier = 0;
  for (unsigned thread = 0; thread < block.num_threads; ++thread) {
    block.threads[thread].wait = Wait::none;
    make_ready(thread);
  }
  set_current(take_ready());
  go_to_current(os_thread);
  if (!block.error) return;
  for (unsigned thread = 0; thread < block.num_threads; ++thread)
    block.threads[thread].fiber = nullptr;
  reset_fibers();
  std::rethrow_exception(std::exchange(block.error, nullptr));
}

void wait() {
  // caught in thread_main, on this stack
  if (block.num_ready == 0) throw Error(describe_deadlock());
  const unsigned self = block.current, next = take_ready();
  if (next == self) return;
  set_current(next);
  go_to_current(*block.threads[self].fiber);
}

}  // namespace kd::emulation
