// Vectors of the widest register, and narrower ones: over channels with a tail, and float32 beside
// its sums in float64.
#pragma once
#include <cstdint>

#if defined(__AVX__)
// always inlined, so that no copy of it can end up in the file of another instruction set
#include <immintrin.h>
#endif

#define KD_INLINE inline __attribute__((always_inline))

namespace kd::KD_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
// of a vector that is summed up in float64
constexpr int64_t kLanes = kVectorBytes / sizeof(double);

template <typename T, int lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};

typedef VectorOf<double, kLanes>::type Wide;

// The vector that `load<V>` of a T returns; without V, kLanes of T, which `widened` makes a Wide.
template <typename V, typename T>
struct Loaded {
  typedef V type;
};
template <typename T>
struct Loaded<void, T> {
  typedef typename VectorOf<T, kLanes>::type type;
};

template <typename V = void, typename T>
KD_INLINE typename Loaded<V, T>::type load(const T* from) {
  typename Loaded<V, T>::type v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <typename V, typename T>
KD_INLINE void store(T* to, V v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// body(zero vector, first channel) for every vector of [k, width); narrower vectors finish the
// rest.
template <typename T, int lanes, typename F>
KD_INLINE void for_vectors_from(int64_t k, int64_t width, const F& body) {
  for (; k + lanes <= width; k += lanes) body(typename VectorOf<T, lanes>::type{}, k);
  if constexpr (lanes > 1) {
    if (k < width) for_vectors_from<T, lanes / 2>(k, width, body);
  }
}

template <typename T, typename F>
KD_INLINE void for_vectors(int64_t width, const F& body) {
  for_vectors_from<T, kVectorBytes / int(sizeof(T))>(0, width, body);
}

KD_INLINE Wide widened(Wide value) { return value; }

// one instruction, where the compilers' own conversion of vectors takes six (GCC 12)
KD_INLINE Wide widened(VectorOf<float, kLanes>::type value) {
#if defined(__AVX512F__)
  return reinterpret_cast<Wide>(_mm512_maskz_cvtps_pd(0xff, reinterpret_cast<__m256>(value)));
#elif defined(__AVX__)
  return reinterpret_cast<Wide>(_mm256_cvtps_pd(reinterpret_cast<__m128>(value)));
#else
  return __builtin_convertvector(value, Wide);
#endif
}

// The lanes from first to last: one order, whatever the machine does with them.
KD_INLINE double sum_of(Wide value) {
  double sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += value[lane];
  return sum;
}

}  // namespace
}  // namespace kd::KD_ISA
