// Vectors of T beside float64 vectors of as many lanes: sums of float32 data in float64 at the speed of memory.
#pragma once
#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>  // always inlined, so that no copy of it can end up in the file of another instruction set
#endif

namespace kd::KD_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 8;
#elif defined(__AVX__)
constexpr int64_t kLanes = 4;
#else
constexpr int64_t kLanes = 2;
#endif

typedef double Wide __attribute__((vector_size(kLanes * sizeof(double))));

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
  typedef T unaligned __attribute__((vector_size(kLanes * sizeof(T)), aligned(sizeof(T)), may_alias));
};

template <typename T>
typename Vector<T>::type load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(from);
}

template <typename T>
void store(T* to, typename Vector<T>::type value) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(to) = value;
}

inline Wide widened(Vector<double>::type value) { return value; }

// one instruction, where the compilers' own conversion of vectors takes six (GCC 12)
inline Wide widened(Vector<float>::type value) {
#if defined(__AVX512F__)
  return reinterpret_cast<Wide>(_mm512_maskz_cvtps_pd(0xff, reinterpret_cast<__m256>(value)));
#elif defined(__AVX__)
  return reinterpret_cast<Wide>(_mm256_cvtps_pd(reinterpret_cast<__m128>(value)));
#else
  return __builtin_convertvector(value, Wide);
#endif
}

// The lanes from first to last: one order, whatever the machine does with them.
inline double sum_of(Wide value) {
  double sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += value[lane];
  return sum;
}

}  // namespace
}  // namespace kd::KD_ISA
