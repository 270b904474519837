// out = downsample(clamp(gain * leaky(upsample(x + bias)))) and its backward.
//   x, dx [n, h, w, c]; bias, dbias [c], bias may be null; up_taps [t], down_taps [s], null for
//   none; out, grad [n, oh, ow, c]; mask [n, R, ceil(S / 4), c], R x S the upsampled feature map,
//   or null: two bits of every upsampled value, four neighbours in a byte.  row-major, contiguous,
//   not overlapping.
// Both passes are one: upsample along both axes, a point function, downsample along both axes;
// backward exchanges the filters, turned.
// One unit of work is an image, a vector of channels and a tile of columns.  It goes down the
// upsampled rows: a row is made from the last samples (first along the columns, then along the
// row), goes through the point function and is downsampled along the row into a ring of as many
// rows as the second filter is long; every `down`-th time the ring is a row of the result.  All of
// that stays in L1 and L2.  All four filters are one function, `combine`.  Tiles are summed in
// their order: no sum depends on the threads.
// Traffic: forward reads x and writes out and the mask, backward reads grad and the mask and writes
// dx.
// Truth: kdistill/backends/reference/filtered_lrelu.py, derivation: docs/ops/filtered_lrelu.md
#include "common/check.hpp"
#include "cpu/ops.hpp"
#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

constexpr int64_t kParallel = 16384;  // fewer elements are not worth waking the other threads

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

template <typename T>
struct Lanes {
  static constexpr int64_t count = kVectorBytes / sizeof(T);
  typedef typename VectorOf<T, count>::type Values;
  typedef uint8_t Bytes __attribute__((vector_size(count)));
};

// One axis.  Upsampled sample u is the sum over j of first[j * up + origin - u] * in[j], sample o
// of the result the sum over s of second[s] * upsampled[o * down + start + s]; what lies outside is
// 0.
struct Axis {
  int64_t in, upsampled, out, origin, start;
};

template <typename T>
struct Plan {
  Axis rows, columns;
  int64_t c, up, down, first_taps, second_taps;
  // first: [up][longest()], the factors of every phase; second: twice in a row
  const T *first, *second;

  int64_t longest() const { return (first_taps + up - 1) / up; }
  // the first sample behind upsampled sample u, and the phase: the first factor of that sum
  int64_t from(const Axis& a, int64_t u) const { return floor_div(u - a.origin + up - 1, up); }
  int64_t phase(const Axis& a, int64_t u) const { return from(a, u) * up + a.origin - u; }
  int64_t taps_of(int64_t phase) const {
    return phase < first_taps ? (first_taps - phase + up - 1) / up : 0;
  }
  // the end of the samples behind the upsampled samples before u
  int64_t stop(const Axis& a, int64_t u) const {
    return floor_div(u - 1 - a.origin + first_taps - 1, up) + 1;
  }
};

// One column tile of one image and the channels of one vector, `width` of them real.
struct Tile {
  int64_t o0, o1;  // columns of the result
  int64_t u0, u1;  // upsampled columns behind them
  int64_t v0, v1;  // those that exist; the others are 0
  int64_t j0, j1;  // columns of the samples behind those
  int64_t width;
};

// The memory of a thread, in vectors: samples [rows][j1 - j0], one row of samples, one upsampled
// row, the ring.
template <typename T>
struct Scratch {
  T *samples, *row, *upsampled, *ring;
};

// to[i * step] = sum_k taps[k] * from[k * of_tap + i * of_item] for i < count, in vectors.
template <typename T>
void combine(const T* taps, int64_t num_taps, const T* from, int64_t of_tap, int64_t of_item, T* to,
             int64_t step, int64_t count) {
  constexpr int64_t L = Lanes<T>::count;
  using V = typename Lanes<T>::Values;
  of_tap *= L, of_item *= L, step *= L;
  int64_t i = 0;
  for (; i + 4 <= count; i += 4, from += 4 * of_item, to += 4 * step) {
    V a{}, b{}, c{}, d{};
    const T* at = from;
    for (int64_t k = 0; k < num_taps; ++k, at += of_tap) {
      const V tap = taps[k] - V{};  // a broadcast; 0 + tap is an addition more
      a += tap * load<V>(at);
      b += tap * load<V>(at + of_item);
      c += tap * load<V>(at + 2 * of_item);
      d += tap * load<V>(at + 3 * of_item);
    }
    store(to, a), store(to + step, b), store(to + 2 * step, c), store(to + 3 * step, d);
  }
  for (; i < count; ++i, from += of_item, to += step) {
    V a{};
    for (int64_t k = 0; k < num_taps; ++k) a += (taps[k] - V{}) * load<V>(from + k * of_tap);
    store(to, a);
  }
}

// A vector of channels of which `width` exist.
template <typename V, typename T>
KD_INLINE V load_some(const T* from, int64_t width) {
  if (width == int64_t(sizeof(V) / sizeof(T))) return load<V>(from);
  V v{};
  for (int64_t k = 0; k < width; ++k) v[k] = from[k];
  return v;
}

template <typename V, typename T>
KD_INLINE void store_some(T* to, V v, int64_t width) {
  if (width == int64_t(sizeof(V) / sizeof(T))) return store(to, v);
  for (int64_t k = 0; k < width; ++k) to[k] = v[k];
}

// Forward: the nonlinearity, and its codes into the mask.
template <typename T>
struct Activation {
  uint8_t* mask;  // of the image and of the first channel of the block, or null
  T slope, gain, limit;

  Activation of(int64_t offset, int64_t k) const {
    return {mask ? mask + offset + k : nullptr, slope, gain, limit};
  }
  bool keeps() const { return mask != nullptr; }

  // z: upsampled columns v0 .. v1 of row u; the mask is written up to column `own`.  v0 is a
  // multiple of 4.
  void operator()(T* z, int64_t u, int64_t v0, int64_t v1, int64_t own, const Plan<T>& p,
                  int64_t width) const {
    constexpr int64_t L = Lanes<T>::count;
    using V = typename Lanes<T>::Values;
    const V zero{}, upper = zero + limit;
    const int64_t quads = (p.columns.upsampled + 3) / 4;
    for (int64_t at = v0; at < v1; at += 4) {
      auto codes = (zero > zero);
      for (int64_t i = 0; i < 4 && at + i < v1; ++i, z += L) {
        const V y = load<V>(z), scaled = (y > zero ? y : y * slope) * gain;
        const V capped = scaled > upper ? upper : scaled;  // a NaN stays
        store(z, V(capped < -upper ? -upper : capped));
        const auto code = ((y > zero) & 1) | (((scaled >= upper) | (scaled <= -upper)) & 2);
        codes |= code << (2 * i);
      }
      if (!mask || at >= own) continue;
      store_some(mask + (u * quads + at / 4) * p.c,
                 __builtin_convertvector(codes, typename Lanes<T>::Bytes), width);
    }
  }
};

// Backward: times the derivative, which the mask tells.
template <typename T>
struct Derivative {
  const uint8_t* mask;
  T slope, gain;

  Derivative of(int64_t offset, int64_t k) const { return {mask + offset + k, slope, gain}; }
  bool keeps() const { return false; }

  void operator()(T* z, int64_t u, int64_t v0, int64_t v1, int64_t, const Plan<T>& p,
                  int64_t width) const {
    constexpr int64_t L = Lanes<T>::count;
    using V = typename Lanes<T>::Values;
    const V zero{}, positive = zero + gain, negative = zero + gain * slope;
    const uint8_t* row = mask + u * ((p.columns.upsampled + 3) / 4) * p.c;
    for (int64_t at = v0; at < v1; ++at, z += L) {
      const auto bytes = load_some<typename Lanes<T>::Bytes>(row + at / 4 * p.c, width);
      const auto codes = __builtin_convertvector(bytes, decltype(zero > zero)) >> (2 * (at % 4));
      const V factor = (codes & 1) != 0 ? positive : negative;
      store(z, V(load<V>(z) * ((codes & 2) != 0 ? zero : factor)));
    }
  }
};

// The samples of the tile and zeros around them, with the bias of the forward.
template <typename T>
void pack(const T* in, const T* bias, const Plan<T>& p, const Tile& t, int64_t i0, int64_t i1,
          T* to) {
  constexpr int64_t L = Lanes<T>::count;
  using V = typename Lanes<T>::Values;
  const V shift = bias ? load_some<V>(bias, t.width) : V{};
  for (int64_t i = i0; i < i1; ++i) {
    const bool row = i >= 0 && i < p.rows.in;
    for (int64_t j = t.j0; j < t.j1; ++j, to += L) {
      const bool real = row && j >= 0 && j < p.columns.in;
      store(to, real ? V(load_some<V>(in + (i * p.columns.in + j) * p.c, t.width) + shift) : V{});
    }
  }
}

// Row u of the upsampled feature map.
template <typename T, typename Point>
void upsample_row(const Plan<T>& p, const Tile& t, int64_t u, int64_t i0, const Scratch<T>& s,
                  int64_t own, const Point& point) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t wide = t.j1 - t.j0, phase = p.phase(p.rows, u);
  const T* samples = s.samples + (p.from(p.rows, u) - i0) * wide * L;
  combine(p.first + phase * p.longest(), p.taps_of(phase), samples, wide, 1, s.row, 1, wide);
  for (int64_t v = t.v0; v < smaller(t.v0 + p.up, t.v1); ++v) {
    const int64_t across = p.phase(p.columns, v), count = (t.v1 - v + p.up - 1) / p.up;
    combine(p.first + across * p.longest(), p.taps_of(across),
            s.row + (p.from(p.columns, v) - t.j0) * L, 1, 1, s.upsampled + (v - t.u0) * L, p.up,
            count);
  }
  point(s.upsampled + (t.v0 - t.u0) * L, u, t.v0, t.v1, own, p, t.width);
}

// One tile: out and, if not null, sums [c]: those of the results.
template <typename T, typename Point>
void filter(const Plan<T>& p, const Tile& t, const T* in, const T* bias, T* out, T* sums,
            const Scratch<T>& s, int64_t own, const Point& point) {
  constexpr int64_t L = Lanes<T>::count;
  using V = typename Lanes<T>::Values;
  const int64_t wide = t.o1 - t.o0, taps = p.second_taps, needed = (p.rows.out - 1) * p.down + taps;
  const int64_t last = point.keeps() ? larger(needed, p.rows.upsampled) : needed;
  const int64_t u0 = larger(p.rows.start, 0), u1 = smaller(p.rows.start + last, p.rows.upsampled),
                i0 = p.from(p.rows, u0);
  pack(in, bias, p, t, i0, larger(p.stop(p.rows, u1), i0), s.samples);
  for (int64_t q = 0; q < (t.u1 - t.u0) * L; ++q) s.upsampled[q] = 0;
  V total{};
  for (int64_t r = 0; r < last; ++r) {
    const int64_t u = p.rows.start + r;
    T* slot = s.ring + r % taps * wide * L;
    if (u >= u0 && u < u1) {
      upsample_row(p, t, u, i0, s, own, point);
      combine(p.second, taps, s.upsampled, 1, p.down, slot, 1, wide);
    } else {
      for (int64_t q = 0; q < wide * L; ++q) slot[q] = 0;
    }
    const int64_t done = r + 1 - taps;
    if (done < 0 || done % p.down != 0 || done / p.down >= p.rows.out) continue;
    // slot s holds row done + (s + turn) % taps of those behind the result, and its factor is
    // second[turn + s]
    const int64_t turn = (taps - done % taps) % taps;
    combine(p.second + turn, taps, s.ring, wide, 1, s.row, 1, wide);
    T* to = out + (done / p.down * p.columns.out + t.o0) * p.c;
    V along{};
    for (int64_t q = 0; q < wide; ++q, to += p.c) {
      const V v = load<V>(s.row + q * L);
      store_some(to, v, t.width);
      along += v;
    }
    total += along;
  }
  if (sums) store_some(sums, total, t.width);
}

// The factors of both filters, scaled and, where `turned`, turned around.  Null taps: [1].
template <typename T>
void fill_tables(Plan<T>& p, const T* first, const T* second, double first_scale,
                 double second_scale, bool turned, T* to) {
  T* const by_phase = to;
  const int64_t longest = p.longest(), n = p.first_taps, m = p.second_taps;
  for (int64_t phase = 0; phase < p.up; ++phase) {
    for (int64_t k = 0; k < longest; ++k) {
      const int64_t t = phase + k * p.up;
      by_phase[phase * longest + k] =
          t < n ? T(first_scale) * (first ? first[turned ? n - 1 - t : t] : T(1)) : T(0);
    }
  }
  T* const twice = by_phase + p.up * longest;
  for (int64_t k = 0; k < 2 * m; ++k) {
    twice[k] = T(second_scale) * (second ? second[turned ? m - 1 - k % m : k % m] : T(1));
  }
  p.first = by_phase, p.second = twice;
}

// Every tile of every image.  scratch: `tables` elements, then `per_thread` of every thread.
// partials [n, tiles, c], or null.
struct Memory {
  int64_t tables, per_thread;
};

template <typename T, typename Point>
void run(const Plan<T>& p, const T* in, const T* bias, T* out, T* partials, T* scratch,
         Memory memory, int64_t n, int64_t tile, int threads, const Point& point) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t tiles = (p.columns.out + tile - 1) / tile, blocks = (p.c + L - 1) / L,
                units = n * blocks * tiles;
  const int64_t of_in = p.rows.in * p.columns.in * p.c, of_out = p.rows.out * p.columns.out * p.c;
  const int64_t of_mask = p.rows.upsampled * ((p.columns.upsampled + 3) / 4) * p.c;
  const int64_t upsampled = tile * p.down + p.second_taps,
                across = (upsampled + p.first_taps) / p.up + 2;
  const int64_t samples = ((p.rows.upsampled + p.first_taps) / p.up + 2) * across * L,
                row = larger(across, tile) * L;
  KD_CHECK(samples + row + (upsampled + p.second_taps * tile) * L <= memory.per_thread,
           "filtered_lrelu: expected more scratch");
  const int64_t parts = of_out * n >= kParallel ? threads : 1;
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (parts > 1)
  for (int64_t part = 0; part < parts; ++part) {
    T* from = scratch + memory.tables + part * memory.per_thread;
    const Scratch<T> s{from, from + samples, from + samples + row,
                       from + samples + row + upsampled * L};
    for (int64_t unit = part * units / parts; unit < (part + 1) * units / parts; ++unit) {
      const int64_t image = unit / (blocks * tiles), k = unit / tiles % blocks * L,
                    number = unit % tiles;
      Tile t;
      t.width = smaller(L, p.c - k);
      t.o0 = number * tile, t.o1 = smaller(t.o0 + tile, p.columns.out);
      t.u0 = t.o0 * p.down + p.columns.start,
      t.u1 = (t.o1 - 1) * p.down + p.columns.start + p.second_taps;
      // of the mask
      const int64_t own = t.o1 == p.columns.out ? p.columns.upsampled : t.o1 * p.down;
      if (point.keeps()) t.u1 = larger(t.u1, own);
      t.v0 = smaller(larger(t.u0, 0), t.u1),
      t.v1 = larger(smaller(t.u1, p.columns.upsampled), t.v0);
      t.j0 = p.from(p.columns, t.v0), t.j1 = larger(p.stop(p.columns, t.v1), t.j0);
      T* sums = partials ? partials + (image * tiles + number) * p.c + k : nullptr;
      filter(p, t, in + image * of_in + k, bias ? bias + k : nullptr, out + image * of_out + k,
             sums, s, own, point.of(image * of_mask, k));
    }
  }
}

void check(int64_t n, int64_t c, int64_t h, int64_t w, int64_t t, int64_t s, int64_t up,
           int64_t down, int64_t oh, int64_t ow, int64_t tile, int64_t tables, int threads) {
  KD_CHECK(n >= 0 && c >= 0 && h > 0 && w > 0 && oh > 0 && ow > 0,
           "filtered_lrelu: expected feature maps with pixels");
  KD_CHECK(t > 0 && s > 0 && up > 0 && down > 0 && threads > 0,
           "filtered_lrelu: expected taps, factors and threads > 0");
  KD_CHECK(tile > 0 && tile % 4 == 0, "filtered_lrelu: expected a tile of whole bytes of the mask");
  KD_CHECK(tables >= t + s + up + down + 2 * larger(t, s),
           "filtered_lrelu: expected room for the factors");
}

}  // namespace

// R x S the upsampled feature map; left and above: of the padding; t and s: of taps, 1 where null.
template <typename T>
void filtered_lrelu(const T* x, const T* bias, const T* up_taps, const T* down_taps, T* out,
                    uint8_t* mask, T* scratch, int64_t n, int64_t c, int64_t h, int64_t w,
                    int64_t R, int64_t S, int64_t oh, int64_t ow, int64_t t, int64_t s, int64_t up,
                    int64_t down, int64_t left, int64_t above, double slope, double gain,
                    double limit, int64_t tile, int64_t tables, int64_t per_thread, int threads) {
  check(n, c, h, w, t, s, up, down, oh, ow, tile, tables, threads);
  Plan<T> p{{h, R, oh, above, 0}, {w, S, ow, left, 0}, c, up, down, t, s, nullptr, nullptr};
  fill_tables(p, up_taps, down_taps, double(up), 1.0, true, scratch);
  run(p, x, bias, out, static_cast<T*>(nullptr), scratch, Memory{tables, per_thread}, n, tile,
      threads, Activation<T>{mask, T(slope), T(gain), T(limit)});
}

// partials [n, ceil(w / tile), c]: the shares in dbias.
template <typename T>
void filtered_lrelu_bwd(const T* grad, const uint8_t* mask, const T* up_taps, const T* down_taps,
                        T* dx, T* dbias, T* partials, T* scratch, int64_t n, int64_t c, int64_t h,
                        int64_t w, int64_t R, int64_t S, int64_t oh, int64_t ow, int64_t t,
                        int64_t s, int64_t up, int64_t down, int64_t left, int64_t above,
                        double slope, double gain, int64_t tile, int64_t tables, int64_t per_thread,
                        int threads) {
  check(n, c, h, w, t, s, up, down, oh, ow, tile, tables, threads);
  Plan<T> p{{oh, R, h, s - 1, above - t + 1},
            {ow, S, w, s - 1, left - t + 1},
            c,
            down,
            up,
            s,
            t,
            nullptr,
            nullptr};
  fill_tables(p, down_taps, up_taps, 1.0, double(up), false, scratch);
  run(p, grad, static_cast<const T*>(nullptr), dx, partials, scratch, Memory{tables, per_thread}, n,
      tile, threads, Derivative<T>{mask, T(slope), T(gain)});
  const int64_t rows = n * ((w + tile - 1) / tile);
  for (int64_t k = 0; k < c; ++k) dbias[k] = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < c; ++k) dbias[k] += partials[row * c + k];
  }
}

KD_INSTANTIATE(filtered_lrelu)
KD_INSTANTIATE(filtered_lrelu_bwd)

}  // namespace kd::KD_ISA
