// 3x3 convolutions by Winograd's F(4x4, 3x3), each in one pass.
//   x [n, h, w, c], y, dy [n, oh, ow, k] row-major, contiguous; oh = h + 2 padding - 2, likewise ow
//   weight, dweight [k, c, 3, 3], turned: weight [c, k, 3, 3] with the taps turned around; scale
//   [n, c] or null
// x1, weight1 and dy1 are of a second convolution, which is added, or null.
// Traffic: reads x, writes y; the weight gradient reads x and dy, once for every part of the
// other's channels.
// Truth: kdistill/backends/reference/winograd_conv.py, derivation: docs/ops/winograd_conv.md
#include "cpu/ops.hpp"
#include "cpu/winograd_pass.hpp"

namespace kd::KD_ISA {
namespace {

// The inputs, as a pass reads them.
template <typename T>
struct Plain {
  const T* inputs[2];
  int64_t h, w, c;

  template <typename Vec>
  KD_INLINE Vec operator()(Vec, int64_t input, int64_t image, int64_t i, int64_t j,
                           int64_t q) const {
    return load<Vec>(inputs[input] + ((image * h + i) * w + j) * c + q);
  }
};

}  // namespace

template <typename T>
void winograd_conv(const T* x0, const T* x1, const T* weight0, const T* weight1, T* y, T* scratch,
                   int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t padding,
                   bool turned, int64_t block, bool by_panels, int64_t shared, int64_t per_thread,
                   int threads) {
  const Pass<SameSize> pass(n, h, w, c, k, padding, x1 ? 2 : 1);
  const Plain<T> read{{x0, x1}, h, w, c};
  const auto write = [&](int64_t, const Place& at, int64_t q0, int64_t channels, const T* planes,
                         int64_t stride) KD_ONCE {
    for_vectors<T>(channels, [&](auto zero, int64_t q) __attribute__((always_inline)) {
      using Vec = decltype(zero);
      // copies stay in registers, whatever the stores below may overlap
      const int64_t rows = pass.oh - at.top, columns = pass.ow - at.left, across = k,
                    down = pass.ow * k;
      T* to = y + (at.image * pass.oh + at.top) * down + at.left * across + q0 + q;
      put_results<SameSize, T, Vec>(planes + q, stride,
                                    [&](int i, int j, Vec v) __attribute__((always_inline)) {
                                      if (i >= rows || j >= columns) return;
                                      store(to + i * down + j * across, v);
                                    });
    });
  };
  const Plan<T> plan{block, by_panels, scratch, shared, per_thread, threads};
  run_pass(pass, Filters<SameSize, T>{{weight0, weight1}, c, k, turned}, plan, read, write);
}

// The gradient of weight in the convolution of x * scale; dweight [of_tiles, k, c, 3, 3], the first
// is the result.
template <typename T>
void winograd_conv_weight_grad(const T* x0, const T* x1, const T* scale, const T* dy0, const T* dy1,
                               T* dweight, T* scratch, int64_t n, int64_t h, int64_t w, int64_t c,
                               int64_t k, int64_t padding, int64_t block, int64_t of_tiles,
                               int64_t of_inputs, int64_t of_outputs, int64_t per_thread,
                               int threads) {
  const Pass<SameSize> pass(n, h, w, c, k, padding, x1 ? 2 : 1);
  const WeightPlan<T> plan{block,   of_tiles, of_inputs,  of_outputs,
                           dweight, scratch,  per_thread, threads};
  const T* const grads[2] = {dy0, dy1};
  const Plain<T> read{{x0, x1}, h, w, c};
  const auto read_scaled = [&](auto zero, int64_t input, int64_t image, int64_t i, int64_t j,
                               int64_t q) __attribute__((always_inline)) {
    using Vec = decltype(zero);
    return Vec(read(zero, input, image, i, j, q) * load<Vec>(scale + image * c + q));
  };
  scale ? run_weight_pass(pass, grads, plan, read_scaled)
        : run_weight_pass(pass, grads, plan, read);
}

KD_INSTANTIATE(winograd_conv)
KD_INSTANTIATE(winograd_conv_weight_grad)

}  // namespace kd::KD_ISA
