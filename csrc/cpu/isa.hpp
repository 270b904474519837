// One source, several instruction sets: CMake compiles csrc/cpu/<op>.cpp once per set with
// -DKD_ISA=<set>, and the choice is made at run time from what the processor reports (never
// -march=native).
#pragma once
#include <cstdint>

namespace kd {

enum class Isa { generic = 0, avx2 = 1, avx512 = 2 };

Isa supported_isa();  // what this processor and this build can run
// what calls use now: supported_isa(), or lower if a test asked for it
Isa current_isa();
const char* isa_name(Isa isa);
void use_isa(const char* name);  // "generic", "avx2", "avx512"; kd::Error if it cannot run here

// The same kernel for each instruction set; KD_BEST(op<T>) fills it.
template <typename... A>
struct Variants {
  void (*by_isa[3])(A...);
  void operator()(A... values) const { by_isa[static_cast<int>(current_isa())](values...); }
};

template <typename... A>
Variants<A...> variants(void (*generic)(A...), void (*avx2)(A...), void (*avx512)(A...)) {
  return {{generic, avx2, avx512}};
}

}  // namespace kd

#if defined(KD_HAS_X86_VARIANTS)
#define KD_BEST(op) kd::variants(&kd::generic::op, &kd::avx2::op, &kd::avx512::op)
#else
#define KD_BEST(op) kd::variants(&kd::generic::op, &kd::generic::op, &kd::generic::op)
#endif
