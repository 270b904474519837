// KD_CHECK(condition, message) throws kd::Error; Python sees it as kdistill.errors.NativeError.
#pragma once
#include <stdexcept>

namespace kd {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Compiled once, in check.cpp: files built per instruction set must not inline library code.
[[noreturn]] void fail(const char* message);

}  // namespace kd

#define KD_CHECK(condition, message)     \
  do {                                   \
    if (!(condition)) kd::fail(message); \
  } while (0)
