// A whole 3x3 convolution by F(4x4, 3x3) in one pass: what is transformed is multiplied and transformed back while it stays in
// cache.  Two orders: blocks of tiles, whose thread takes them through all channels; or panels of outputs, whose thread makes their
// filters as it needs them and takes them through all tiles, for layers whose transformed filters would not fit the cache.
// No result depends on the block of its tile or on the thread that it falls to.
//   weight [k][c][3][3], or turned: [c][k][3][3] with the taps turned around; U: 36 planes of panels, [c][panel] each
// Derivation: docs/ops/winograd_conv.md, section "In one pass"
#pragma once
#include <type_traits>

#include "common/check.hpp"
#include "cpu/winograd_maps.hpp"

namespace kd::KD_ISA {
namespace {

template <typename T>
struct Widest {
  static constexpr int lanes = kVectorBytes / int(sizeof(T));
  static constexpr int64_t panel = 2 * lanes;  // two vectors of outputs by kRows tiles are twelve sums in registers
  typedef typename VectorOf<T, lanes>::type Vec;
};

constexpr int kRows = 6;
constexpr int64_t kGap = 16;  // elements between two planes: else all 36 would start in the same few lines of the cache

inline int64_t rounded_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// The sides of a convolution: tiles are numbered over images, rows, columns.
struct Pass {
  int64_t n, h, w, c, k, padding, oh, ow, down, across, tiles;
  Pass(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t padding)
      : n(n), h(h), w(w), c(c), k(k), padding(padding), oh(h + 2 * padding - 2), ow(w + 2 * padding - 2), down((oh + 3) / 4),
        across((ow + 3) / 4), tiles(n * down * across) {
    KD_CHECK(n >= 0 && c > 0 && k > 0 && h > 0 && w > 0 && padding >= 0 && oh > 0 && ow > 0,
             "winograd_conv: expected maps of at least 3x3 with their padding");
  }
};

// A matrix by its first entry and the distances between rows and between columns.
template <typename T>
struct Matrix {
  const T* first;
  int64_t row, column;
};

// sums[rows][panel] (+)= v[rows][depth] * u[depth][panel]
template <int rows, bool adds, typename T>
KD_INLINE void multiply(const Matrix<T> v, const Matrix<T> u, int64_t depth, T* sums, int64_t stride) {
  typedef typename Widest<T>::Vec Vec;
  constexpr int lanes = Widest<T>::lanes;
  Vec left[rows], right[rows];
  for (int r = 0; r < rows; ++r) {
    left[r] = adds ? load<Vec>(sums + r * stride) : Vec{};
    right[r] = adds ? load<Vec>(sums + r * stride + lanes) : Vec{};
  }
  const T *a = v.first, *b = u.first;
  for (int64_t i = 0; i < depth; ++i, a += v.column, b += u.row) {
    const Vec b0 = load<Vec>(b), b1 = load<Vec>(b + lanes);
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
      const Vec x = a[r * v.row] - Vec{};  // not a sum: 0 + x is no copy of x, and costs an instruction
      left[r] += x * b0, right[r] += x * b1;
    }
  }
  for (int r = 0; r < rows; ++r) store(sums + r * stride, left[r]), store(sums + r * stride + lanes, right[r]);
}

// The same for any number of rows.
template <bool adds, typename T>
__attribute__((noinline)) void multiply_panel(Matrix<T> v, const Matrix<T> u, int64_t rows, int64_t depth, T* sums, int64_t stride) {
  const auto take = [&](auto some) __attribute__((always_inline)) {
    constexpr int taken = decltype(some)::value;
    for (; rows >= taken; rows -= taken, v.first += taken * v.row, sums += taken * stride) {
      multiply<taken, adds>(v, u, depth, sums, stride);
    }
  };
  take(std::integral_constant<int, kRows>{});
  take(std::integral_constant<int, 2>{});
  take(std::integral_constant<int, 1>{});
}

// The 3x3 filters from `c` inputs to `k` outputs.
template <typename T>
struct Filters {
  const T* weight;
  int64_t c, k;
  bool turned;

  // Those of one panel and input into `to`, planes `plane` apart.  Outputs beyond the last are zeros.
  KD_INLINE void transform(int64_t first_output, int64_t input, T* to, int64_t plane) const {
    typedef typename Widest<T>::Vec Vec;
    constexpr int64_t lanes = Widest<T>::lanes;
    const int64_t of_output = turned ? 9 : 9 * c, of_input = turned ? 9 * k : 9;
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t q = first_output + half * lanes;
      const T* from = weight + q * of_output + input * of_input;
      both_sides<3, 6, Vec>(
          KD_MAP(weight_map),
          [&](int r, int s) __attribute__((always_inline)) {
            const int64_t tap = turned ? 8 - 3 * r - s : 3 * r + s;
            Vec v{};
            for (int64_t lane = 0; lane < lanes && q + lane < k; ++lane) v[lane] = from[lane * of_output + tap];
            return v;
          },
          [&](int r, int s, Vec v) __attribute__((always_inline)) { store(to + half * lanes + (6 * r + s) * plane, v); });
    }
  }
};

// Where a tile lies: its image, and the first row and column of its results.
struct Place {
  int64_t image, top, left;
  Place(const Pass& p, int64_t tile)
      : image(tile / (p.down * p.across)), top(tile % (p.down * p.across) / p.across * 4), left(tile % p.across * 4) {}
};

// Tiles first .. first + count of the map that comes in, channels c0 .. c1, into 36 planes [count][c1 - c0] of V;
// read(zero, image, row, column, channel) is a vector of the map.
template <typename T, typename Read>
KD_INLINE void transform_inputs(const Pass& p, int64_t first, int64_t count, int64_t c0, int64_t c1, T* V, int64_t stride,
                                const Read& read) {
  for (int64_t t = 0; t < count; ++t) {
    const Place tile(p, first + t);
    const int64_t top = tile.top - p.padding, left = tile.left - p.padding;
    const auto transform = [&](auto is_inside) __attribute__((always_inline)) {
      for_vectors<T>(c1 - c0, [&](auto zero, int64_t q) __attribute__((always_inline)) {
        using Vec = decltype(zero);
        T* to = V + t * (c1 - c0) + q;
        both_sides<6, 6, Vec>(
            KD_MAP(input_map),
            [&](int i, int j) __attribute__((always_inline)) {
              if (!is_inside.value && (top + i < 0 || top + i >= p.h || left + j < 0 || left + j >= p.w)) return zero;
              return Vec(read(zero, tile.image, top + i, left + j, c0 + q));
            },
            [&](int i, int j, Vec v) __attribute__((always_inline)) { store(to + (6 * i + j) * stride, v); });
      });
    };
    if (top >= 0 && left >= 0 && top + 6 <= p.h && left + 6 <= p.w) {
      transform(std::true_type{});
    } else {
      transform(std::false_type{});
    }
  }
}

// How a pass goes: `block` tiles at a time, by panels or not; `scratch` holds `shared` elements and `per_thread` for every thread.
template <typename T>
struct Plan {
  int64_t block;
  bool by_panels;
  T* scratch;
  int64_t shared, per_thread;
  int threads;
};

// y of every tile: write(tile, place, first channel, channels, planes, stride) takes sums from their first plane, the others
// `stride` apart.
template <typename T, typename Read, typename Write>
KD_INLINE void run_blocks(const Pass& p, const Filters<T>& filters, const Plan<T>& plan, const Read& read, const Write& write) {
  constexpr int64_t panel = Widest<T>::panel;
  const int64_t width = rounded_up(p.k, panel), plane = p.c * width + kGap, in = plan.block * p.c + kGap;
  const int64_t out = plan.block * width + kGap, units = (p.tiles + plan.block - 1) / plan.block;
  KD_CHECK(36 * plane <= plan.shared && 36 * (in + out) <= plan.per_thread, "winograd_conv: expected more scratch");
  T* U = plan.scratch;
#pragma omp parallel for num_threads(plan.threads) schedule(static)
  for (int64_t unit = 0; unit < width / panel * p.c; ++unit) {
    filters.transform(unit / p.c * panel, unit % p.c, U + unit * panel, plane);
  }
#pragma omp parallel for num_threads(plan.threads) schedule(static, 1)
  for (int part = 0; part < plan.threads; ++part) {
    T *V = plan.scratch + plan.shared + part * plan.per_thread, *M = V + 36 * in;
    for (int64_t unit = units * part / plan.threads; unit < units * (part + 1) / plan.threads; ++unit) {
      const int64_t first = unit * plan.block, count = p.tiles - first < plan.block ? p.tiles - first : plan.block;
      transform_inputs(p, first, count, 0, p.c, V, in, read);
      for (int64_t s = 0; s < 36; ++s) {
        for (int64_t q = 0; q < width; q += panel) {
          const Matrix<T> v{V + s * in, p.c, 1}, u{U + s * plane + q * p.c, panel, 1};
          multiply_panel<false>(v, u, count, p.c, M + s * out + q, width);
        }
      }
      for (int64_t t = 0; t < count; ++t) write(first + t, Place(p, first + t), 0, p.k, M + t * width, out);
    }
  }
}

template <typename T, typename Read, typename Write>
KD_INLINE void run_panels(const Pass& p, const Filters<T>& filters, const Plan<T>& plan, const Read& read, const Write& write) {
  constexpr int64_t panel = Widest<T>::panel;
  const int64_t in = plan.block * p.c + kGap, plane = p.c * panel + kGap, out = plan.block * panel + kGap;
  KD_CHECK(36 * in <= plan.shared && 36 * (plane + out) <= plan.per_thread, "winograd_conv: expected more scratch");
  T* V = plan.scratch;
  for (int64_t first = 0; first < p.tiles; first += plan.block) {
    const int64_t count = p.tiles - first < plan.block ? p.tiles - first : plan.block;
#pragma omp parallel for num_threads(plan.threads) schedule(static)
    for (int64_t t = 0; t < count; ++t) transform_inputs(p, first + t, 1, 0, p.c, V + t * p.c, in, read);
#pragma omp parallel for num_threads(plan.threads) schedule(static, 1)
    for (int part = 0; part < plan.threads; ++part) {
      T *U = plan.scratch + plan.shared + part * plan.per_thread, *M = U + 36 * plane;
      const int64_t panels = (p.k + panel - 1) / panel;
      for (int64_t at = panels * part / plan.threads; at < panels * (part + 1) / plan.threads; ++at) {
        const int64_t q = at * panel, channels = p.k - q < panel ? p.k - q : panel;
        for (int64_t i = 0; i < p.c; ++i) filters.transform(q, i, U + i * panel, plane);
        for (int64_t s = 0; s < 36; ++s) {
          const Matrix<T> v{V + s * in, p.c, 1}, u{U + s * plane, panel, 1};
          multiply_panel<false>(v, u, count, p.c, M + s * out, panel);
        }
        for (int64_t t = 0; t < count; ++t) write(first + t, Place(p, first + t), q, channels, M + t * panel, out);
      }
    }
  }
}

template <typename T, typename Read, typename Write>
KD_INLINE void run_pass(const Pass& p, const Filters<T>& filters, const Plan<T>& plan, const Read& read, const Write& write) {
  KD_CHECK(plan.block > 0 && plan.threads > 0, "winograd_conv: expected a block and threads");
  plan.by_panels ? run_panels(p, filters, plan, read, write) : run_blocks(p, filters, plan, read, write);
}

// put(i, j, vector) for the 4x4 results of a tile; `from` is the tile's first plane at a channel.
template <typename T, typename Vec, typename Put>
KD_INLINE void put_results(const T* from, int64_t stride, const Put& put) {
  both_sides<6, 4, Vec>(
      KD_MAP(output_map), [&](int i, int j) __attribute__((always_inline)) { return load<Vec>(from + (6 * i + j) * stride); }, put);
}

// dweight [k][c][3][3] from dy [n, oh, ow, k].  A thread owns some of the input channels and goes through all tiles in their order,
// so that no sum depends on the number of threads; what it transforms of dy, the others transform too.
template <typename T, typename Read>
KD_INLINE void run_weight_pass(const Pass& p, const T* dy, T* dweight, const Plan<T>& plan, const Read& read) {
  constexpr int64_t panel = Widest<T>::panel;
  const int64_t threads = plan.threads, block = plan.block, width = rounded_up(p.k, panel), most = (p.c + threads - 1) / threads;
  KD_CHECK(block > 0 && threads > 0 && 36 * (block * (most + width) + most * width + 3 * kGap) <= plan.per_thread,
           "winograd_conv: expected more scratch");
#pragma omp parallel for num_threads(plan.threads) schedule(static, 1)
  for (int part = 0; part < plan.threads; ++part) {
    const int64_t c0 = p.c * part / threads, c1 = p.c * (part + 1) / threads, own = c1 - c0;
    const int64_t in = block * own + kGap, above = block * width + kGap, sums = own * width + kGap;
    T *V = plan.scratch + plan.shared + part * plan.per_thread, *M = V + 36 * in, *W = M + 36 * above;
    for (int64_t at = 0; at < 36 * (above + sums); ++at) M[at] = 0;
    for (int64_t first = 0; first < p.tiles; first += block) {
      const int64_t count = p.tiles - first < block ? p.tiles - first : block;
      transform_inputs(p, first, count, c0, c1, V, in, read);
      for (int64_t t = 0; t < count; ++t) {
        const Place tile(p, first + t);
        for_vectors<T>(p.k, [&](auto zero, int64_t q) __attribute__((always_inline)) {
          using Vec = decltype(zero);
          both_sides<4, 6, Vec>(
              KD_MAP(output_map_transposed),
              [&](int i, int j) __attribute__((always_inline)) {
                if (tile.top + i >= p.oh || tile.left + j >= p.ow) return zero;
                return load<Vec>(dy + ((tile.image * p.oh + tile.top + i) * p.ow + tile.left + j) * p.k + q);
              },
              [&](int i, int j, Vec v) __attribute__((always_inline)) { store(M + (6 * i + j) * above + t * width + q, v); });
        });
      }
      for (int64_t s = 0; s < 36; ++s) {
        for (int64_t q = 0; q < width; q += panel) {
          const Matrix<T> v{V + s * in, 1, own}, u{M + s * above + q, width, 1};
          multiply_panel<true>(v, u, own, count, W + s * sums + q, width);
        }
      }
    }
    for (int64_t i = 0; i < own; ++i) {
      for_vectors<T>(p.k, [&](auto zero, int64_t q) __attribute__((always_inline)) {
        using Vec = decltype(zero);
        T* to = dweight + (q * p.c + c0 + i) * 9;
        both_sides<6, 3, Vec>(
            KD_MAP(weight_map_transposed),
            [&](int r, int s) __attribute__((always_inline)) { return load<Vec>(W + (6 * r + s) * sums + i * width + q); },
            [&](int r, int s, Vec v) __attribute__((always_inline)) {
              for (int lane = 0; lane < int(sizeof(Vec) / sizeof(T)); ++lane) to[lane * p.c * 9 + 3 * r + s] = v[lane];
            });
      });
    }
  }
}

}  // namespace
}  // namespace kd::KD_ISA
