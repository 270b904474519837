// out = clamp(gain * leaky(fir(x) * scale + noise + bias)) and its backward.
//   out, grad [n, h, w, c]; x, dx [n, h + 1, w + 1, c] with taps, else [n, h, w, c]; scale, dscale [n, c]; bias, dbias [c], bias may
//   be null; noise, dnoise [noise_rows, h, w] with noise_rows 1 or n, 0 for none; taps [4] or null: row-major, contiguous, not
//   overlapping.
// One unit of work is an image and a band of rows; in it, tiles of kColumns pixels and kBlock channels keep the filtered lines in
// L1, and every inner loop is a vector over channels.  Bands are summed in their order: no sum depends on the number of threads.
// Traffic: forward reads x and writes out, backward reads grad, out and x and writes dx; the filter reads three rows of a band
// and three columns of a tile more.
// Truth: kdistill/backends/reference/fir_bias_act.py, derivation: docs/ops/fir_bias_act.md
#include "common/check.hpp"
#include "cpu/ops.hpp"
#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

constexpr int64_t kColumns = 40;      // pixels of a tile, at most
constexpr int64_t kBlock = 32;        // channels of a tile, at most: a ring of four lines takes 20 of the 32 KiB of L1
constexpr int64_t kParallel = 32768;  // fewer elements are not worth waking the other threads

// The maps of one image: `c` is the distance between pixels, `width` the channels of the tile, h and w the sides of the result.
struct Geometry {
  int64_t c, h, w, width;
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Equal parts of `total`, as few as possible with at most `most` each.
inline int64_t part_of(int64_t total, int64_t most) {
  const int64_t parts = (total + most - 1) / most;
  return (total + parts - 1) / parts;
}

template <typename T>
struct Activation {
  T slope, gain, limit;

  template <typename V>
  KD_INLINE V operator()(V y) const {
    const V zero{}, upper = zero + limit;
    const V z = (y > zero ? y : y * slope) * gain;
    const V capped = z > upper ? upper : z;  // a NaN stays
    return capped < -upper ? -upper : capped;
  }

  // grad times the derivative, which the result tells
  template <typename V>
  KD_INLINE V pulled_back(V out, V grad) const {
    const V zero{}, upper = zero + limit;
    const V factor = out > zero ? zero + gain : zero + gain * slope;
    const V inside = out >= upper ? zero : factor;
    return grad * (out <= -upper ? zero : inside);
  }
};

// line[q] = sum_a filter[a] * x[i + a - 1, j0 + q - 1] for q < count + 3, zero outside x, which is [h + 1, w + 1].
template <typename T>
void filtered_rows(const T* x, const T* filter, int64_t i, int64_t j0, int64_t count, const Geometry& g, T* line) {
  const int64_t row = (g.w + 1) * g.c, first = i == 0 ? 1 : 0, last = i + 2 > g.h ? 3 : 4;  // the rows that exist
  for (int64_t q = 0; q < count + 3; ++q) {
    const int64_t column = j0 + q - 1;
    T* to = line + q * kBlock;
    if (column < 0 || column > g.w) {
      for (int64_t k = 0; k < g.width; ++k) to[k] = 0;
      continue;
    }
    const T* from = x + (i - 1) * row + column * g.c;
    for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
      using V = decltype(zero);
      V sum = zero;
      for (int64_t a = first; a < last; ++a) sum += load<V>(from + a * row + k) * filter[a];
      store(to + k, sum);
    });
  }
}

// sum_b filter[b] * line[q + b] at channel k
template <typename V, typename T>
KD_INLINE V filtered_columns(const T* line, const T* filter, int64_t k) {
  const V a = load<V>(line + k) * filter[0] + load<V>(line + kBlock + k) * filter[1];
  return a + (load<V>(line + 2 * kBlock + k) * filter[2] + load<V>(line + 3 * kBlock + k) * filter[3]);
}

// `count` pixels of a row of the result; value(zero, j, k) is what the filter gave.
template <typename T, typename F>
KD_INLINE void finish(const F& value, const T* scale, const T* bias, const T* noise, T* out, int64_t count, const Geometry& g,
                      const Activation<T>& act) {
  for (int64_t j = 0; j < count; ++j) {
    const T shift = noise ? noise[j] : T(0);
    for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
      using V = decltype(zero);
      store(out + j * g.c + k, act(V(value(zero, j, k) * load<V>(scale + k) + shift + load<V>(bias + k))));
    });
  }
}

// g = grad * derivative at one pixel; into of_bias and of_noise too, where the pixel is the tile's own.
template <typename T>
KD_INLINE void pulled_back(const T* grad, const T* out, const Geometry& g, const Activation<T>& act, bool own, T* to, T* of_bias,
                           T* of_noise) {
  for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
    using V = decltype(zero);
    const V v = act.pulled_back(load<V>(out + k), load<V>(grad + k));
    store(to + k, v);
    if (own) store(of_bias + k, V(load<V>(of_bias + k) + v));
  });
  if (!own || !of_noise) return;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < g.width; ++k) sum += to[k];
  *of_noise += sum;
}

// dx = raw * scale and dscale += raw * x at one pixel.
template <typename T, typename F>
KD_INLINE void scaled(const F& raw, const T* x, const T* scale, int64_t width, T* dx, T* dscale) {
  for_vectors<T>(width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
    using V = decltype(zero);
    const V v = raw(zero, k);
    store(dx + k, V(v * load<V>(scale + k)));
    store(dscale + k, V(load<V>(dscale + k) + v * load<V>(x + k)));
  });
}

// What a tile of the backward works on: pointers to the first channel of its block, sums of its band.
template <typename T>
struct Tile {
  const T *grad, *out, *x, *scale, *taps;
  T *dx, *dscale, *dbias, *dnoise;  // dnoise [h, w] of the image, or null
};

template <typename T>
void unfiltered_bwd(const Tile<T>& t, int64_t r0, int64_t r1, const Geometry& g, const Activation<T>& act) {
  T pixel[kBlock];
  for (int64_t p = r0 * g.w; p < r1 * g.w; ++p) {
    pulled_back(t.grad + p * g.c, t.out + p * g.c, g, act, true, pixel, t.dbias, t.dnoise ? t.dnoise + p : nullptr);
    const auto raw = [&](auto zero, int64_t k) __attribute__((always_inline)) { return load<decltype(zero)>(pixel + k); };
    scaled(raw, t.x + p * g.c, t.scale, g.width, t.dx + p * g.c, t.dscale);
  }
}

// Rows r0 .. r1 of x, columns j0 .. j0 + count.  A ring holds the last four rows of g, filtered along the columns; row r of dx is
// a sum over the rows r - 2 .. r + 1.
template <typename T>
void filtered_bwd(const Tile<T>& t, int64_t r0, int64_t r1, int64_t j0, int64_t count, const Geometry& g, const Activation<T>& act) {
  T ring[4][kColumns * kBlock], line[(kColumns + 3) * kBlock];
  for (int64_t i = r0 - 2; i <= r1; ++i) {
    T* to = ring[(i + 4) % 4];
    if (i < 0 || i >= g.h) {
      for (int64_t q = 0; q < count * kBlock; ++q) to[q] = 0;
    } else {
      for (int64_t q = 0; q < count + 3; ++q) {  // line[q] = g[i, j0 + q - 2]
        const int64_t j = j0 + q - 2, at = (i * g.w + j) * g.c;
        if (j < 0 || j >= g.w) {
          for (int64_t k = 0; k < g.width; ++k) line[q * kBlock + k] = 0;
        } else {
          const bool own = i >= r0 && i < r1 && j >= j0 && j < j0 + count;
          T* of_noise = t.dnoise ? t.dnoise + i * g.w + j : nullptr;
          pulled_back(t.grad + at, t.out + at, g, act, own, line + q * kBlock, t.dbias, of_noise);
        }
      }
      for (int64_t q = 0; q < count; ++q) {
        for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
          store(to + q * kBlock + k, filtered_columns<decltype(zero)>(line + q * kBlock, t.taps, k));
        });
      }
    }
    if (i <= r0) continue;
    const int64_t r = i - 1;
    const T *a = ring[(r + 2) % 4], *b = ring[(r + 3) % 4], *c = ring[r % 4], *d = ring[(r + 1) % 4];  // rows r - 2 .. r + 1
    for (int64_t q = 0; q < count; ++q) {
      const auto raw = [&](auto zero, int64_t k) __attribute__((always_inline)) {
        using V = decltype(zero);
        const int64_t at = q * kBlock + k;
        const V upper = load<V>(a + at) * t.taps[0] + load<V>(b + at) * t.taps[1];
        return V(upper + (load<V>(c + at) * t.taps[2] + load<V>(d + at) * t.taps[3]));
      };
      const int64_t at = (r * (g.w + 1) + j0 + q) * g.c;
      scaled(raw, t.x + at, t.scale, g.width, t.dx + at, t.dscale);
    }
  }
}

void check(int64_t n, int64_t c, int64_t h, int64_t w, int64_t noise_rows, int64_t rows, int threads) {
  KD_CHECK(n >= 0 && c >= 0 && h >= 0 && w >= 0 && rows > 0 && threads > 0, "fir_bias_act: expected sizes >= 0 and threads > 0");
  KD_CHECK(noise_rows == 0 || noise_rows == 1 || noise_rows == n, "fir_bias_act: expected noise for one image or for all");
}

}  // namespace

// `rows` of a band.
template <typename T>
void fir_bias_act(const T* x, const T* scale, const T* bias, const T* noise, const T* taps, T* out, int64_t n, int64_t c, int64_t h,
                  int64_t w, int64_t noise_rows, double slope, double gain, double limit, int64_t rows, int threads) {
  check(n, c, h, w, noise_rows, rows, threads);
  const Activation<T> act{T(slope), T(gain), T(limit)};
  const int64_t bands = (h + rows - 1) / rows, pixels = taps ? (h + 1) * (w + 1) : h * w, tile = w > 0 ? part_of(w, kColumns) : 1;
  T filter[4] = {0, 0, 0, 0};
  for (int64_t a = 0; a < 4 && taps; ++a) filter[a] = taps[3 - a];
#pragma omp parallel for num_threads(threads) schedule(static) if (n * c * h * w >= kParallel)
  for (int64_t unit = 0; unit < n * bands; ++unit) {
    const int64_t image = unit / bands, r0 = unit % bands * rows, r1 = smaller(r0 + rows, h);
    const T* shifts = noise ? noise + (noise_rows == 1 ? 0 : image) * h * w : nullptr;
    T line[(kColumns + 3) * kBlock], bias_of_block[kBlock];
    for (int64_t k0 = 0; k0 < c; k0 += kBlock) {
      const Geometry g{c, h, w, smaller(kBlock, c - k0)};
      for (int64_t k = 0; k < g.width; ++k) bias_of_block[k] = bias ? bias[k0 + k] : T(0);
      const T *from = x + image * pixels * c + k0, *scale_of_block = scale + image * c + k0;
      T* to = out + image * h * w * c + k0;
      for (int64_t i = r0; i < r1; ++i) {
        for (int64_t j0 = 0; j0 < w; j0 += tile) {
          const int64_t count = smaller(tile, w - j0), at = (i * w + j0) * c;
          const T* shift = shifts ? shifts + i * w + j0 : nullptr;
          if (taps) {
            filtered_rows(from, filter, i, j0, count, g, line);
            const auto value = [&](auto zero, int64_t j, int64_t k) __attribute__((always_inline)) {
              return filtered_columns<decltype(zero)>(line + j * kBlock, filter, k);
            };
            finish(value, scale_of_block, bias_of_block, shift, to + at, count, g, act);
          } else {
            const auto value = [&](auto zero, int64_t j, int64_t k) __attribute__((always_inline)) {
              return load<decltype(zero)>(from + at + j * c + k);
            };
            finish(value, scale_of_block, bias_of_block, shift, to + at, count, g, act);
          }
        }
      }
    }
  }
}

// of_images [n, h, w]: the gradient of the noise from every image, summed in the order of the images where they share it (else it is
// dnoise itself; not written where noise_rows is 0).  partials [2, n, bands, c] with bands of `rows` rows of x.
template <typename T>
void fir_bias_act_bwd(const T* grad, const T* out, const T* x, const T* scale, const T* taps, T* dx, T* dscale, T* dbias, T* dnoise,
                      T* of_images, T* partials, int64_t n, int64_t c, int64_t h, int64_t w, int64_t noise_rows, double slope,
                      double gain, double limit, int64_t rows, int threads) {
  check(n, c, h, w, noise_rows, rows, threads);
  const Activation<T> act{T(slope), T(gain), T(limit)};
  const int64_t sides[2] = {taps ? h + 1 : h, taps ? w + 1 : w}, pixels = sides[0] * sides[1];
  const int64_t bands = (sides[0] + rows - 1) / rows, tile = w > 0 ? part_of(sides[1], kColumns) : 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * c * h * w >= kParallel)
  for (int64_t unit = 0; unit < n * bands; ++unit) {
    const int64_t image = unit / bands, r0 = unit % bands * rows, r1 = smaller(r0 + rows, sides[0]);
    T* noise_of_image = noise_rows ? of_images + image * h * w : nullptr;
    for (int64_t p = r0 * w; p < smaller(r1, h) * w && noise_of_image; ++p) noise_of_image[p] = 0;
    for (int64_t k0 = 0; k0 < c; k0 += kBlock) {
      const Geometry g{c, h, w, smaller(kBlock, c - k0)};
      const int64_t first = image * h * w * c + k0, at = image * pixels * c + k0, sums = unit * c + k0;
      const Tile<T> t{grad + first, out + first,     x + at,                           scale + image * c + k0, taps,
                      dx + at,      partials + sums, partials + n * bands * c + sums, noise_of_image};
      for (int64_t k = 0; k < g.width; ++k) t.dscale[k] = t.dbias[k] = 0;
      if (!taps) {
        unfiltered_bwd(t, r0, r1, g, act);
      } else {
        for (int64_t j0 = 0; j0 < sides[1]; j0 += tile) filtered_bwd(t, r0, r1, j0, smaller(tile, sides[1] - j0), g, act);
      }
    }
  }
  for (int64_t image = 0; image < n; ++image) {
    for (int64_t k = 0; k < c; ++k) dscale[image * c + k] = 0;
    for (int64_t band = 0; band < bands; ++band) {
      for (int64_t k = 0; k < c; ++k) dscale[image * c + k] += partials[(image * bands + band) * c + k];
    }
  }
  for (int64_t k = 0; k < c; ++k) dbias[k] = 0;
  for (int64_t unit = n * bands; unit < 2 * n * bands; ++unit) {
    for (int64_t k = 0; k < c; ++k) dbias[k] += partials[unit * c + k];
  }
  if (noise_rows == 0 || of_images == dnoise) return;
  for (int64_t p = 0; p < h * w; ++p) dnoise[p] = 0;
  for (int64_t image = 0; image < n; ++image) {
    for (int64_t p = 0; p < h * w; ++p) dnoise[p] += of_images[image * h * w + p];
  }
}

#define KD_INSTANTIATE(T)                                                                                                        \
  template void fir_bias_act(const T*, const T*, const T*, const T*, const T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t,   \
                             double, double, double, int64_t, int);                                                              \
  template void fir_bias_act_bwd(const T*, const T*, const T*, const T*, const T*, T*, T*, T*, T*, T*, T*, int64_t, int64_t,      \
                                 int64_t, int64_t, int64_t, double, double, double, int64_t, int);
KD_INSTANTIATE(float)
KD_INSTANTIATE(double)

}  // namespace kd::KD_ISA
