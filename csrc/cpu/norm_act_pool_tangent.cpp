// The derivative of norm_act_pool and of its backward in a direction, each in one pass with the
// values themselves.
//   x, x_dot, dx, dx_dot [n, h, w, c], out, out_dot, grad, grad_dot [n, h/2, w/2, c], weight, bias
//   and their *_dot [groups, c], mean, rstd, x_dot_mean, x_dot_proj [n, c]: row-major, contiguous,
//   not overlapping; image i uses row i / (n / groups).
// Structure as in norm_act_pool.cpp; the values are its results bit by bit, because sums and masks
// are the same expressions.
// Traffic: forward reads x and x_dot and writes out and out_dot; backward reads x, x_dot, grad,
// grad_dot and writes dx, dx_dot.
// Truth: kdistill/backends/reference/norm_act_pool.py, derivation: docs/ops/norm_act_pool.md
#include "common/check.hpp"
#include "cpu/norm_act_pool.hpp"
#include "cpu/ops.hpp"

namespace kd::KD_ISA {
namespace {

// channels of a unit: twice the arrays of norm_act_pool in the same cache
constexpr int64_t kTangentBlock = 64;

// Sums of one group of pixels, with d = x - center and e = x_dot - center_dot.
template <typename T>
struct GroupSums {
  T d[kBlock], dd[kBlock], e[kBlock], de[kBlock];
};

// Mean and sum of squared deviations of x, mean of x_dot, and the sum of products of both
// deviations.
template <typename T>
struct DualMoments {
  T *mean, *squares, *mean_dot, *products;
};

template <int kPixels, typename T>
KD_INLINE void add_dual_pixels(const T* x, const T* x_dot, int64_t c, int64_t width,
                               const DualMoments<T>& center, GroupSums<T>& sums) {
  for_vectors<T>(width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
    using V = decltype(zero);
    V s[2] = {zero, zero}, q[2] = {zero, zero}, s_dot[2] = {zero, zero}, q_dot[2] = {zero, zero};
    const V m = load<V>(center.mean + k), m_dot = load<V>(center.mean_dot + k);
    for (int p = 0; p < kPixels; ++p) {
      const V d = load<V>(x + p * c + k) - m, e = load<V>(x_dot + p * c + k) - m_dot;
      s[p % 2] += d;
      q[p % 2] += d * d;
      s_dot[p % 2] += e;
      q_dot[p % 2] += d * e;
    }
    store(sums.d + k, V(load<V>(sums.d + k) + (s[0] + s[1])));
    store(sums.dd + k, V(load<V>(sums.dd + k) + (q[0] + q[1])));
    store(sums.e + k, V(load<V>(sums.e + k) + (s_dot[0] + s_dot[1])));
    store(sums.de + k, V(load<V>(sums.de + k) + (q_dot[0] + q_dot[1])));
  });
}

// One pass, in the groups of `moments`: the products obey the same recurrence as the squares.
template <typename T>
void dual_moments(const T* x, const T* x_dot, const Geometry& g, const DualMoments<T>& m) {
  constexpr int64_t kGroup = 128;  // pixels, as in `moments`
  const int64_t pixels = g.h * g.w;
  GroupSums<T> sums;
  for (int64_t k = 0; k < g.width; ++k)
    m.mean[k] = x[k], m.mean_dot[k] = x_dot[k], m.squares[k] = m.products[k] = 0;
  for (int64_t first = 1, count = 0; first < pixels; first += count) {
    count = 7 * first < kGroup ? 7 * first : kGroup;
    if (count > pixels - first) count = pixels - first;
    for (int64_t k = 0; k < g.width; ++k) sums.d[k] = sums.dd[k] = sums.e[k] = sums.de[k] = 0;
    const T *from = x + first * g.c, *from_dot = x_dot + first * g.c;
    int64_t p = 0;
    for (; p + 8 <= count; p += 8)
      add_dual_pixels<8>(from + p * g.c, from_dot + p * g.c, g.c, g.width, m, sums);
    for (; p < count; ++p)
      add_dual_pixels<1>(from + p * g.c, from_dot + p * g.c, g.c, g.width, m, sums);
    for (int64_t k = 0; k < g.width; ++k) {
      const T step = sums.d[k] / T(first + count), step_dot = sums.e[k] / T(first + count);
      m.mean[k] += step;
      m.squares[k] += sums.dd[k] - sums.d[k] * step;
      m.mean_dot[k] += step_dot;
      m.products[k] += sums.de[k] - sums.d[k] * step_dot;
    }
  }
}

// A quarter of the derivative of an activation is scale * (x_dot - x_dot_mean) + scale_dot * (x -
// mean) + shift_dot, where scale_dot and shift_dot are the derivatives of what `Affine` holds.
template <typename T>
struct DualAffine : Affine<T> {
  const T* mean_dot;
  T scale_dot[kBlock], shift_dot[kBlock];

  DualAffine(const T* weight, const T* weight_dot, const T* bias, const T* bias_dot, const T* mean,
             const T* rstd, const T* mean_dot, const T* proj, int64_t width)
      : Affine<T>(weight, bias, mean, rstd, width), mean_dot(mean_dot) {
    for (int64_t k = 0; k < width; ++k) {
      scale_dot[k] = rstd[k] * (T(0.25) * weight_dot[k] - this->scale[k] * proj[k]);
      shift_dot[k] = bias_dot ? T(0.25) * bias_dot[k] : T(0);  // only the forward pass wants it
    }
  }
};

template <typename T>
void dual_pool(const T* x, const T* x_dot, T* out, T* out_dot, const Geometry& g,
               const DualAffine<T>& affine) {
  const int64_t c = g.c, row = g.w * c, windows = g.w / 2;
  for (int64_t i = g.h / 2; i-- > 0;) {
    for_windows(windows, [&](auto count, int64_t j) __attribute__((always_inline)) {
      const int64_t first = 2 * i * row + 2 * j * c, to = (i * windows + j) * c;
      for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
        using V = decltype(zero);
        const V scale = load<V>(affine.scale + k), shift = load<V>(affine.shift + k),
                m = load<V>(affine.mean + k);
        const V turn = load<V>(affine.scale_dot + k), lift = load<V>(affine.shift_dot + k),
                m_dot = load<V>(affine.mean_dot + k);
        for (int u = 0; u < count.value; ++u) {
          const int64_t at = first + 2 * u * c + k;
          V y[4], y_dot[4];
          const auto active = [&](int which, int64_t pixel) __attribute__((always_inline)) {
            const V d = load<V>(x + pixel) - m, e = load<V>(x_dot + pixel) - m_dot;
            const V value = d * scale + shift;
            y[which] = value < zero ? zero : value;  // a NaN stays, here and in the derivative
            y_dot[which] = value <= zero ? zero : e * scale + (d * turn + lift);
          };
          active(0, at), active(1, at + c), active(2, at + row), active(3, at + row + c);
          store(out + to + u * c + k, V((y[0] + y[1]) + (y[2] + y[3])));
          store(out_dot + to + u * c + k, V((y_dot[0] + y_dot[1]) + (y_dot[2] + y_dot[3])));
        }
      });
    });
  }
}

// With h = grad and h_dot = grad_dot where the activation is positive, else 0, and d, e as above.
template <typename T>
struct DualSums {
  T h[kBlock], hd[kBlock], h_dot[kBlock], hd_dot[kBlock];  // sums of h, h * d, h_dot, and h_dot * d
  T he[kBlock];                                            // of h * e

  void clear(int64_t width) {
    for (int64_t k = 0; k < width; ++k) h[k] = hd[k] = h_dot[k] = hd_dot[k] = he[k] = 0;
  }
  void add(const DualSums& other, int64_t width) {
    for (int64_t k = 0; k < width; ++k) {
      h[k] += other.h[k], hd[k] += other.hd[k];
      h_dot[k] += other.h_dot[k], hd_dot[k] += other.hd_dot[k], he[k] += other.he[k];
    }
  }
};

template <typename T>
void dual_sums(const T* x, const T* x_dot, const T* grad, const T* grad_dot, const Geometry& g,
               const DualAffine<T>& affine, DualSums<T>& total) {
  const int64_t c = g.c, row = g.w * c, windows = g.w / 2;
  DualSums<T> of_row;
  total.clear(g.width);
  for (int64_t i = 0; i < g.h / 2; ++i) {
    of_row.clear(g.width);
    for_windows(windows, [&](auto count, int64_t j) __attribute__((always_inline)) {
      const int64_t first = 2 * i * row + 2 * j * c, from = (i * windows + j) * c;
      for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
        using V = decltype(zero);
        const V scale = load<V>(affine.scale + k), shift = load<V>(affine.shift + k);
        const V m = load<V>(affine.mean + k), m_dot = load<V>(affine.mean_dot + k);
        V h = load<V>(of_row.h + k), hd = load<V>(of_row.hd + k);
        V h_dot = load<V>(of_row.h_dot + k), hd_dot = load<V>(of_row.hd_dot + k),
          he = load<V>(of_row.he + k);
        for (int u = 0; u < count.value; ++u) {
          const V up = load<V>(grad + from + u * c + k),
                  up_dot = load<V>(grad_dot + from + u * c + k);
          const T *p = x + first + 2 * u * c + k, *q = x_dot + first + 2 * u * c + k;
          const V d0 = load<V>(p) - m, d1 = load<V>(p + c) - m, d2 = load<V>(p + row) - m,
                  d3 = load<V>(p + row + c) - m;
          const auto on0 = d0 * scale + shift > zero, on1 = d1 * scale + shift > zero;
          const auto on2 = d2 * scale + shift > zero, on3 = d3 * scale + shift > zero;
          const V h0 = on0 ? up : zero, h1 = on1 ? up : zero, h2 = on2 ? up : zero,
                  h3 = on3 ? up : zero;
          h += (h0 + h1) + (h2 + h3);
          hd += h0 * d0 + h1 * d1;
          hd += h2 * d2 + h3 * d3;
          he += h0 * (load<V>(q) - m_dot) + h1 * (load<V>(q + c) - m_dot);
          he += h2 * (load<V>(q + row) - m_dot) + h3 * (load<V>(q + row + c) - m_dot);
          const V g0 = on0 ? up_dot : zero, g1 = on1 ? up_dot : zero, g2 = on2 ? up_dot : zero,
                  g3 = on3 ? up_dot : zero;
          h_dot += (g0 + g1) + (g2 + g3);
          hd_dot += g0 * d0 + g1 * d1;
          hd_dot += g2 * d2 + g3 * d3;
        }
        store(of_row.h + k, h), store(of_row.hd + k, hd);
        store(of_row.h_dot + k, h_dot), store(of_row.hd_dot + k, hd_dot), store(of_row.he + k, he);
      });
    });
    total.add(of_row, g.width);
  }
}

// dx = scale * h + slope * d + offset, as in `gradient`; its derivative is that of every factor.
template <typename T>
struct DualLine {
  T slope[kBlock], offset[kBlock], slope_dot[kBlock], offset_dot[kBlock];
};

template <typename T>
void dual_gradient(const T* x, const T* x_dot, const T* grad, const T* grad_dot, T* dx, T* dx_dot,
                   const Geometry& g, const DualAffine<T>& affine, const DualLine<T>& line) {
  const int64_t c = g.c, row = g.w * c, windows = g.w / 2;
  const auto unpooled = [&](int64_t pixel) {
    for (int64_t k = 0; k < g.width; ++k) {
      const int64_t at = pixel * c + k;
      const T d = x[at] - affine.mean[k], e = x_dot[at] - affine.mean_dot[k];
      dx[at] = line.slope[k] * d + line.offset[k];
      dx_dot[at] = line.slope[k] * e + (line.slope_dot[k] * d + line.offset_dot[k]);
    }
  };
  for (int64_t pixel = g.h / 2 * 2 * g.w; pixel < g.h * g.w; ++pixel) unpooled(pixel);
  for (int64_t i = g.h / 2; i-- > 0;) {
    if (g.w % 2) unpooled(2 * i * g.w + g.w - 1), unpooled((2 * i + 1) * g.w + g.w - 1);
    for_windows(windows, [&](auto count, int64_t j) __attribute__((always_inline)) {
      const int64_t first = 2 * i * row + 2 * j * c, from = (i * windows + j) * c;
      for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
        using V = decltype(zero);
        const V scale = load<V>(affine.scale + k), shift = load<V>(affine.shift + k),
                turn = load<V>(affine.scale_dot + k);
        const V m = load<V>(affine.mean + k), m_dot = load<V>(affine.mean_dot + k);
        const V e1 = load<V>(line.slope + k), b1 = load<V>(line.offset + k);
        const V e2 = load<V>(line.slope_dot + k), b2 = load<V>(line.offset_dot + k);
        for (int u = 0; u < count.value; ++u) {
          const V above = load<V>(grad + from + u * c + k), up = above * scale;
          const V up_dot = load<V>(grad_dot + from + u * c + k) * scale + above * turn;
          const auto pixel = [&](int64_t at) __attribute__((always_inline)) {
            const V d = load<V>(x + at) - m, e = load<V>(x_dot + at) - m_dot;
            const auto on = d * scale + shift > zero;
            store(dx + at, V((on ? up : zero) + (d * e1 + b1)));
            store(dx_dot + at, V((on ? up_dot : zero) + (e * e1 + (d * e2 + b2))));
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
void norm_act_pool_tangent(const T* x, const T* x_dot, const T* weight, const T* weight_dot,
                           const T* bias, const T* bias_dot, T* out, T* out_dot, T* mean, T* rstd,
                           T* x_dot_mean, T* x_dot_proj, int64_t n, int64_t c, int64_t h, int64_t w,
                           int64_t groups, double eps, int threads) {
  KD_CHECK(n >= 0 && c >= 0 && h > 0 && w > 0 && threads > 0,
           "norm_act_pool_tangent: expected n, c >= 0 and h, w, threads > 0");
  KD_CHECK(groups > 0 && n % groups == 0, "norm_act_pool_tangent: expected n divisible by groups");
  const int64_t block = channels_of_unit(n, c, threads, kTangentBlock),
                blocks = (c + block - 1) / block;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (n * c * h * w >= kParallel)
  for (int64_t unit = 0; unit < n * blocks; ++unit) {
    const int64_t i = unit / blocks, k0 = unit % blocks * block, row = i / (n / groups) * c + k0;
    const Geometry g{c, h, w, c - k0 < block ? c - k0 : block};
    const int64_t image = i * h * w * c + k0, pooled = i * (h / 2) * (w / 2) * c + k0,
                  of = i * c + k0;
    T *r = rstd + of, *proj = x_dot_proj + of;
    dual_moments(x + image, x_dot + image, g, DualMoments<T>{mean + of, r, x_dot_mean + of, proj});
    for (int64_t k = 0; k < g.width; ++k) {
      r[k] = inverse_root(r[k] / T(h * w) + T(eps));
      proj[k] *= r[k] / T(h * w);
    }
    const DualAffine<T> affine(weight + row, weight_dot + row, bias + row, bias_dot + row,
                               mean + of, r, x_dot_mean + of, proj, g.width);
    dual_pool(x + image, x_dot + image, out + pooled, out_dot + pooled, g, affine);
  }
}

// partials [4, n, c]: the gradients of weight and bias from each image and their derivatives,
// summed in the order of the images.
template <typename T>
void norm_act_pool_bwd_tangent(const T* grad, const T* grad_dot, const T* x, const T* x_dot,
                               const T* weight, const T* weight_dot, const T* bias, const T* mean,
                               const T* rstd, const T* x_dot_mean, const T* x_dot_proj, T* dx,
                               T* dx_dot, T* dweight, T* dweight_dot, T* dbias, T* dbias_dot,
                               T* partials, int64_t n, int64_t c, int64_t h, int64_t w,
                               int64_t groups, int threads) {
  KD_CHECK(n >= 0 && c >= 0 && h > 0 && w > 0 && threads > 0,
           "norm_act_pool_bwd_tangent: expected n, c >= 0 and h, w, threads > 0");
  KD_CHECK(groups > 0 && n % groups == 0,
           "norm_act_pool_bwd_tangent: expected n divisible by groups");
  const int64_t block = channels_of_unit(n, c, threads, kTangentBlock),
                blocks = (c + block - 1) / block;
  T *dw = partials, *db = dw + n * c, *dw_dot = db + n * c, *db_dot = dw_dot + n * c;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (n * c * h * w >= kParallel)
  for (int64_t unit = 0; unit < n * blocks; ++unit) {
    const int64_t i = unit / blocks, k0 = unit % blocks * block, row = i / (n / groups) * c + k0;
    const Geometry g{c, h, w, c - k0 < block ? c - k0 : block};
    const int64_t image = i * h * w * c + k0, pooled = i * (h / 2) * (w / 2) * c + k0,
                  of = i * c + k0;
    const DualAffine<T> affine(weight + row, weight_dot + row, bias + row, nullptr, mean + of,
                               rstd + of, x_dot_mean + of, x_dot_proj + of, g.width);
    DualSums<T> sums;
    dual_sums(x + image, x_dot + image, grad + pooled, grad_dot + pooled, g, affine, sums);
    DualLine<T> line;
    for (int64_t k = 0; k < g.width; ++k) {
      const T r = rstd[of + k], turn = r * x_dot_proj[of + k];  // minus the derivative of log rstd
      const T dwk = sums.hd[k] * (T(0.25) * r), dbk = T(0.25) * sums.h[k],
              dbk_dot = T(0.25) * sums.h_dot[k];
      const T dwk_dot = T(0.25) * r * (sums.hd_dot[k] + sums.he[k]) - turn * dwk;
      const T gain = T(-4) * affine.scale[k] / T(h * w),
              gain_dot = T(-4) * affine.scale_dot[k] / T(h * w);
      line.slope[k] = gain * r * dwk;
      line.offset[k] = gain * dbk;
      line.slope_dot[k] = r * (gain * dwk_dot + (gain_dot - gain * turn) * dwk);
      line.offset_dot[k] = gain * dbk_dot + gain_dot * dbk;
      dw[of + k] = dwk, db[of + k] = dbk, dw_dot[of + k] = dwk_dot, db_dot[of + k] = dbk_dot;
    }
    dual_gradient(x + image, x_dot + image, grad + pooled, grad_dot + pooled, dx + image,
                  dx_dot + image, g, affine, line);
  }
  sum_of_images(dw, db, dweight, dbias, n, c, groups, threads);
  sum_of_images(dw_dot, db_dot, dweight_dot, dbias_dot, n, c, groups, threads);
}

KD_INSTANTIATE(norm_act_pool_tangent)
KD_INSTANTIATE(norm_act_pool_bwd_tangent)

}  // namespace kd::KD_ISA
