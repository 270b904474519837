#include "cuda_emulation/fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "common/check.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(KD_EMULATION_UCONTEXT)
// Saves what a callee must preserve in the System V ABI, except the floating-point modes: all
// fibers share them.
//   rdi: where to store this stack pointer; rsi: the stack pointer to continue from
extern "C" void kd_emulation_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.type kd_emulation_switch, @function
.hidden kd_emulation_switch
.globl kd_emulation_switch
kd_emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size kd_emulation_switch, .-kd_emulation_switch
)");
#endif

namespace kd::emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 256 * 1024;  // instrumented frames are several times larger
#else
constexpr std::size_t kStackBytes = 64 * 1024;
#endif
constexpr int kStacksPerMapping = 32;
constexpr std::size_t kOffsetStep = 512, kOffsets = 8;

Fiber* previous = nullptr;  // the fiber that made the last switch

struct Mapping {
  unsigned char* next = nullptr;
  int left = 0;
};

// One stack, with an unmapped page below it: too deep a recursion is a fault, not a wrong result.
unsigned char* map_stack() {
  static Mapping mapping;
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE)),
                    slot = kStackBytes + page;
  if (mapping.left == 0) {
    void* memory = mmap(nullptr, kStacksPerMapping * slot, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    KD_CHECK(
        memory != MAP_FAILED,
        "cuda_emulation: expected memory for the stacks of a block, got none; use smaller blocks");
    mapping = {static_cast<unsigned char*>(memory), kStacksPerMapping};
  }
  unsigned char* const guard = mapping.next;
  KD_CHECK(mprotect(guard, page, PROT_NONE) == 0,
           "cuda_emulation: expected to protect a page below a stack, got a refusal");
  mapping.next += slot;
  mapping.left -= 1;
  return guard + page;
}

}  // namespace

Fiber* make_fiber(void (*entry)()) {
  static std::size_t count = 0;
  Fiber* const fiber = new Fiber;  // kept for the life of the process, like its stack
  fiber->stack_low = map_stack();
  fiber->stack_size = kStackBytes;
  fiber->stack_offset = count++ % kOffsets * kOffsetStep;
  reset_fiber(*fiber, entry);
  return fiber;
}

void reset_fiber(Fiber& fiber, void (*entry)()) {
  auto* const low = static_cast<unsigned char*>(const_cast<void*>(fiber.stack_low));
#if defined(__SANITIZE_ADDRESS__)
  // of the frames that were left without a return
  __asan_unpoison_memory_region(low, fiber.stack_size);
#endif
  fiber.fake_stack = nullptr;
#if defined(KD_EMULATION_UCONTEXT)
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = low;
  fiber.context.uc_stack.ss_size = fiber.stack_size - fiber.stack_offset;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#else
  // from the top: a return address of 0, where unwinding ends; the entry; six registers
  auto* const top = reinterpret_cast<std::uintptr_t*>(low + fiber.stack_size - fiber.stack_offset);
  top[-1] = 0;  // at `entry` the stack pointer is 8 below a multiple of 16, as after a call
  top[-2] = reinterpret_cast<std::uintptr_t>(entry);
  for (int i = 3; i < 9; ++i) top[-i] = 0;
  fiber.stack_pointer = top - 8;
#endif
}

void fiber_entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &previous->stack_low, &previous->stack_size);
#endif
}

void switch_fiber(Fiber& from, Fiber& to) {
  previous = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_low, to.stack_size);
#endif
#if defined(KD_EMULATION_UCONTEXT)
  swapcontext(&from.context, &to.context);
#else
  kd_emulation_switch(&from.stack_pointer, to.stack_pointer);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, &previous->stack_low, &previous->stack_size);
#endif
}

}  // namespace kd::emulation
