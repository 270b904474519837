// A stack with a place to continue from.  switch_fiber costs a few nanoseconds:
// docs/design/cuda_emulation.md.
#pragma once
#include <cstddef>

// KD_EMULATION_UCONTEXT: the portable switch, about 20 times slower; the only one outside x86-64.
#if !defined(__x86_64__) && !defined(KD_EMULATION_UCONTEXT)
#define KD_EMULATION_UCONTEXT
#endif
#if defined(KD_EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace kd::emulation {

struct Fiber {
#if defined(KD_EMULATION_UCONTEXT)
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  // of the usable part; for the fiber of the OS thread AddressSanitizer says it
  const void* stack_low = nullptr;
  std::size_t stack_size = 0;
  // the top of each stack is moved a little, or all would share a few lines of the cache
  std::size_t stack_offset = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  Fiber* next_free = nullptr;
};

// Makes a fiber that begins at `entry`, which must first call fiber_entered and must never return.
// Throws kd::Error without memory.
Fiber* make_fiber(void (*entry)());

// Forgets where the fiber was; the next switch to it begins at `entry` again.
void reset_fiber(Fiber& fiber, void (*entry)());

// Continues `to`; returns when something switches back to `from`.
void switch_fiber(Fiber& from, Fiber& to);
void fiber_entered();

}  // namespace kd::emulation
