// Fresh memory costs more in page faults than in traffic: every 4 KiB page is a trap into the
// kernel, which clears it first.
#pragma once
#include <cstdint>

namespace kd {

// Asks for huge pages in [address, address + nbytes), before the first write; a hint, without
// effect where there are none.
void advise_huge_pages(const char* address, int64_t nbytes);

// Lets the C library keep what is freed for the next allocation, up to a quarter of a gigabyte,
// where it is glibc; else a no-op.  By default glibc gives the top of its heap back at every
// chance, and a training step faults its temporaries in again.
void keep_freed_memory();

// Gives every free page back to the system, those in the middle of the heap too, where the C
// library is glibc; else a no-op.  Its aligned blocks seldom take the place of freed ones of their
// own size, so a loop whose blocks change in size leaves holes.
void return_freed_memory();

}  // namespace kd
