// Every CPU kernel, one line each, declared in the namespace of every instruction set.
#pragma once
#include <cstdint>

#if defined(KD_HAS_X86_VARIANTS)
#define KD_CPU_OP(name, ...)                                 \
  namespace kd::generic {                                    \
  template <typename T>                                      \
  void name(__VA_ARGS__);                                    \
  }                                                          \
  namespace kd::avx2 {                                       \
  template <typename T>                                      \
  void name(__VA_ARGS__);                                    \
  }                                                          \
  namespace kd::avx512 {                                     \
  template <typename T>                                      \
  void name(__VA_ARGS__);                                    \
  }
#else
#define KD_CPU_OP(name, ...) \
  namespace kd::generic {    \
  template <typename T>      \
  void name(__VA_ARGS__);    \
  }
#endif

// clang-format off
KD_CPU_OP(class_mean_sqdist, const T* real, const int64_t* real_labels, const T* syn, const int64_t* syn_labels, const T* weights, T* value, T* diff, int64_t* lists, T* partials, int64_t n, int64_t m, int64_t f, int64_t num_classes, int threads)
KD_CPU_OP(class_mean_sqdist_bwd, const T* grad, const T* diff, const T* weights, const int64_t* labels, T* out, int64_t* counts, T* table, int64_t n, int64_t f, int64_t num_classes, double sign, int threads)
// clang-format on
