// The rows of every class: order[offsets[c] .. offsets[c+1]) lists them in ascending order (a
// stable counting sort).
#pragma once
#include <cstdint>

namespace kd {

// labels [n] in 0..num_classes-1; order [n]; offsets [num_classes + 1].  Throws on a label
// outside.  O(n + num_classes).
void class_lists(const int64_t* labels, int64_t* order, int64_t* offsets, int64_t n,
                 int64_t num_classes);

}  // namespace kd
