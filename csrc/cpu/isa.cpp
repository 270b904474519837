#include "cpu/isa.hpp"

#include <atomic>
#include <cstring>

#include "common/check.hpp"

namespace kd {

Isa supported_isa() {
#if defined(KD_HAS_X86_VARIANTS)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::generic;
}

static std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{supported_isa()};
  return isa;
}

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  static const char* const names[] = {"generic", "avx2", "avx512"};
  return names[static_cast<int>(isa)];
}

void use_isa(const char* name) {
  for (Isa isa : {Isa::generic, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(name, isa_name(isa)) != 0) continue;
    KD_CHECK(isa <= supported_isa(),
             "use_isa: this processor or build cannot run that instruction set");
    chosen().store(isa);
    return;
  }
  fail("use_isa: expected generic, avx2 or avx512");
}

}  // namespace kd
