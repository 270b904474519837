// Large fresh allocations cost more in page faults than in memory traffic; huge pages cut the faults by 512.
#pragma once
#include <cstdint>

namespace kd {

// Asks for huge pages in [address, address + nbytes), before the first write; a hint, without effect where there are none.
void advise_huge_pages(const char* address, int64_t nbytes);

}  // namespace kd
