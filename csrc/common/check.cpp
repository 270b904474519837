#include "common/check.hpp"

namespace kd {

void fail(const char* message) { throw Error(message); }

}  // namespace kd
