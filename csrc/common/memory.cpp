#include "common/memory.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace kd {

void advise_huge_pages(const char* address, int64_t nbytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = 4096;
  const std::uintptr_t first =
      (reinterpret_cast<std::uintptr_t>(address) + kPage - 1) / kPage * kPage;
  const std::uintptr_t last =
      (reinterpret_cast<std::uintptr_t>(address) + static_cast<std::uintptr_t>(nbytes)) / kPage *
      kPage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)address;
  (void)nbytes;
#endif
}

void keep_freed_memory() {
#if defined(__GLIBC__)
  // the largest that glibc takes: bigger blocks come fresh from the kernel
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
#endif
}

void return_freed_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace kd
