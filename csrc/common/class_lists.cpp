#include "common/class_lists.hpp"

#include <vector>

#include "common/check.hpp"

namespace kd {

void class_lists(const int64_t* labels, int64_t* order, int64_t* offsets, int64_t n,
                 int64_t num_classes) {
  std::vector<int64_t> next(num_classes + 1, 0);
  for (int64_t i = 0; i < n; ++i) {
    KD_CHECK(labels[i] >= 0 && labels[i] < num_classes,
             "class_lists: expected labels in 0..num_classes-1");
    ++next[labels[i] + 1];
  }
  for (int64_t c = 0; c < num_classes; ++c) next[c + 1] += next[c];
  for (int64_t c = 0; c <= num_classes; ++c) offsets[c] = next[c];
  for (int64_t i = 0; i < n; ++i) order[next[labels[i]]++] = i;
}

}  // namespace kd
