// Vectors over channels: GCC vector types of the widest register, narrower ones for a tail.
#pragma once
#include <cstdint>

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

template <typename T, int kLanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
};

template <typename V, typename T>
KD_INLINE V load(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <typename V, typename T>
KD_INLINE void store(T* to, V v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// body(zero vector, first channel) for every vector of [k, width); narrower vectors finish the rest.
template <typename T, int kLanes, typename F>
KD_INLINE void for_vectors_from(int64_t k, int64_t width, const F& body) {
  for (; k + kLanes <= width; k += kLanes) body(typename VectorOf<T, kLanes>::type{}, k);
  if constexpr (kLanes > 1) {
    if (k < width) for_vectors_from<T, kLanes / 2>(k, width, body);
  }
}

template <typename T, typename F>
KD_INLINE void for_vectors(int64_t width, const F& body) {
  for_vectors_from<T, kVectorBytes / int(sizeof(T))>(0, width, body);
}

}  // namespace
}  // namespace kd::KD_ISA
