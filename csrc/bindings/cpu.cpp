#include "bindings/by_address.hpp"
#include "common/memory.hpp"
#include "cpu/isa.hpp"
#include "cpu/ops.hpp"

namespace py = pybind11;

// One line binds both dtypes of an op.
#define KD_BIND(op)                                                   \
  m.def(#op "_f32", kd::by_address(KD_BEST(op<float>)), no_gil);      \
  m.def(#op "_f64", kd::by_address(KD_BEST(op<double>)), no_gil)

PYBIND11_MODULE(_cpu, m) {
  kd::register_error(m);
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("isa", [] { return kd::isa_name(kd::current_isa()); });
  m.def("supported_isa", [] { return kd::isa_name(kd::supported_isa()); });
  m.def("use_isa", [](const char* name) { kd::use_isa(name); });
  m.def("advise_huge_pages", kd::by_address(&kd::advise_huge_pages));
  m.def("keep_freed_memory", &kd::keep_freed_memory);
  m.def("return_freed_memory", &kd::return_freed_memory);

  KD_BIND(class_mean_sqdist);
  KD_BIND(class_mean_sqdist_bwd);
  KD_BIND(conv_grad_sqnorm);
  KD_BIND(diff_augment);
  KD_BIND(diff_augment_bwd);
  KD_BIND(filtered_lrelu);
  KD_BIND(filtered_lrelu_bwd);
  KD_BIND(fir_bias_act);
  KD_BIND(fir_bias_act_bwd);
  KD_BIND(norm_act_pool);
  KD_BIND(norm_act_pool_bwd);
  KD_BIND(styled_conv);
  KD_BIND(styled_conv_demodulation);
  KD_BIND(styled_conv_demodulation_bwd);
  KD_BIND(styled_conv_doubled);
  KD_BIND(styled_conv_doubled_weight_grad);
  KD_BIND(styled_conv_input_bwd);
  KD_BIND(winograd_conv);
  KD_BIND(winograd_conv_weight_grad);
  KD_BIND(softmax_scores);
  KD_BIND(step_with_dots);
  KD_BIND(trajectory_loss);
  KD_BIND(row_cosine_distance);
  KD_BIND(norm_act_pool_tangent);
  KD_BIND(norm_act_pool_bwd_tangent);
}
