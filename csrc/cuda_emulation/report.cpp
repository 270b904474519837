// What the error says when the threads of a block wait for each other in vain.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda_emulation/scheduler.hpp"

namespace kd::emulation {
namespace {

constexpr unsigned kLanes = 32;
constexpr std::size_t kMaxGroups = 4;

struct Group {  // threads that wait for the same
  const Thread* first;
  unsigned warp, count = 0, lanes = 0;
};

template <typename... Values>
std::string text(const char* format, Values... values) {
  char buffer[512];
  std::snprintf(buffer, sizeof buffer, format, values...);
  return buffer;
}

bool belongs(const Group& group, const Thread& thread, unsigned warp) {
  const Thread& first = *group.first;
  return first.wait == thread.wait && first.line == thread.line &&
         std::strcmp(first.file, thread.file) == 0 &&
         (thread.wait == Wait::barrier ||
          (group.warp == warp && first.mask == thread.mask && first.width == thread.width));
}

std::vector<Group> waiting_groups() {
  std::vector<Group> groups;
  for (unsigned i = 0; i < block.num_threads; ++i) {
    const Thread& thread = block.threads[i];
    if (thread.wait == Wait::none || thread.wait == Wait::returned) continue;
    Group* group = nullptr;
    for (Group& known : groups)
      if (belongs(known, thread, i / kLanes)) group = &known;
    if (!group) {
      groups.push_back({&thread, i / kLanes});
      group = &groups.back();
    }
    group->count += 1;
    group->lanes |= 1u << i % kLanes;
  }
  return groups;
}

std::string describe(const Group& group) {
  const Thread& first = *group.first;
  const std::string place =
      text("%u at %s (%s:%d)", group.count, first.name, first.file, first.line);
  if (first.wait == Wait::barrier) return place;
  return place + text(" in warp %u with mask 0x%08x, where the lanes 0x%08x are missing",
                      group.warp, first.mask, first.mask & ~group.lanes);
}

}  // namespace

std::string describe_deadlock() {
  const std::vector<Group> groups = waiting_groups();
  bool is_warp = false;
  std::string waiting;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    is_warp = is_warp || groups[i].first->wait != Wait::barrier;
    if (i < kMaxGroups) waiting += (i ? ", " : "") + describe(groups[i]);
  }
  if (groups.size() > kMaxGroups)
    waiting += text(", waits at %zu further places", groups.size() - kMaxGroups);
  return text("%s: expected all %u threads of block (%u, %u, %u) at one barrier%s, got ",
              block.launch->name, block.num_threads, blockIdx.x, blockIdx.y, blockIdx.z,
              is_warp ? " and all lanes of a mask at one warp operation" : "") +
         waiting + (block.num_returned ? text(", %u returned", block.num_returned) : "") +
         text("; let every thread reach it (KDISTILL_EMULATION_SEED=%llu repeats this order)",
              static_cast<unsigned long long>(block.seed));
}

}  // namespace kd::emulation
