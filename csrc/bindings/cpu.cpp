#include "bindings/by_address.hpp"
#include "bindings/shared_ops.hpp"
#include "common/memory.hpp"
#include "cpu/isa.hpp"
#include "cpu/ops.hpp"

namespace py = pybind11;

// One line binds both dtypes of an op.
#define KD_BIND(op)                                              \
  m.def(#op "_f32", kd::by_address(KD_BEST(op<float>)), no_gil); \
  m.def(#op "_f64", kd::by_address(KD_BEST(op<double>)), no_gil);

PYBIND11_MODULE(_cpu, m) {
  kd::register_error(m);
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("isa", [] { return kd::isa_name(kd::current_isa()); });
  m.def("supported_isa", [] { return kd::isa_name(kd::supported_isa()); });
  m.def("use_isa", [](const char* name) { kd::use_isa(name); });
  m.def("advise_huge_pages", kd::by_address(&kd::advise_huge_pages));
  m.def("keep_freed_memory", &kd::keep_freed_memory);
  m.def("return_freed_memory", &kd::return_freed_memory);

  KD_SHARED_OPS(KD_BIND)
  KD_BIND(styled_conv)
  KD_BIND(styled_conv_demodulation)
  KD_BIND(styled_conv_demodulation_bwd)
  KD_BIND(styled_conv_doubled)
  KD_BIND(styled_conv_doubled_weight_grad)
  KD_BIND(styled_conv_input_bwd)
  KD_BIND(winograd_conv)
  KD_BIND(winograd_conv_weight_grad)
}
