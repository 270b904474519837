#include "cuda_emulation/sync.hpp"

#include <cstdio>
#include <cstring>

#include "common/check.hpp"
#include "cuda_emulation/scheduler.hpp"

namespace kd::emulation {
namespace {

constexpr unsigned kLanes = 32;

bool is_same_place(const Thread& thread, const char* name, const char* file, int line) {
  return thread.line == line && (thread.file == file || std::strcmp(thread.file, file) == 0) &&
         (thread.name == name || std::strcmp(thread.name, name) == 0);
}

Thread& arrive(Wait wait, const char* name, const char* file, int line) {
  KD_CHECK(
      block.launch,
      "cuda_emulation: expected a barrier or warp operation inside a kernel, got one in host code");
  Thread& self = block.threads[block.current];
  self.wait = wait;
  self.name = name;
  self.file = file;
  self.line = line;
  return self;
}

// The lane that `lane` reads in a group of `width` lanes; PTX ISA, "shfl.sync".
unsigned source_lane(Wait wait, unsigned lane, int argument, int width) {
  const unsigned first = lane & ~unsigned(width - 1), last = first + unsigned(width) - 1,
                 b = unsigned(argument) & 31u;
  switch (wait) {
    case Wait::shuffle:
      return first + (b & unsigned(width - 1));
    case Wait::shuffle_up:
      return lane >= first + b ? lane - b : lane;
    case Wait::shuffle_down:
      return lane + b <= last ? lane + b : lane;
    case Wait::shuffle_xor:
      return (lane ^ b) <= last ? lane ^ b : lane;
    default:
      return lane;
  }
}

// All lanes of the mask are here: each gets its value.  A lane outside the mask gives 0xFF bytes.
void complete(Thread* lanes, Wait wait, unsigned mask) {
  std::uint64_t brought[kLanes], votes = 0;
  const bool is_vote = wait == Wait::ballot || wait == Wait::any || wait == Wait::all;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const bool is_here = mask >> lane & 1u;
    brought[lane] = is_here ? lanes[lane].value : ~std::uint64_t{0};
    if (is_here && lanes[lane].value) votes |= std::uint64_t{1} << lane;
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    Thread& thread = lanes[lane];
    thread.value =
        is_vote ? votes : brought[source_lane(wait, lane, thread.argument, thread.width)];
    thread.wait = Wait::none;
    make_ready(unsigned(&thread - block.threads));
  }
}

[[noreturn]] void refuse(const char* name, const char* file, int line, const char* expected) {
  char message[512];
  std::snprintf(message, sizeof message, "%s: %s (%s:%d): expected %s", block.launch->name, name,
                file, line, expected);
  fail(message);
}

}  // namespace

int block_barrier(bool predicate, const char* name, const char* file, int line) {
  if (block.num_at_barrier == 0) {
    block.is_one_barrier = true;
    block.num_predicates = 0;
  }
  const Thread* const before =
      block.num_at_barrier ? &block.threads[block.last_at_barrier] : nullptr;
  arrive(Wait::barrier, name, file, line);
  if (before && !is_same_place(*before, name, file, line)) block.is_one_barrier = false;
  block.last_at_barrier = block.current;
  block.num_predicates += predicate;
  if (++block.num_at_barrier == block.num_threads && block.is_one_barrier) {
    block.barrier_result = block.num_predicates;
    block.num_at_barrier = 0;
    for (unsigned thread = 0; thread < block.num_threads; ++thread) {
      block.threads[thread].wait = Wait::none;
      make_ready(thread);
    }
  }
  wait();
  return int(block.barrier_result);
}

std::uint64_t warp_operation(Wait wait_for, unsigned mask, std::uint64_t value, int argument,
                             int width, const char* name, const char* file, int line) {
  Thread& self = arrive(wait_for, name, file, line);
  const unsigned lane = block.current % kLanes;
  if (!(mask >> lane & 1u)) refuse(name, file, line, "the calling lane in the mask; add it");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    refuse(name, file, line, "a width of 1, 2, 4, 8, 16 or 32");
  self.mask = mask;
  self.value = value;
  self.argument = argument;
  self.width = width;
  const unsigned first = block.current - lane;
  bool is_complete = true;
  for (unsigned other = 0; other < kLanes && is_complete; ++other) {
    if (!(mask >> other & 1u)) continue;
    const Thread* const thread =
        first + other < block.num_threads ? &block.threads[first + other] : nullptr;
    // as in PTX: the same operation and mask; it may stand in several places
    is_complete =
        thread && thread->wait == wait_for && thread->mask == mask && thread->width == width;
  }
  if (is_complete) complete(&block.threads[first], wait_for, mask);
  wait();
  return self.value;
}

}  // namespace kd::emulation
