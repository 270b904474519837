// A layer of StyleGAN2 in one pass: out = clamp(gain * leaky(conv(x * styles) * scale + noise + bias)), and the gradients of x and
// styles.  What is before scale is y; the rest of the backward is fir_bias_act's and winograd_conv's.
//   x, dx [n, h, w, c]; styles, dstyles [n, c]; scale [n, k]; bias [k]; noise [noise_rows, h, w], noise_rows 1 or n, 0 for none
//   weight [k, c, 3, 3]; y, dy, out [n, h, w, k], y may be null; the plan of the pass is winograd_pass.hpp's
// Traffic: forward reads x and writes y and out, backward reads dy and x and writes dx.
// Truth: kdistill/backends/reference/styled_conv.py, derivation: docs/ops/styled_conv.md
#include "cpu/activation.hpp"
#include "cpu/ops.hpp"
#include "cpu/winograd_pass.hpp"

namespace kd::KD_ISA {

template <typename T>
void styled_conv(const T* x, const T* weight, const T* styles, const T* scale, const T* bias, const T* noise, T* y, T* out,
                 T* scratch, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t noise_rows, double slope, double gain,
                 double limit, int64_t block, bool by_panels, int64_t shared, int64_t per_thread, int threads) {
  KD_CHECK(noise_rows == 0 || noise_rows == 1 || noise_rows == n, "styled_conv: expected noise for one image or for all");
  const Activation<T> act{T(slope), T(gain), T(limit)};
  const auto read = [&](auto zero, int64_t, int64_t image, int64_t i, int64_t j, int64_t q) __attribute__((always_inline)) {
    using Vec = decltype(zero);
    return Vec(load<Vec>(x + ((image * h + i) * w + j) * c + q) * load<Vec>(styles + image * c + q));
  };
  const auto write = [&](int64_t, const Place& at, int64_t q0, int64_t channels, const T* planes, int64_t stride) {
    const T* shifts = noise_rows ? noise + (noise_rows == 1 ? 0 : at.image) * h * w : nullptr;
    for_vectors<T>(channels, [&](auto zero, int64_t from) __attribute__((always_inline)) {
      using Vec = decltype(zero);
      const int64_t q = q0 + from;
      const Vec factor = load<Vec>(scale + at.image * k + q), shift = load<Vec>(bias + q);
      put_results<T, Vec>(planes + from, stride, [&](int i, int j, Vec v) __attribute__((always_inline)) {
        if (at.top + i >= h || at.left + j >= w) return;
        const int64_t pixel = (at.top + i) * w + at.left + j, to = (at.image * h * w + pixel) * k + q;
        if (y) store(y + to, v);
        store(out + to, act(Vec(v * factor + (shifts ? shifts[pixel] : T(0)) + shift)));
      });
    });
  };
  const Plan<T> plan{block, by_panels, scratch, shared, per_thread, threads};
  run_pass(Pass(n, h, w, c, k, 1), Filters<T>{{weight, nullptr}, c, k, false}, plan, read, write);
}

// of_tiles [tiles, c]: the sums of every tile, added up in the order of the tiles.
template <typename T>
void styled_conv_input_bwd(const T* dy, const T* x, const T* weight, const T* styles, T* dx, T* dstyles, T* of_tiles, T* scratch,
                           int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t block, bool by_panels, int64_t shared,
                           int64_t per_thread, int threads) {
  const Pass pass(n, h, w, k, c, 1);
  const auto read = [&](auto zero, int64_t, int64_t image, int64_t i, int64_t j, int64_t q) __attribute__((always_inline)) {
    return load<decltype(zero)>(dy + ((image * h + i) * w + j) * k + q);
  };
  const auto write = [&](int64_t tile, const Place& at, int64_t q0, int64_t channels, const T* planes, int64_t stride) {
    for_vectors<T>(channels, [&](auto zero, int64_t from) __attribute__((always_inline)) {
      using Vec = decltype(zero);
      const int64_t q = q0 + from;
      const Vec style = load<Vec>(styles + at.image * c + q);
      Vec sum = zero;
      put_results<T, Vec>(planes + from, stride, [&](int i, int j, Vec v) __attribute__((always_inline)) {
        if (at.top + i >= h || at.left + j >= w) return;
        const int64_t to = ((at.image * h + at.top + i) * w + at.left + j) * c + q;
        store(dx + to, Vec(v * style));
        sum += v * load<Vec>(x + to);
      });
      store(of_tiles + tile * c + q, sum);
    });
  };
  run_pass(pass, Filters<T>{{weight, nullptr}, k, c, true}, Plan<T>{block, by_panels, scratch, shared, per_thread, threads}, read, write);
  const int64_t tiles = pass.down * pass.across;  // of an image
  for (int64_t image = 0; image < n; ++image) {
    T* sums = dstyles + image * c;
    for (int64_t q = 0; q < c; ++q) sums[q] = 0;
    for (int64_t tile = image * tiles; tile < (image + 1) * tiles; ++tile) {
      for (int64_t q = 0; q < c; ++q) sums[q] += of_tiles[tile * c + q];
    }
  }
}

#define KD_INSTANTIATE(T)                                                                                                        \
  template void styled_conv(const T*, const T*, const T*, const T*, const T*, const T*, T*, T*, T*, int64_t, int64_t, int64_t,    \
                            int64_t, int64_t, int64_t, double, double, double, int64_t, bool, int64_t, int64_t, int);             \
  template void styled_conv_input_bwd(const T*, const T*, const T*, const T*, T*, T*, T*, T*, int64_t, int64_t, int64_t, int64_t, \
                                      int64_t, int64_t, bool, int64_t, int64_t, int);
KD_INSTANTIATE(float)
KD_INSTANTIATE(double)

}  // namespace kd::KD_ISA
