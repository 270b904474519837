#include "bindings/by_address.hpp"
#include "bindings/shared_ops.hpp"
#include "cuda/ops.hpp"

namespace py = pybind11;

#if !defined(KD_MODULE)
#define KD_MODULE _cuda
#endif

// One line binds both dtypes of an op.
#define KD_BIND(op)                                                \
  m.def(#op "_f32", kd::by_address(&kd::cuda::op<float>), no_gil); \
  m.def(#op "_f64", kd::by_address(&kd::cuda::op<double>), no_gil);

PYBIND11_MODULE(KD_MODULE, m) {
  kd::register_error(m);
  const py::call_guard<py::gil_scoped_release> no_gil;
#if defined(KD_CUDA_EMULATION)
  // of the thread order; KDISTILL_EMULATION_SEED repeats it
  m.def("last_seed", &kd::emulation::last_seed);
#else
  m.attr("architectures") = KD_ARCHITECTURES;  // as CMake writes them: "80-real 90-real 90-virtual"
  m.attr("toolkit") = CUDART_VERSION;          // 1000 * major + 10 * minor, as the driver's
  m.def("driver", [] {
    int version = 0;
    kd::check_cuda(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
    return version;
  });
#endif

  KD_SHARED_OPS(KD_BIND)
}
