// Turns a kernel into a function for Python: pointers and streams arrive as integers, the rest as
// itself.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <type_traits>

#include "common/check.hpp"

namespace kd {

namespace py = pybind11;

template <typename A>
using Passed = std::conditional_t<std::is_pointer_v<A>, std::uintptr_t, A>;

template <typename... A>
auto by_address(void (*kernel)(A...)) {
  // the cast: integer to pointer, else nothing
  return [kernel](Passed<A>... values) { kernel((A)values...); };
}

// Anything callable with the arguments A..., such as the per-instruction-set variants of a CPU
// kernel.
template <template <typename...> class Callable, typename... A>
auto by_address(Callable<A...> kernel) {
  return [kernel](Passed<A>... values) { kernel((A)values...); };
}

// kd::Error arrives as an exception that `except NativeError` catches.
inline void register_error(py::module_& m) {
  py::register_local_exception<Error>(m, "Error",
                                      py::module_::import("kdistill.errors").attr("NativeError"));
}

}  // namespace kd
