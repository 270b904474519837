// out = clamp(gain * leaky(fir(x) * scale + noise + bias)) and its backward.
//   out, grad [n, h, w, c]; x, dx [n, h + 1, w + 1, c] with taps, else [n, h, w, c]; scale, dscale
//   [n, c]; bias, dbias [c], bias may be null; noise, dnoise [noise_rows, h, w] with noise_rows 1
//   or n, 0 for none; taps [4] or null: row-major, contiguous, not overlapping.
// One unit of work is an image and a band of rows; in it, tiles of kColumns pixels and kBlock
// channels keep the filtered rows in L1, and every inner loop walks along a row with a vector of
// channels, whose factors and sums stay in registers.  Bands are summed in their order: no sum
// depends on the number of threads.
// Traffic: forward reads x and writes out, backward reads grad, out and x and writes dx; the filter
// reads three rows of a band and three columns of a tile more.
// Truth: kdistill/backends/reference/fir_bias_act.py, derivation: docs/ops/fir_bias_act.md
#include "common/check.hpp"
#include "cpu/activation.hpp"
#include "cpu/ops.hpp"
#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

constexpr int64_t kColumns = 34;  // pixels of a tile, at most
// channels of a tile, at most: the ring and a row of two feature maps take 26 of the 32 KiB of L1
constexpr int64_t kBlock = 32;
constexpr int64_t kParallel = 32768;  // fewer elements are not worth waking the other threads

// The feature maps of one image: `c` is the distance between pixels, `width` the channels of the
// tile, h and w the sides of the result.
struct Geometry {
  int64_t c, h, w, width;
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Equal parts of `total`, as few as possible with at most `most` each.
inline int64_t part_of(int64_t total, int64_t most) {
  const int64_t parts = (total + most - 1) / most;
  return (total + parts - 1) / parts;
}

// The four factors of a filter in registers.
template <typename V, typename T>
struct Filter {
  V a, b, c, d;

  KD_INLINE explicit Filter(const T* f)
      : a(V{} + f[0]), b(V{} + f[1]), c(V{} + f[2]), d(V{} + f[3]) {}
  KD_INLINE V operator()(V p, V q, V r, V s) const { return (p * a + q * b) + (r * c + s * d); }
};

// What a tile of the forward works on: pointers to the first channel of its block.
template <typename T>
struct Source {
  // noise [h, w] of the image, or null; filter: taps turned around, or null
  const T *x, *scale, *bias, *noise, *filter;
  T* out;
};

// to[q] = sum_b filter[b] * x[i, j0 + q + b - 1] for q < count.
template <typename T>
void filtered_row(const Source<T>& t, int64_t i, int64_t j0, int64_t count, const Geometry& g,
                  T* to) {
  for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
    using V = decltype(zero);
    const Filter<V, T> filter(t.filter);
    const T* from = t.x + i * (g.w + 1) * g.c + k;
    V p = zero, q = zero, r = zero;
    for (int64_t j = -1; j < count + 2; ++j) {
      const V s = j0 + j >= 0 && j0 + j <= g.w ? load<V>(from + (j0 + j) * g.c) : zero;
      if (j >= 2) store(to + (j - 2) * kBlock + k, filter(p, q, r, s));
      p = q, q = r, r = s;
    }
  });
}

// Rows r0 .. r1 of the result, columns j0 .. j0 + count.  A ring holds four rows of x, filtered
// along the columns.
template <typename T>
void filtered_fwd(const Source<T>& t, int64_t r0, int64_t r1, int64_t j0, int64_t count,
                  const Geometry& g, Activation<T> act) {
  T ring[4][kColumns * kBlock];
  for (int64_t i = r0 - 1; i < r1 + 2; ++i) {
    T* to = ring[(i + 4) % 4];
    if (i < 0 || i > g.h) {
      for (int64_t q = 0; q < count * kBlock; ++q) to[q] = 0;
    } else {
      filtered_row(t, i, j0, count, g, to);
    }
    const int64_t row = i - 2;
    if (row < r0) continue;
    // row - 1 .. row + 2
    const T *a = ring[(row + 3) % 4], *b = ring[row % 4], *c = ring[(row + 1) % 4],
            *d = ring[(row + 2) % 4];
    const T* shift = t.noise ? t.noise + row * g.w + j0 : nullptr;
    for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
      using V = decltype(zero);
      const Filter<V, T> filter(t.filter);
      const V scale = load<V>(t.scale + k), bias = load<V>(t.bias + k);
      T* out = t.out + (row * g.w + j0) * g.c + k;
      for (int64_t q = 0; q < count; ++q, out += g.c) {
        const int64_t at = q * kBlock + k;
        const V v = filter(load<V>(a + at), load<V>(b + at), load<V>(c + at), load<V>(d + at));
        store(out, act(V(v * scale + (shift ? shift[q] : T(0)) + bias)));
      }
    });
  }
}

template <typename T>
KD_INLINE void unfiltered_fwd(const Source<T>& t, int64_t i, int64_t j0, int64_t count,
                              const Geometry& g, Activation<T> act) {
  const int64_t at = (i * g.w + j0) * g.c;
  const T* shift = t.noise ? t.noise + i * g.w + j0 : nullptr;
  for (int64_t j = 0; j < count; ++j) {
    const T by = shift ? shift[j] : T(0);
    for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
      using V = decltype(zero);
      const int64_t here = at + j * g.c + k;
      store(t.out + here,
            act(V(load<V>(t.x + here) * load<V>(t.scale + k) + by + load<V>(t.bias + k))));
    });
  }
}

// What a tile of the backward works on: pointers to the first channel of its block, sums of its
// band.
template <typename T>
struct Tile {
  const T *grad, *out, *x, *scale, *taps;
  T *dx, *dscale, *dbias, *dnoise;  // dnoise [h, w] of the image, or null
};

// to[p] += the channels of g at pixel p, `width` of the kBlock.
template <typename T>
void add_channels(const T* g, int64_t count, int64_t width, T* to) {
  for (int64_t p = 0; p < count; ++p) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < width; ++k) sum += g[p * kBlock + k];
    to[p] += sum;
  }
}

template <typename T>
void unfiltered_bwd(const Tile<T>& t, int64_t r0, int64_t r1, const Geometry& g,
                    Activation<T> act) {
  T pixel[kBlock];
  for (int64_t p = r0 * g.w; p < r1 * g.w; ++p) {
    for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
      using V = decltype(zero);
      const int64_t at = p * g.c + k;
      const V v = act.pulled_back(load<V>(t.out + at), load<V>(t.grad + at));
      store(pixel + k, v);
      store(t.dbias + k, V(load<V>(t.dbias + k) + v));
      store(t.dscale + k, V(load<V>(t.dscale + k) + v * load<V>(t.x + at)));
      store(t.dx + at, V(v * load<V>(t.scale + k)));
    });
    if (t.dnoise) add_channels(pixel, 1, g.width, t.dnoise + p);
  }
}

// to[q] = sum_b taps[b] * g[i, j0 + q + b - 2] for q < count, where g = grad * derivative; the
// pixels that are the tile's own count in dbias and dnoise.
template <typename T>
KD_INLINE void pulled_row(const Tile<T>& t, int64_t i, int64_t j0, int64_t count, bool own,
                          const Geometry& g, Activation<T> act, T* to) {
  T noise_grads[kColumns * kBlock];
  const int64_t stop = smaller(count, g.w - j0);  // own pixels
  for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
    using V = decltype(zero);
    const Filter<V, T> taps(t.taps);
    V dbias = load<V>(t.dbias + k), p = zero, q = zero, r = zero;
    for (int64_t j = -2; j <= count; ++j) {
      V s = zero;
      if (j0 + j >= 0 && j0 + j < g.w) {
        const int64_t at = (i * g.w + j0 + j) * g.c + k;
        s = act.pulled_back(load<V>(t.out + at), load<V>(t.grad + at));
        if (own && j >= 0 && j < stop) {
          dbias += s;
          if (t.dnoise) store(noise_grads + j * kBlock + k, s);
        }
      }
      if (j >= 1) store(to + (j - 1) * kBlock + k, taps(p, q, r, s));
      p = q, q = r, r = s;
    }
    store(t.dbias + k, dbias);
  });
  if (own && t.dnoise) add_channels(noise_grads, stop, g.width, t.dnoise + i * g.w + j0);
}

// Rows r0 .. r1 of x, columns j0 .. j0 + count.  A ring holds the last four rows of g, filtered
// along the columns; row r of dx is a sum over the rows r - 2 .. r + 1.
template <typename T>
void filtered_bwd(const Tile<T>& t, int64_t r0, int64_t r1, int64_t j0, int64_t count,
                  const Geometry& g, Activation<T> act) {
  T ring[4][kColumns * kBlock];
  for (int64_t i = r0 - 2; i <= r1; ++i) {
    T* to = ring[(i + 4) % 4];
    if (i < 0 || i >= g.h) {
      for (int64_t q = 0; q < count * kBlock; ++q) to[q] = 0;
    } else {
      pulled_row(t, i, j0, count, i >= r0 && i < r1, g, act, to);
    }
    if (i <= r0) continue;
    const int64_t r = i - 1;
    // rows r - 2 .. r + 1
    const T *a = ring[(r + 2) % 4], *b = ring[(r + 3) % 4], *c = ring[r % 4],
            *d = ring[(r + 1) % 4];
    for_vectors<T>(g.width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
      using V = decltype(zero);
      const Filter<V, T> taps(t.taps);
      const V scale = load<V>(t.scale + k);
      V dscale = load<V>(t.dscale + k);
      for (int64_t q = 0; q < count; ++q) {
        const int64_t from = q * kBlock + k, at = (r * (g.w + 1) + j0 + q) * g.c + k;
        const V raw =
            taps(load<V>(a + from), load<V>(b + from), load<V>(c + from), load<V>(d + from));
        store(t.dx + at, V(raw * scale));
        dscale += raw * load<V>(t.x + at);
      }
      store(t.dscale + k, dscale);
    });
  }
}

void check(int64_t n, int64_t c, int64_t h, int64_t w, int64_t noise_rows, int64_t rows,
           int threads) {
  KD_CHECK(n >= 0 && c >= 0 && h >= 0 && w >= 0 && rows > 0 && threads > 0,
           "fir_bias_act: expected sizes >= 0 and threads > 0");
  KD_CHECK(noise_rows == 0 || noise_rows == 1 || noise_rows == n,
           "fir_bias_act: expected noise for one image or for all");
}

}  // namespace

// `rows` of a band.
template <typename T>
void fir_bias_act(const T* x, const T* scale, const T* bias, const T* noise, const T* taps, T* out,
                  int64_t n, int64_t c, int64_t h, int64_t w, int64_t noise_rows, double slope,
                  double gain, double limit, int64_t rows, int threads) {
  check(n, c, h, w, noise_rows, rows, threads);
  const Activation<T> act{T(slope), T(gain), T(limit)};
  const int64_t bands = (h + rows - 1) / rows, pixels = taps ? (h + 1) * (w + 1) : h * w,
                tile = w > 0 ? part_of(w, kColumns) : 1;
  T filter[4] = {0, 0, 0, 0};
  for (int64_t a = 0; a < 4 && taps; ++a) filter[a] = taps[3 - a];
#pragma omp parallel for num_threads(threads) schedule(static) if (n * c * h * w >= kParallel)
  for (int64_t unit = 0; unit < n * bands; ++unit) {
    const int64_t image = unit / bands, r0 = unit % bands * rows, r1 = smaller(r0 + rows, h);
    const T* shifts = noise ? noise + (noise_rows == 1 ? 0 : image) * h * w : nullptr;
    T bias_of_block[kBlock];
    for (int64_t k0 = 0; k0 < c; k0 += kBlock) {
      const Geometry g{c, h, w, smaller(kBlock, c - k0)};
      for (int64_t k = 0; k < g.width; ++k) bias_of_block[k] = bias ? bias[k0 + k] : T(0);
      const Source<T> t{
          x + image * pixels * c + k0, scale + image * c + k0,      bias_of_block, shifts,
          taps ? filter : nullptr,     out + image * h * w * c + k0};
      for (int64_t j0 = 0; j0 < w && taps; j0 += tile)
        filtered_fwd(t, r0, r1, j0, smaller(tile, w - j0), g, act);
      for (int64_t i = r0; i < r1 && !taps; ++i) unfiltered_fwd(t, i, 0, w, g, act);
    }
  }
}

// of_images [n, h, w]: the gradient of the noise from every image, summed in the order of the
// images where they share it (else it is dnoise itself; not written where noise_rows is 0).
// partials [2, n, bands, c] with bands of `rows` rows of x.
template <typename T>
void fir_bias_act_bwd(const T* grad, const T* out, const T* x, const T* scale, const T* taps, T* dx,
                      T* dscale, T* dbias, T* dnoise, T* of_images, T* partials, int64_t n,
                      int64_t c, int64_t h, int64_t w, int64_t noise_rows, double slope,
                      double gain, double limit, int64_t rows, int threads) {
  check(n, c, h, w, noise_rows, rows, threads);
  const Activation<T> act{T(slope), T(gain), T(limit)};
  const int64_t sides[2] = {taps ? h + 1 : h, taps ? w + 1 : w}, pixels = sides[0] * sides[1];
  const int64_t bands = (sides[0] + rows - 1) / rows,
                tile = w > 0 ? part_of(sides[1], kColumns) : 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * c * h * w >= kParallel)
  for (int64_t unit = 0; unit < n * bands; ++unit) {
    const int64_t image = unit / bands, r0 = unit % bands * rows, r1 = smaller(r0 + rows, sides[0]);
    T* noise_of_image = noise_rows ? of_images + image * h * w : nullptr;
    for (int64_t p = r0 * w; p < smaller(r1, h) * w && noise_of_image; ++p) noise_of_image[p] = 0;
    for (int64_t k0 = 0; k0 < c; k0 += kBlock) {
      const Geometry g{c, h, w, smaller(kBlock, c - k0)};
      const int64_t first = image * h * w * c + k0, at = image * pixels * c + k0,
                    sums = unit * c + k0;
      const Tile<T> t{grad + first,  out + first, x + at,          scale + image * c + k0,
                      taps,          dx + at,     partials + sums, partials + n * bands * c + sums,
                      noise_of_image};
      for (int64_t k = 0; k < g.width; ++k) t.dscale[k] = t.dbias[k] = 0;
      if (!taps) {
        unfiltered_bwd(t, r0, r1, g, act);
      } else {
        for (int64_t j0 = 0; j0 < sides[1]; j0 += tile)
          filtered_bwd(t, r0, r1, j0, smaller(tile, sides[1] - j0), g, act);
      }
    }
  }
  for (int64_t image = 0; image < n; ++image) {
    for (int64_t k = 0; k < c; ++k) dscale[image * c + k] = 0;
    for (int64_t band = 0; band < bands; ++band) {
      for (int64_t k = 0; k < c; ++k)
        dscale[image * c + k] += partials[(image * bands + band) * c + k];
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

KD_INSTANTIATE(fir_bias_act)
KD_INSTANTIATE(fir_bias_act_bwd)

}  // namespace kd::KD_ISA
