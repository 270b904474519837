#include "bindings/by_address.hpp"
#include "cuda/ops.hpp"

namespace py = pybind11;

#if !defined(KD_MODULE)
#define KD_MODULE _cuda
#endif

// One line binds both dtypes of an op.
#define KD_BIND(op)                                                \
  m.def(#op "_f32", kd::by_address(&kd::cuda::op<float>), no_gil); \
  m.def(#op "_f64", kd::by_address(&kd::cuda::op<double>), no_gil)

PYBIND11_MODULE(KD_MODULE, m) {
  kd::register_error(m);
  const py::call_guard<py::gil_scoped_release> no_gil;

  KD_BIND(class_mean_sqdist);
  KD_BIND(class_mean_sqdist_bwd);
}
