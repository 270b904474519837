// What norm_act_pool and its tangents share: windows of a row, the activation and its mask.
#pragma once
#include <cstdint>

#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

constexpr int64_t kBlock = 128;         // channels of a unit: what belongs to a channel stays in L1
constexpr int64_t kSmallestBlock = 16;  // one cache line of float32
constexpr int kWindows = 2;             // pooling windows per load of what belongs to a channel
constexpr int64_t kParallel = 32768;    // fewer elements are not worth waking the other threads

// body(Count, j) for the windows j of a row, several at a time.
template <int n>
struct Count {
  static constexpr int value = n;
};

template <typename F>
KD_INLINE void for_windows(int64_t windows, const F& body) {
  int64_t j = 0;
  for (; j + kWindows <= windows; j += kWindows) body(Count<kWindows>{}, j);
  for (; j < windows; ++j) body(Count<1>{}, j);
}

// Rows of the geometry are those of one image; `c` is the distance between pixels, `width` the
// channels of the unit.
struct Geometry {
  int64_t c, h, w, width;
};

// What turns a pixel into a quarter of its activation: relu((x - mean) * scale + shift).  A
// quarter, because a window averages four; that factor is exact.  The mean is not folded into the
// shift: that would lose digits where it is large.
template <typename T>
struct Affine {
  const T* mean;
  T scale[kBlock], shift[kBlock];

  Affine(const T* weight, const T* bias, const T* mean, const T* rstd, int64_t width) : mean(mean) {
    for (int64_t k = 0; k < width; ++k) {
      scale[k] = T(0.25) * weight[k] * rstd[k];
      shift[k] = T(0.25) * bias[k];
    }
  }
};

inline float inverse_root(float v) { return 1.0f / __builtin_sqrtf(v); }
inline double inverse_root(double v) { return 1.0 / __builtin_sqrt(v); }

// Channels of a unit, `block` or fewer: where there would be too few units for the threads.
inline int64_t channels_of_unit(int64_t n, int64_t c, int threads, int64_t block = kBlock) {
  while (block > kSmallestBlock && n * ((c + block - 1) / block) < 4 * int64_t(threads)) block /= 2;
  return block;
}

// From the shares of the images [n, c] of two gradients, for each row of parameters their sums in
// the order of the images.
template <typename T>
void sum_of_images(const T* of_weights, const T* of_biases, T* dweight, T* dbias, int64_t n,
                   int64_t c, int64_t groups, int threads) {
  const int64_t images = n / groups;
#pragma omp parallel for num_threads(threads) schedule(static) if (groups > 1 && n * c >= kParallel)
  for (int64_t row = 0; row < groups; ++row) {
    for (int64_t k = 0; k < c; ++k) {
      double of_weight = 0, of_bias = 0;
      for (int64_t i = row * images; i < (row + 1) * images; ++i) {
        of_weight += double(of_weights[i * c + k]);
        of_bias += double(of_biases[i * c + k]);
      }
      dweight[row * c + k] = T(of_weight), dbias[row * c + k] = T(of_bias);
    }
  }
}

}  // namespace
}  // namespace kd::KD_ISA
