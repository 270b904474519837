// out = avg_pool2d(relu((x - mean) * rstd * weight + bias), 2) with the statistics of each image
// and channel, and its backward.
//   x, dx [n, h, w, c], out, grad [n, h/2, w/2, c], weight, bias, dweight, dbias [groups, c], mean,
//   rstd [n, c]: row-major, contiguous, not overlapping; image i uses row i / (n / groups).  An odd
//   last row or column is not pooled.
// One unit of work is an image and up to kBlock channels; every inner loop is a vector over
// channels, and no sum depends on the number of threads.  Traffic: forward reads x and writes out;
// backward reads x and grad and writes dx.  The second pass over x starts where the first one
// ended, so that much of it still comes from the cache.
// Truth: kdistill/backends/reference/norm_act_pool.py, derivation: docs/ops/norm_act_pool.md
#include "cpu/norm_act_pool.hpp"

#include "common/check.hpp"
#include "cpu/ops.hpp"

namespace kd::KD_ISA {
namespace {

// sum += sum_p (x_p - center), squares += sum_p (x_p - center)^2 over kPixels pixels.
template <int kPixels, typename T>
KD_INLINE void add_pixels(const T* x, int64_t c, int64_t width, const T* center, T* sum,
                          T* squares) {
  for_vectors<T>(width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
    using V = decltype(zero);
    V s[2] = {zero, zero}, q[2] = {zero, zero};  // two chains: half the latency, half the rounding
    const V m = load<V>(center + k);
    for (int p = 0; p < kPixels; ++p) {
      const V d = load<V>(x + p * c + k) - m;
      s[p % 2] += d;
      q[p % 2] += d * d;
    }
    store(sum + k, V(load<V>(sum + k) + (s[0] + s[1])));
    store(squares + k, V(load<V>(squares + k) + (q[0] + q[1])));
  });
}

// Mean and sum of squared deviations in one pass.  The pixels come in groups, shifted by the mean
// of all pixels before them; a group is at most seven times as long as what came before it, so a
// shift that fits badly costs at most eight roundings.  Exact for a constant channel.
template <typename T>
void moments(const T* x, const Geometry& g, T* mean, T* squares) {
  constexpr int64_t kGroup = 128;  // pixels; bounds the length of a plain sum
  const int64_t pixels = g.h * g.w;
  T s[kBlock], q[kBlock];
  for (int64_t k = 0; k < g.width; ++k) mean[k] = x[k], squares[k] = 0;
  for (int64_t first = 1, count = 0; first < pixels; first += count) {
    count = 7 * first < kGroup ? 7 * first : kGroup;
    if (count > pixels - first) count = pixels - first;
    for (int64_t k = 0; k < g.width; ++k) s[k] = q[k] = 0;
    const T* from = x + first * g.c;
    int64_t p = 0;
    for (; p + 8 <= count; p += 8) add_pixels<8>(from + p * g.c, g.c, g.width, mean, s, q);
    for (; p < count; ++p) add_pixels<1>(from + p * g.c, g.c, g.width, mean, s, q);
    for (int64_t k = 0; k < g.width; ++k) {
      const T step = s[k] / T(first + count);
      mean[k] += step;
      squares[k] += q[k] - s[k] * step;
    }
  }
}

template <typename T>
void pool(const T* x, T* out, const Geometry& g, const Affine<T>& affine) {
  const int64_t c = g.c, row = g.w * c, windows = g.w / 2;
  for (int64_t i = g.h / 2; i-- > 0;) {
    for_windows(windows, [&](auto count, int64_t j) __attribute__((always_inline)) {
      const T* a = x + 2 * i * row + 2 * j * c;
      T* to = out + (i * windows + j) * c;
      for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
        using V = decltype(zero);
        const V scale = load<V>(affine.scale + k), shift = load<V>(affine.shift + k),
                m = load<V>(affine.mean + k);
        const auto active = [&](const T* pixel) __attribute__((always_inline)) {
          const V y = (load<V>(pixel + k) - m) * scale + shift;
          return V(y < zero ? zero : y);  // a NaN stays
        };
        for (int u = 0; u < count.value; ++u) {
          const T* p = a + 2 * u * c;
          const V sum = (active(p) + active(p + c)) + (active(p + row) + active(p + row + c));
          store(to + u * c + k, sum);
        }
      });
    });
  }
}

// With h = grad where the activation is positive, else 0 (four times the gradient of a pixel):
// sum_h = sum_p h_p, sum_hd = sum_p h_p * (x_p - mean).  Each row of windows is summed on its own
// first.
template <typename T>
void sums(const T* x, const T* grad, const Geometry& g, const Affine<T>& affine, T* sum_h,
          T* sum_hd) {
  const int64_t c = g.c, row = g.w * c, windows = g.w / 2;
  T row_h[kBlock], row_hd[kBlock];
  for (int64_t k = 0; k < g.width; ++k) sum_h[k] = sum_hd[k] = 0;
  for (int64_t i = 0; i < g.h / 2; ++i) {
    for (int64_t k = 0; k < g.width; ++k) row_h[k] = row_hd[k] = 0;
    for_windows(windows, [&](auto count, int64_t j) __attribute__((always_inline)) {
      const T* a = x + 2 * i * row + 2 * j * c;
      const T* from = grad + (i * windows + j) * c;
      for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
        using V = decltype(zero);
        const V scale = load<V>(affine.scale + k), shift = load<V>(affine.shift + k),
                m = load<V>(affine.mean + k);
        V h = load<V>(row_h + k), hd = load<V>(row_hd + k);
        for (int u = 0; u < count.value; ++u) {
          const T* p = a + 2 * u * c;
          const V up = load<V>(from + u * c + k);
          const V d0 = load<V>(p + k) - m, d1 = load<V>(p + c + k) - m;
          const V d2 = load<V>(p + row + k) - m, d3 = load<V>(p + row + c + k) - m;
          const V h0 = d0 * scale + shift > zero ? up : zero,
                  h1 = d1 * scale + shift > zero ? up : zero;
          const V h2 = d2 * scale + shift > zero ? up : zero,
                  h3 = d3 * scale + shift > zero ? up : zero;
          h += (h0 + h1) + (h2 + h3);
          hd += h0 * d0 + h1 * d1;
          hd += h2 * d2 + h3 * d3;
        }
        store(row_h + k, h);
        store(row_hd + k, hd);
      });
    });
    for (int64_t k = 0; k < g.width; ++k) sum_h[k] += row_h[k], sum_hd[k] += row_hd[k];
  }
}

// dx = scale * h + slope * (x - mean) + offset, where the last two terms take out the mean of h and
// its projection on x.
template <typename T>
void gradient(const T* x, const T* grad, T* dx, const Geometry& g, const Affine<T>& affine,
              const T* slope, const T* offset) {
  const int64_t c = g.c, row = g.w * c, windows = g.w / 2;
  const auto unpooled = [&](int64_t pixel) {
    for (int64_t k = 0; k < g.width; ++k)
      dx[pixel * c + k] = slope[k] * (x[pixel * c + k] - affine.mean[k]) + offset[k];
  };
  for (int64_t pixel = g.h / 2 * 2 * g.w; pixel < g.h * g.w; ++pixel) unpooled(pixel);
  for (int64_t i = g.h / 2; i-- > 0;) {
    if (g.w % 2) unpooled(2 * i * g.w + g.w - 1), unpooled((2 * i + 1) * g.w + g.w - 1);
    for_windows(windows, [&](auto count, int64_t j) __attribute__((always_inline)) {
      const int64_t first = 2 * i * row + 2 * j * c;
      const T* from = grad + (i * windows + j) * c;
      for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
        using V = decltype(zero);
        const V scale = load<V>(affine.scale + k), shift = load<V>(affine.shift + k),
                m = load<V>(affine.mean + k);
        const V e = load<V>(slope + k), b = load<V>(offset + k);
        for (int u = 0; u < count.value; ++u) {
          const V up = load<V>(from + u * c + k) * scale;
          const auto pixel = [&](int64_t at) __attribute__((always_inline)) {
            const V d = load<V>(x + at) - m;
            store(dx + at, V((d * scale + shift > zero ? up : zero) + (d * e + b)));
          };
          const int64_t at = first + 2 * u * c + k;
          pixel(at), pixel(at + c), pixel(at + row), pixel(at + row + c);
        }
      });
    });
  }
}

}  // namespace

template <typename T>
void norm_act_pool(const T* x, const T* weight, const T* bias, T* out, T* mean, T* rstd, int64_t n,
                   int64_t c, int64_t h, int64_t w, int64_t groups, double eps, int threads) {
  KD_CHECK(n >= 0 && c >= 0 && h > 0 && w > 0 && threads > 0,
           "norm_act_pool: expected n, c >= 0 and h, w, threads > 0");
  KD_CHECK(groups > 0 && n % groups == 0, "norm_act_pool: expected n divisible by groups");
  const int64_t block = channels_of_unit(n, c, threads), blocks = (c + block - 1) / block,
                windows = (h / 2) * (w / 2);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (n * c * h * w >= kParallel)
  for (int64_t unit = 0; unit < n * blocks; ++unit) {
    const int64_t i = unit / blocks, k0 = unit % blocks * block, row = i / (n / groups);
    const Geometry g{c, h, w, c - k0 < block ? c - k0 : block};
    const T* from = x + i * h * w * c + k0;
    T *mu = mean + i * c + k0, *r = rstd + i * c + k0, *to = out + i * windows * c + k0;
    moments(from, g, mu, r);
    for (int64_t k = 0; k < g.width; ++k) r[k] = inverse_root(r[k] / T(h * w) + T(eps));
    const Affine<T> affine(weight + row * c + k0, bias + row * c + k0, mu, r, g.width);
    pool(from, to, g, affine);
  }
}

// partials [2, n, c]: the gradients of weight and bias from each image, summed in the order of the
// images.
template <typename T>
void norm_act_pool_bwd(const T* grad, const T* x, const T* weight, const T* bias, const T* mean,
                       const T* rstd, T* dx, T* dweight, T* dbias, T* partials, int64_t n,
                       int64_t c, int64_t h, int64_t w, int64_t groups, int threads) {
  KD_CHECK(n >= 0 && c >= 0 && h > 0 && w > 0 && threads > 0,
           "norm_act_pool_bwd: expected n, c >= 0 and h, w, threads > 0");
  KD_CHECK(groups > 0 && n % groups == 0, "norm_act_pool_bwd: expected n divisible by groups");
  const int64_t block = channels_of_unit(n, c, threads), blocks = (c + block - 1) / block,
                images = n / groups;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (n * c * h * w >= kParallel)
  for (int64_t unit = 0; unit < n * blocks; ++unit) {
    const int64_t i = unit / blocks, k0 = unit % blocks * block, row = i / images;
    const Geometry g{c, h, w, c - k0 < block ? c - k0 : block};
    const T *from = x + i * h * w * c + k0, *up = grad + i * (h / 2) * (w / 2) * c + k0;
    const T *mu = mean + i * c + k0, *r = rstd + i * c + k0;
    const Affine<T> affine(weight + row * c + k0, bias + row * c + k0, mu, r, g.width);
    T dw[kBlock], db[kBlock], slope[kBlock], offset[kBlock];
    sums(from, up, g, affine, db, dw);
    for (int64_t k = 0; k < g.width; ++k) {
      dw[k] *= T(0.25) * r[k];
      db[k] *= T(0.25);
      const T gain = T(-4) * affine.scale[k] / T(h * w);
      slope[k] = gain * r[k] * dw[k];
      offset[k] = gain * db[k];
      partials[i * c + k0 + k] = dw[k];
      partials[(n + i) * c + k0 + k] = db[k];
    }
    gradient(from, up, dx + i * h * w * c + k0, g, affine, slope, offset);
  }
  sum_of_images(partials, partials + n * c, dweight, dbias, n, c, groups, threads);
}

KD_INSTANTIATE(norm_act_pool)
KD_INSTANTIATE(norm_act_pool_bwd)

}  // namespace kd::KD_ISA
