// The dtypes that every kernel is compiled for.
#pragma once

#define KD_INSTANTIATE(op)                \
  template decltype(op<float>) op<float>; \
  template decltype(op<double>) op<double>;
