// out = silu(y), y = (1 + a) * (xhat * weight + bias) + b, with xhat the group-normalised x, and its
// backward.
//   x, out, grad, dx [n, pixels, c], weight, bias, dweight, dbias [c], modulation, dmodulation
//   [n, 2c] (a, then b; null without), mean, rstd [n, groups]: row-major, contiguous, not
//   overlapping.
// One unit of work is an image, which is read a second and a third time from the cache; every inner
// loop is a vector over channels, and no sum depends on the number of threads.  Traffic: forward
// reads x and writes out; backward reads x and grad and writes dx.
// Truth: kdistill/backends/reference/group_norm_silu.py, derivation: docs/ops/group_norm_silu.md
#include "common/check.hpp"
#include "cpu/exponential.hpp"
#include "cpu/ops.hpp"

namespace kd::KD_ISA {
namespace {

constexpr int64_t kParallel = 32768;  // fewer elements are not worth waking the other threads
constexpr int kChains = 4;            // of a sum: less latency, less rounding

inline float inverse_root(float v) { return 1.0f / __builtin_sqrtf(v); }
inline double inverse_root(double v) { return 1.0 / __builtin_sqrt(v); }

template <typename T, typename V>
KD_INLINE V sigmoid(V z) {
  const V zero{}, one = zero + T(1);
  const V e = exponential<T>(z < zero ? z : -z);  // a NaN stays
  const V above = one / (one + e);
  return z < zero ? e * above : above;
}

// Sums over the pixels of value(loaded vector) into sum[k].
template <typename T, typename F>
KD_INLINE void sum_pixels(const T* x, int64_t pixels, int64_t c, T* sum, const F& value) {
  for_vectors<T>(c, [&](auto zero, int64_t k) __attribute__((always_inline)) {
    using V = decltype(zero);
    V s[kChains] = {zero, zero, zero, zero};
    int64_t p = 0;
    for (; p + kChains <= pixels; p += kChains)
      for (int u = 0; u < kChains; ++u) s[u] += value(load<V>(x + (p + u) * c + k), k);
    for (; p < pixels; ++p) s[0] += value(load<V>(x + p * c + k), k);
    store(sum + k, V((s[0] + s[1]) + (s[2] + s[3])));
  });
}

// The rows of what belongs to an image: mean, factor and shift of every channel, of which
// y = (x - mean) * factor + shift, and two rows of sums.
template <typename T>
struct Rows {
  T *mean, *factor, *shift, *first, *second;

  Rows(T* scratch, int64_t i, int64_t c)
      : mean(scratch + i * 5 * c),
        factor(mean + c),
        shift(mean + 2 * c),
        first(mean + 3 * c),
        second(mean + 4 * c) {}

  void fill(const T* weight, const T* bias, const T* modulation, const T* mean_of_groups,
            const T* rstd, int64_t c, int64_t width) {
    for (int64_t k = 0; k < c; ++k) {
      const T gain = modulation ? T(1) + modulation[k] : T(1);
      mean[k] = mean_of_groups[k / width];
      factor[k] = gain * weight[k] * rstd[k / width];
      shift[k] = gain * bias[k] + (modulation ? modulation[c + k] : T(0));
    }
  }
};

template <typename T>
void statistics(const T* x, int64_t pixels, int64_t c, int64_t groups, T eps, const Rows<T>& rows,
                T* mean, T* rstd) {
  const int64_t width = c / groups;
  const double count = double(pixels * width);
  sum_pixels(x, pixels, c, rows.first, [](auto v, int64_t) { return v; });
  for (int64_t j = 0; j < groups; ++j) {
    double sum = 0;
    for (int64_t k = j * width; k < (j + 1) * width; ++k) sum += double(rows.first[k]);
    mean[j] = T(sum / count);
    for (int64_t k = j * width; k < (j + 1) * width; ++k) rows.mean[k] = mean[j];
  }
  sum_pixels(x, pixels, c, rows.second, [&](auto v, int64_t k) __attribute__((always_inline)) {
    const auto d = v - load<decltype(v)>(rows.mean + k);
    return decltype(v)(d * d);
  });
  for (int64_t j = 0; j < groups; ++j) {
    double sum = 0;
    for (int64_t k = j * width; k < (j + 1) * width; ++k) sum += double(rows.second[k]);
    rstd[j] = inverse_root(T(sum / count) + eps);
  }
}

// dx = h = grad * silu'(y), first = sum h, second = sum h * (x - mean), sums over the pixels.
template <typename T>
void gradient_of_silu(const T* x, const T* grad, int64_t pixels, int64_t c, const Rows<T>& rows,
                      T* dx) {
  for_vectors<T>(c, [&](auto zero, int64_t k) __attribute__((always_inline)) {
    using V = decltype(zero);
    const V mean = load<V>(rows.mean + k), factor = load<V>(rows.factor + k),
            shift = load<V>(rows.shift + k), one = zero + T(1);
    V first[2] = {zero, zero}, second[2] = {zero, zero};
    for (int64_t p = 0; p < pixels; ++p) {
      const V d = load<V>(x + p * c + k) - mean, y = d * factor + shift, s = sigmoid<T>(y);
      const V h = load<V>(grad + p * c + k) * (s * (one + y * (one - s)));
      store(dx + p * c + k, h);
      first[p % 2] += h;
      second[p % 2] += h * d;
    }
    store(rows.first + k, V(first[0] + first[1]));
    store(rows.second + k, V(second[0] + second[1]));
  });
}

}  // namespace

// scratch [n, 5, c]
template <typename T>
void group_norm_silu(const T* x, const T* weight, const T* bias, const T* modulation, T* out,
                     T* mean, T* rstd, T* scratch, int64_t n, int64_t c, int64_t pixels,
                     int64_t groups, double eps, int threads) {
  KD_CHECK(n >= 0 && c > 0 && pixels > 0 && threads > 0,
           "group_norm_silu: expected n >= 0 and c, pixels, threads > 0");
  KD_CHECK(groups > 0 && c % groups == 0, "group_norm_silu: expected c divisible by groups");
#pragma omp parallel for num_threads(threads) schedule(static) if (n * c * pixels >= kParallel)
  for (int64_t i = 0; i < n; ++i) {
    const T* from = x + i * pixels * c;
    T *mu = mean + i * groups, *r = rstd + i * groups, *to = out + i * pixels * c;
    Rows<T> rows(scratch, i, c);
    statistics(from, pixels, c, groups, T(eps), rows, mu, r);
    rows.fill(weight, bias, modulation ? modulation + i * 2 * c : nullptr, mu, r, c, c / groups);
    for_vectors<T>(c, [&](auto zero, int64_t k) __attribute__((always_inline)) {
      using V = decltype(zero);
      const V m = load<V>(rows.mean + k), factor = load<V>(rows.factor + k),
              shift = load<V>(rows.shift + k);
      for (int64_t p = 0; p < pixels; ++p) {
        const V y = (load<V>(from + p * c + k) - m) * factor + shift;
        store(to + p * c + k, V(y * sigmoid<T>(y)));
      }
    });
  }
}

// scratch [n, 5, c]; its sums of every image are added up in the order of the images.
template <typename T>
void group_norm_silu_bwd(const T* grad, const T* x, const T* weight, const T* bias,
                         const T* modulation, const T* mean, const T* rstd, T* dx, T* dweight,
                         T* dbias, T* dmodulation, T* scratch, int64_t n, int64_t c,
                         int64_t pixels, int64_t groups, int threads) {
  KD_CHECK(n >= 0 && c > 0 && pixels > 0 && threads > 0,
           "group_norm_silu_bwd: expected n >= 0 and c, pixels, threads > 0");
  KD_CHECK(groups > 0 && c % groups == 0, "group_norm_silu_bwd: expected c divisible by groups");
  const int64_t width = c / groups;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * c * pixels >= kParallel)
  for (int64_t i = 0; i < n; ++i) {
    const T *from = x + i * pixels * c, *ab = modulation ? modulation + i * 2 * c : nullptr;
    T *to = dx + i * pixels * c, *dab = modulation ? dmodulation + i * 2 * c : nullptr;
    Rows<T> rows(scratch, i, c);
    rows.fill(weight, bias, ab, mean + i * groups, rstd + i * groups, c, width);
    gradient_of_silu(from, grad + i * pixels * c, pixels, c, rows, to);
    for (int64_t j = 0; j < groups; ++j) {
      const double r = double(rstd[i * groups + j]), count = double(pixels * width);
      double mean_q = 0, mean_qx = 0;  // of q, the gradient of xhat, and of q * xhat
      for (int64_t k = j * width; k < (j + 1) * width; ++k) {
        const T sum_h = rows.first[k], sum_hx = T(r) * rows.second[k];
        const T gain = ab ? T(1) + ab[k] : T(1);
        if (dab) {
          dab[k] = sum_hx * weight[k] + sum_h * bias[k];
          dab[c + k] = sum_h;
        }
        rows.first[k] = gain * sum_h;
        rows.second[k] = gain * sum_hx;
        mean_q += double(rows.first[k]) * double(weight[k]);
        mean_qx += double(rows.second[k]) * double(weight[k]);
      }
      const T slope = T(-r * r * mean_qx / count), offset = T(-r * mean_q / count);
      // y is done with: its shift makes room
      for (int64_t k = j * width; k < (j + 1) * width; ++k) rows.shift[k] = offset;
      for_vectors<T>(width, [&](auto zero, int64_t first) __attribute__((always_inline)) {
        using V = decltype(zero);
        const int64_t k = j * width + first;
        const V m = load<V>(rows.mean + k), factor = load<V>(rows.factor + k),
                o = load<V>(rows.shift + k);
        for (int64_t p = 0; p < pixels; ++p) {
          const V d = load<V>(from + p * c + k) - m;
          store(to + p * c + k, V(load<V>(to + p * c + k) * factor + (d * slope + o)));
        }
      });
    }
  }
  for (int64_t k = 0; k < c; ++k) {
    double of_weight = 0, of_bias = 0;
    for (int64_t i = 0; i < n; ++i) {
      of_bias += double(scratch[(i * 5 + 3) * c + k]);
      of_weight += double(scratch[(i * 5 + 4) * c + k]);
    }
    dweight[k] = T(of_weight), dbias[k] = T(of_bias);
  }
}

KD_INSTANTIATE(group_norm_silu)
KD_INSTANTIATE(group_norm_silu_bwd)

}  // namespace kd::KD_ISA
