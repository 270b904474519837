// A layer of StyleGAN2 in one pass: out = clamp(gain * leaky(conv(x * styles) * scale + noise +
// bias)), and the gradients of x and styles.  What is before scale is y; the rest of the backward
// is fir_bias_act's and winograd_conv's.  In a layer that doubles the size the convolution is a
// transposed one of stride 2, whose y is [n, 2h + 1, 2w + 1, k], and fir_bias_act follows.
//   x, dx [n, h, w, c]; styles, dstyles [n, c]; scale [n, k]; bias [k]; noise [noise_rows, h, w],
//   noise_rows 1 or n, 0 for none weight [k, c, 3, 3]; y, dy, out [n, h, w, k], y may be null; the
//   plan of the pass is winograd_pass.hpp's
// Traffic: forward reads x and writes y and out, backward reads dy and x and writes dx.
// Truth: kdistill/backends/reference/styled_conv.py, derivation: docs/ops/styled_conv.md
#include "cpu/activation.hpp"
#include "cpu/ops.hpp"
#include "cpu/winograd_pass.hpp"

namespace kd::KD_ISA {
namespace {

constexpr int64_t kParallel = 32768;  // fewer products are not worth waking the other threads

// x * styles, as a pass reads it.
template <typename T>
struct Modulated {
  const T *x, *styles;
  int64_t h, w, c;

  template <typename Vec>
  KD_INLINE Vec operator()(Vec, int64_t, int64_t image, int64_t i, int64_t j, int64_t q) const {
    return load<Vec>(x + ((image * h + i) * w + j) * c + q) * load<Vec>(styles + image * c + q);
  }
};

}  // namespace

template <typename T>
void styled_conv(const T* x, const T* weight, const T* styles, const T* scale, const T* bias,
                 const T* noise, T* y, T* out, T* scratch, int64_t n, int64_t h, int64_t w,
                 int64_t c, int64_t k, int64_t noise_rows, double slope, double gain, double limit,
                 int64_t block, bool by_panels, int64_t shared, int64_t per_thread, int threads) {
  KD_CHECK(noise_rows == 0 || noise_rows == 1 || noise_rows == n,
           "styled_conv: expected noise for one image or for all");
  const Activation<T> act{T(slope), T(gain), T(limit)};
  const Modulated<T> read{x, styles, h, w, c};
  const auto write = [&](int64_t, const Place& at, int64_t q0, int64_t channels, const T* planes,
                         int64_t stride) KD_ONCE {
    const T* shifts = noise_rows ? noise + (noise_rows == 1 ? 0 : at.image) * h * w : nullptr;
    for_vectors<T>(channels, [&](auto zero, int64_t from) __attribute__((always_inline)) {
      using Vec = decltype(zero);
      const int64_t q = q0 + from;
      const Vec factor = load<Vec>(scale + at.image * k + q), shift = load<Vec>(bias + q);
      // copies stay in registers, whatever the stores below may overlap
      const int64_t rows = h - at.top, columns = w - at.left, across = k, next = w,
                    pixel = at.top * w + at.left;
      const int64_t first = (at.image * h * w + pixel) * k + q;
      T *of_y = y ? y + first : nullptr, *of_out = out + first;
      const T* of_shifts = shifts ? shifts + pixel : nullptr;
      const Activation<T> activation = act;
      put_results<SameSize, T, Vec>(
          planes + from, stride, [&](int i, int j, Vec v) __attribute__((always_inline)) {
            if (i >= rows || j >= columns) return;
            const int64_t at_pixel = i * next + j;
            if (of_y) store(of_y + at_pixel * across, v);
            store(of_out + at_pixel * across,
                  activation(Vec(v * factor + (of_shifts ? of_shifts[at_pixel] : T(0)) + shift)));
          });
    });
  };
  const Plan<T> plan{block, by_panels, scratch, shared, per_thread, threads};
  run_pass(Pass<SameSize>(n, h, w, c, k, 1), Filters<SameSize, T>{{weight, nullptr}, c, k, false},
           plan, read, write);
}

namespace {

// squares [k, c]: the sums over the taps of the squares of weight [k, c, 3, 3]; row q of them.
template <typename T>
void sum_squares(const T* weight, T* squares, int64_t c, int64_t q) {
  const T* taps = weight + q * c * 9;
  for (int64_t i = 0; i < c; ++i, taps += 9) {
    T sum = 0;
    for (int t = 0; t < 9; ++t) sum += taps[t] * taps[t];
    squares[q * c + i] = sum;
  }
}

// dx and dstyles from dy: the convolution of the transposed filters, times styles, and its product
// with x.
template <typename Scheme, typename T>
KD_INLINE void input_bwd(const Pass<Scheme>& pass, const T* dy, const T* x, const T* weight,
                         const T* styles, T* dx, T* dstyles, T* of_tiles, const Plan<T>& plan) {
  const int64_t h = pass.oh, w = pass.ow, c = pass.k;
  const auto read = [&](auto zero, int64_t, int64_t image, int64_t i, int64_t j,
                        int64_t q) __attribute__((always_inline)) {
    return load<decltype(zero)>(dy + ((image * pass.h + i) * pass.w + j) * pass.c + q);
  };
  const auto write = [&](int64_t tile, const Place& at, int64_t q0, int64_t channels,
                         const T* planes, int64_t stride) KD_ONCE {
    for_vectors<T>(channels, [&](auto zero, int64_t from) __attribute__((always_inline)) {
      using Vec = decltype(zero);
      const int64_t q = q0 + from;
      const Vec style = load<Vec>(styles + at.image * c + q);
      Vec sum = zero;
      const int64_t rows = h - at.top, columns = w - at.left, across = c, down = w * c;
      const int64_t first = (at.image * h + at.top) * down + at.left * across + q;
      const T* of_x = x + first;
      T* of_dx = dx + first;
      put_results<Scheme, T, Vec>(planes + from, stride,
                                  [&](int i, int j, Vec v) __attribute__((always_inline)) {
                                    if (i >= rows || j >= columns) return;
                                    store(of_dx + i * down + j * across, Vec(v * style));
                                    sum += v * load<Vec>(of_x + i * down + j * across);
                                  });
      store(of_tiles + tile * c + q, sum);
    });
  };
  run_pass(pass, Filters<Scheme, T>{{weight, nullptr}, pass.c, c, true}, plan, read, write);
  const int64_t tiles = pass.down * pass.across;  // of an image
  for (int64_t image = 0; image < pass.n; ++image) {
    T* sums = dstyles + image * c;
    for (int64_t q = 0; q < c; ++q) sums[q] = 0;
    for (int64_t tile = image * tiles; tile < (image + 1) * tiles; ++tile) {
      for (int64_t q = 0; q < c; ++q) sums[q] += of_tiles[tile * c + q];
    }
  }
}

}  // namespace

// scale = rsqrt(sum of (weight * styles)^2 + 1e-8), [n, k]; squares [k, c] is scratch.
template <typename T>
void styled_conv_demodulation(const T* weight, const T* styles, T* squares, T* scale, int64_t n,
                              int64_t c, int64_t k, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (k * c >= kParallel)
  for (int64_t q = 0; q < k; ++q) {
    sum_squares(weight, squares, c, q);
    for (int64_t image = 0; image < n; ++image) {
      const T *style = styles + image * c, *row = squares + q * c;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < c; ++i) sum += style[i] * style[i] * row[i];
      scale[image * k + q] = T(1) / T(__builtin_sqrt(sum + T(1e-8)));
    }
  }
}

// Adds to dstyles and, if it is not null, to dweight what comes through scale; dscale becomes the
// gradient of what is under the root.
template <typename T>
void styled_conv_demodulation_bwd(T* dscale, const T* scale, const T* weight, const T* styles,
                                  T* squares, T* dstyles, T* dweight, int64_t n, int64_t c,
                                  int64_t k, int threads) {
  for (int64_t at = 0; at < n * k; ++at) dscale[at] *= T(-0.5) * scale[at] * scale[at] * scale[at];
#pragma omp parallel for num_threads(threads) schedule(static) if (k * c >= kParallel)
  for (int64_t q = 0; q < k; ++q) {
    sum_squares(weight, squares, c, q);
    for (int64_t i = 0; i < c && dweight; ++i) {
      T factor = 0;
      for (int64_t image = 0; image < n; ++image) {
        const T style = styles[image * c + i];
        factor += dscale[image * k + q] * style * style;
      }
      for (int64_t at = (q * c + i) * 9; at < (q * c + i + 1) * 9; ++at)
        dweight[at] += T(2) * factor * weight[at];
    }
  }
#pragma omp parallel for num_threads(threads) schedule(static) if (n * k * c >= kParallel)
  for (int64_t image = 0; image < n; ++image) {
    const T* style = styles + image * c;
    T* to = dstyles + image * c;
    for (int64_t q = 0; q < k; ++q) {
      const T factor = T(2) * dscale[image * k + q], *row = squares + q * c;
      for (int64_t i = 0; i < c; ++i) to[i] += factor * style[i] * row[i];
    }
  }
}

// of_tiles [tiles, c]: the sums of every tile, added up in the order of the tiles.
template <typename T>
void styled_conv_input_bwd(const T* dy, const T* x, const T* weight, const T* styles, T* dx,
                           T* dstyles, T* of_tiles, T* scratch, int64_t n, int64_t h, int64_t w,
                           int64_t c, int64_t k, bool doubles, int64_t block, bool by_panels,
                           int64_t shared, int64_t per_thread, int threads) {
  const Plan<T> plan{block, by_panels, scratch, shared, per_thread, threads};
  if (doubles) {
    input_bwd(Pass<Halving>(n, 2 * h + 1, 2 * w + 1, k, c, 0), dy, x, weight, styles, dx, dstyles,
              of_tiles, plan);
  } else {
    input_bwd(Pass<SameSize>(n, h, w, k, c, 1), dy, x, weight, styles, dx, dstyles, of_tiles, plan);
  }
}

// The transposed convolution of x * styles with stride 2: y [n, 2h + 1, 2w + 1, k].
template <typename T>
void styled_conv_doubled(const T* x, const T* weight, const T* styles, T* y, T* scratch, int64_t n,
                         int64_t h, int64_t w, int64_t c, int64_t k, int64_t block, bool by_panels,
                         int64_t shared, int64_t per_thread, int threads) {
  const Pass<Doubling> pass(n, h, w, c, k, 0);
  const Modulated<T> read{x, styles, h, w, c};
  const auto write = [&](int64_t, const Place& at, int64_t q0, int64_t channels, const T* planes,
                         int64_t stride) KD_ONCE {
    for_vectors<T>(channels, [&](auto zero, int64_t from) __attribute__((always_inline)) {
      using Vec = decltype(zero);
      const int64_t top = at.top, left = at.left, rows = pass.oh - top, columns = pass.ow - left;
      const int64_t across = k, down = pass.ow * k;  // from a result to the next
      T* to = y + (at.image * pass.oh + top) * down + left * across + q0 + from;
      put_results<Doubling, T, Vec>(
          planes + from, stride, [&](int i, int j, Vec v) __attribute__((always_inline)) {
            if (i >= rows || j >= columns) return;
            T* here = to + i * down + j * across;
            // with tiles that were before
            const bool shared = (i == 0 && top > 0) || (j == 0 && left > 0);
            store(here, shared ? Vec(load<Vec>(here) + v) : v);
          });
    });
  };
  const Plan<T> plan{block, by_panels, scratch, shared, per_thread, threads};
  run_pass(pass, Filters<Doubling, T>{{weight, nullptr}, c, k, false}, plan, read, write);
}

// Its gradient in weight, as winograd_conv_weight_grad.
template <typename T>
void styled_conv_doubled_weight_grad(const T* x, const T* styles, const T* dy, T* dweight,
                                     T* scratch, int64_t n, int64_t h, int64_t w, int64_t c,
                                     int64_t k, int64_t block, int64_t of_tiles, int64_t of_inputs,
                                     int64_t of_outputs, int64_t per_thread, int threads) {
  const Pass<Doubling> pass(n, h, w, c, k, 0);
  const WeightPlan<T> plan{block,   of_tiles, of_inputs,  of_outputs,
                           dweight, scratch,  per_thread, threads};
  const T* const grads[2] = {dy, nullptr};
  run_weight_pass(pass, grads, plan, Modulated<T>{x, styles, h, w, c});
}

KD_INSTANTIATE(styled_conv)
KD_INSTANTIATE(styled_conv_input_bwd)
KD_INSTANTIATE(styled_conv_demodulation)
KD_INSTANTIATE(styled_conv_demodulation_bwd)
KD_INSTANTIATE(styled_conv_doubled)
KD_INSTANTIATE(styled_conv_doubled_weight_grad)

}  // namespace kd::KD_ISA
