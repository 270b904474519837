// A whole 3x3 convolution by one of the schemes of winograd_transforms.hpp in one pass: what is
// transformed is multiplied and transformed back while it stays in cache.  Two orders: blocks of
// tiles, whose thread takes them through all channels; or panels of outputs, whose thread makes
// their filters as it needs them and takes them through all tiles, for layers whose transformed
// filters would not fit the cache and for few images.  No result depends on the block of its tile
// or on the thread that it falls to; between the two orders rounding may differ.
//   weight [k][c][3][3], or turned: [c][k][3][3], in SameSize with the taps turned around
//   U: 36 planes of panels, [c][panel] each
// A sum of two convolutions is one whose inputs are the channels of both.
// Derivation: docs/ops/winograd_conv.md, section "In one pass"
#pragma once
#include <type_traits>

#include "common/check.hpp"
#include "cpu/winograd_transforms.hpp"

namespace kd::KD_ISA {
namespace {

template <typename T>
struct Widest {
  static constexpr int lanes = kVectorBytes / int(sizeof(T));
  // two vectors of outputs by kRows tiles are twelve sums in registers
  static constexpr int64_t panel = 2 * lanes;
  typedef typename VectorOf<T, lanes>::type Vec;
};

// What blocks and panels share is compiled once: in each of them it would double the time of the
// compiler and gain nothing.
#define KD_ONCE __attribute__((noinline))

constexpr int kRows = 6;
// elements between two planes: else all would start in the same few lines of the cache
constexpr int64_t kGap = 16;

inline int64_t rounded_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// The planes of a scheme on both axes, and the plane of the filters for one of them.
template <typename Scheme>
constexpr int kPlanes = Scheme::planes * Scheme::planes;

template <typename Scheme>
KD_INLINE int64_t filter_of(int64_t plane) {
  return 6 * Scheme::filter_of(int(plane) / Scheme::planes) +
         Scheme::filter_of(int(plane) % Scheme::planes);
}

// The sizes of a convolution, or of a sum of `terms` of them: tiles are numbered over images, rows,
// columns.
template <typename Scheme>
struct Pass {
  int64_t n, h, w, c, k, padding, terms, inputs, oh, ow, down, across, tiles;
  Pass(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t padding, int64_t terms = 1)
      : n(n),
        h(h),
        w(w),
        c(c),
        k(k),
        padding(padding),
        terms(terms),
        inputs(terms * c),
        oh(Scheme::size_of(h, padding)),
        ow(Scheme::size_of(w, padding)),
        down(Scheme::tiles_of(oh)),
        across(Scheme::tiles_of(ow)),
        tiles(n * down * across) {
    KD_CHECK(n >= 0 && c > 0 && k > 0 && h > 0 && w > 0 && padding >= 0 && oh > 0 && ow > 0,
             "winograd: expected an image with its padding that the convolution fits in");
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
KD_INLINE void multiply(const Matrix<T> v, const Matrix<T> u, int64_t depth, T* sums,
                        int64_t stride) {
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
      // not a sum: 0 + x is no copy of x, and costs an instruction
      const Vec x = a[r * v.row] - Vec{};
      left[r] += x * b0, right[r] += x * b1;
    }
  }
  for (int r = 0; r < rows; ++r)
    store(sums + r * stride, left[r]), store(sums + r * stride + lanes, right[r]);
}

// The same for any number of rows.
template <bool adds, typename T>
__attribute__((noinline)) void multiply_panel(Matrix<T> v, const Matrix<T> u, int64_t rows,
                                              int64_t depth, T* sums, int64_t stride) {
  const auto take = [&](auto some) __attribute__((always_inline)) {
    constexpr int taken = decltype(some)::value;
    for (; rows >= taken; rows -= taken, v.first += taken * v.row, sums += taken * stride) {
      multiply<taken, adds>(v, u, depth, sums, stride);
    }
  };
  take(std::integral_constant<int, kRows>{});
  take(std::integral_constant<int, 4>{});  // few sums wait for one another
  take(std::integral_constant<int, 2>{});
  take(std::integral_constant<int, 1>{});
}

// The 3x3 filters from the `c` channels of one input, or of each of two, to `k` outputs.
template <typename Scheme, typename T>
struct Filters {
  const T* weight[2];
  int64_t c, k;
  bool turned;

  // Those of one panel and input into `to`, planes `plane` apart.  Outputs beyond the last are
  // zeros.
  KD_ONCE void transform(int64_t first_output, int64_t input, T* to, int64_t plane) const {
    typedef typename Widest<T>::Vec Vec;
    constexpr int64_t lanes = Widest<T>::lanes;
    const int64_t of_output = turned ? 9 : 9 * c, of_input = turned ? 9 * k : 9;
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t q = first_output + half * lanes;
      const T* from = weight[input / c] + q * of_output + input % c * of_input;
      both_sides<3, 6, Vec>(
          KD_TRANSFORM(weight),
          [&](int r, int s) __attribute__((always_inline)) {
            const int64_t tap =
                turned && std::is_same_v<Scheme, SameSize> ? 8 - 3 * r - s : 3 * r + s;
            Vec v{};
            for (int64_t lane = 0; lane < lanes && q + lane < k; ++lane)
              v[lane] = from[lane * of_output + tap];
            return v;
          },
          [&](int r, int s, Vec v) __attribute__((always_inline)) {
            store(to + half * lanes + (6 * r + s) * plane, v);
          });
    }
  }
};

// Where a tile lies: its image, and the first row and column of its entries that are `step` from
// those of the next.
struct Place {
  int64_t image, top, left;
  template <typename Scheme>
  Place(const Pass<Scheme>& p, int64_t tile, int64_t step)
      : image(tile / (p.down * p.across)),
        top(tile % (p.down * p.across) / p.across * step),
        left(tile % p.across * step) {}
};

// Tiles first .. first + count of the input of a term, channels c0 .. c1, into the planes of V,
// whose tiles are `row` apart; read(zero, term, image, row, column, channel) is a vector of it.
template <typename Scheme, typename T, typename Read>
KD_ONCE void transform_inputs(const Pass<Scheme>& p, int64_t term, int64_t first, int64_t count,
                              int64_t c0, int64_t c1, T* V, int64_t row, int64_t stride,
                              const Read& read) {
  for (int64_t t = 0; t < count; ++t) {
    const Place tile(p, first + t, Scheme::read_step);
    const int64_t top = tile.top - p.padding, left = tile.left - p.padding, h = p.h, w = p.w;
    const auto transform = [&](auto is_inside) __attribute__((always_inline)) {
      for_vectors<T>(c1 - c0, [&](auto zero, int64_t q) __attribute__((always_inline)) {
        using Vec = decltype(zero);
        T* to = V + t * row + q;
        both_sides<Scheme::reads, Scheme::planes, Vec>(
            KD_TRANSFORM(input),
            [&](int i, int j) __attribute__((always_inline)) {
              if (!is_inside.value &&
                  (top + i < 0 || top + i >= h || left + j < 0 || left + j >= w))
                return zero;
              return Vec(read(zero, term, tile.image, top + i, left + j, c0 + q));
            },
            [&](int i, int j, Vec v) __attribute__((always_inline)) {
              store(to + (Scheme::planes * i + j) * stride, v);
            });
      });
    };
    if (top >= 0 && left >= 0 && top + Scheme::reads <= h && left + Scheme::reads <= w) {
      transform(std::true_type{});
    } else {
      transform(std::false_type{});
    }
  }
}

// How a pass goes: `block` tiles at a time, by panels or not; `scratch` holds `shared` elements and
// `per_thread` for every thread.
template <typename T>
struct Plan {
  int64_t block;
  bool by_panels;
  T* scratch;
  int64_t shared, per_thread;
  int threads;
};

// y of every tile: write(tile, place, first channel, channels, planes, stride) takes sums from
// their first plane, the others `stride` apart.  Tiles whose results overlap fall to one thread, in
// their order.
template <typename Scheme, typename T, typename Read, typename Write>
KD_INLINE void run_blocks(const Pass<Scheme>& p, const Filters<Scheme, T>& filters,
                          const Plan<T>& plan, const Read& read, const Write& write) {
  constexpr int64_t panel = Widest<T>::panel, planes = kPlanes<Scheme>;
  constexpr bool overlap = Scheme::results > Scheme::result_step;
  const int64_t width = rounded_up(p.k, panel), plane = p.inputs * width + kGap,
                in = plan.block * p.inputs + kGap;
  const int64_t out = plan.block * width + kGap,
                together = overlap ? p.down * p.across : plan.block;
  const int64_t units = (p.tiles + together - 1) / together;
  KD_CHECK(36 * plane <= plan.shared && planes * (in + out) <= plan.per_thread,
           "winograd_conv: expected more scratch");
  T* U = plan.scratch;
#pragma omp parallel for num_threads(plan.threads) schedule(static)
  for (int64_t unit = 0; unit < width / panel * p.inputs; ++unit) {
    filters.transform(unit / p.inputs * panel, unit % p.inputs, U + unit * panel, plane);
  }
#pragma omp parallel for num_threads(plan.threads) schedule(static, 1)
  for (int part = 0; part < plan.threads; ++part) {
    T *V = plan.scratch + plan.shared + part * plan.per_thread, *M = V + planes * in;
    const int64_t end = units * (part + 1) / plan.threads * together,
                  stop = end < p.tiles ? end : p.tiles;
    for (int64_t first = units * part / plan.threads * together, count; first < stop;
         first += count) {
      count = stop - first < plan.block ? stop - first : plan.block;
      for (int64_t term = 0; term < p.terms; ++term) {
        transform_inputs(p, term, first, count, 0, p.c, V + term * p.c, p.inputs, in, read);
      }
      for (int64_t s = 0; s < planes; ++s) {
        for (int64_t q = 0; q < width; q += panel) {
          const Matrix<T> v{V + s * in, p.inputs, 1},
              u{U + filter_of<Scheme>(s) * plane + q * p.inputs, panel, 1};
          multiply_panel<false>(v, u, count, p.inputs, M + s * out + q, width);
        }
      }
      for (int64_t t = 0; t < count; ++t) {
        write(first + t, Place(p, first + t, Scheme::result_step), 0, p.k, M + t * width, out);
      }
    }
  }
}

template <typename Scheme, typename T, typename Read, typename Write>
KD_INLINE void run_panels(const Pass<Scheme>& p, const Filters<Scheme, T>& filters,
                          const Plan<T>& plan, const Read& read, const Write& write) {
  constexpr int64_t panel = Widest<T>::panel, planes = kPlanes<Scheme>;
  const int64_t in = plan.block * p.inputs + kGap, plane = p.inputs * panel + kGap,
                out = plan.block * panel + kGap;
  KD_CHECK(planes * in <= plan.shared && 36 * plane + planes * out <= plan.per_thread,
           "winograd_conv: expected more scratch");
  T* V = plan.scratch;
  for (int64_t first = 0; first < p.tiles; first += plan.block) {
    const int64_t count = p.tiles - first < plan.block ? p.tiles - first : plan.block;
#pragma omp parallel for num_threads(plan.threads) schedule(static)
    for (int64_t at = 0; at < p.terms * count; ++at) {
      const int64_t term = at / count, t = at % count;
      transform_inputs(p, term, first + t, 1, 0, p.c, V + t * p.inputs + term * p.c, p.inputs, in,
                       read);
    }
#pragma omp parallel for num_threads(plan.threads) schedule(static, 1)
    for (int part = 0; part < plan.threads; ++part) {
      T *U = plan.scratch + plan.shared + part * plan.per_thread, *M = U + 36 * plane;
      const int64_t panels = (p.k + panel - 1) / panel;
      for (int64_t at = panels * part / plan.threads; at < panels * (part + 1) / plan.threads;
           ++at) {
        const int64_t q = at * panel, channels = p.k - q < panel ? p.k - q : panel;
        for (int64_t i = 0; i < p.inputs; ++i) filters.transform(q, i, U + i * panel, plane);
        for (int64_t s = 0; s < planes; ++s) {
          const Matrix<T> v{V + s * in, p.inputs, 1}, u{U + filter_of<Scheme>(s) * plane, panel, 1};
          multiply_panel<false>(v, u, count, p.inputs, M + s * out, panel);
        }
        for (int64_t t = 0; t < count; ++t) {
          write(first + t, Place(p, first + t, Scheme::result_step), q, channels, M + t * panel,
                out);
        }
      }
    }
  }
}

template <typename Scheme, typename T, typename Read, typename Write>
KD_INLINE void run_pass(const Pass<Scheme>& p, const Filters<Scheme, T>& filters,
                        const Plan<T>& plan, const Read& read, const Write& write) {
  KD_CHECK(plan.block > 0 && plan.threads > 0, "winograd_conv: expected a block and threads");
  plan.by_panels ? run_panels(p, filters, plan, read, write)
                 : run_blocks(p, filters, plan, read, write);
}

// put(i, j, vector) for the results of a tile; `from` is the tile's first plane at a channel.
template <typename Scheme, typename T, typename Vec, typename Put>
KD_INLINE void put_results(const T* from, int64_t stride, const Put& put) {
  both_sides<Scheme::planes, Scheme::results, Vec>(
      KD_TRANSFORM(output),
      [&](int i, int j) __attribute__((always_inline)) {
        return load<Vec>(from + (Scheme::planes * i + j) * stride);
      },
      put);
}

// Tiles first .. first + count of the gradient dy [n, oh, ow, k], `channels` of it from k0 on, into
// the planes of M.
template <typename Scheme, typename T>
KD_ONCE void transform_gradients(const Pass<Scheme>& p, const T* dy, int64_t first, int64_t count,
                                 int64_t k0, int64_t channels, T* M, int64_t row, int64_t stride) {
  for (int64_t t = 0; t < count; ++t) {
    const Place tile(p, first + t, Scheme::result_step);
    const T* from = dy + ((tile.image * p.oh + tile.top) * p.ow + tile.left) * p.k + k0;
    for_vectors<T>(channels, [&](auto zero, int64_t q) __attribute__((always_inline)) {
      using Vec = decltype(zero);
      both_sides<Scheme::results, Scheme::planes, Vec>(
          KD_TRANSFORM(gradient),
          [&](int i, int j) __attribute__((always_inline)) {
            if (tile.top + i >= p.oh || tile.left + j >= p.ow) return zero;
            return load<Vec>(from + (i * p.ow + j) * p.k + q);
          },
          [&](int i, int j, Vec v) __attribute__((always_inline)) {
            store(M + (Scheme::planes * i + j) * stride + t * row + q, v);
          });
    });
  }
}

// The planes of one input's sums, `sums` apart, to its taps; those of the next output are
// `of_output` behind.
template <typename Scheme, typename T>
KD_ONCE void transform_weight_transpose(const T* W, int64_t sums, int64_t outputs, T* dweight,
                                        int64_t of_output) {
  for_vectors<T>(outputs, [&](auto zero, int64_t q) __attribute__((always_inline)) {
    using Vec = decltype(zero);
    T* to = dweight + q * of_output;
    both_sides<6, 3, Vec>(
        KD_TRANSFORM(weight_transpose),
        [&](int r, int s)
            __attribute__((always_inline)) { return load<Vec>(W + (6 * r + s) * sums + q); },
        [&](int r, int s, Vec v) __attribute__((always_inline)) {
          for (int lane = 0; lane < int(sizeof(Vec) / sizeof(T)); ++lane)
            to[lane * of_output + 3 * r + s] = v[lane];
        });
  });
}

// How a weight gradient goes: `block` tiles at a time, in units that have one of `of_tiles` parts
// of the tiles, one of `of_inputs` parts of the input channels and one of `of_outputs` parts of the
// output channels.  partials: a gradient per part of the tiles, of which the first is the result.
template <typename T>
struct WeightPlan {
  int64_t block, of_tiles, of_inputs, of_outputs;
  T *partials, *scratch;
  int64_t per_thread;
  int threads;
};

// One unit of a weight gradient: tiles first .. stop of all terms, input channels c0 .. c0 + own,
// output channels from k0 on, in `width` columns; into dweight [k][c][3][3].  Units with other
// channels repeat these transforms.
template <typename Scheme, typename T, typename Read>
KD_INLINE void run_weight_unit(const Pass<Scheme>& p, const T* const (&dy)[2], T* dweight,
                               T* scratch, int64_t block, int64_t first, int64_t stop, int64_t c0,
                               int64_t own, int64_t k0, int64_t width, const Read& read) {
  constexpr int64_t panel = Widest<T>::panel, planes = kPlanes<Scheme>;
  const int64_t outputs = p.k - k0 < width ? p.k - k0 : width;
  const int64_t in = block * own + kGap, above = block * width + kGap, sums = own * width + kGap;
  T *V = scratch, *M = V + planes * in, *W = M + planes * above;
  for (int64_t at = 0; at < planes * above + 36 * sums; ++at) M[at] = 0;
  for (int64_t at = first, count; at < stop; at += count) {
    const int64_t term = at / p.tiles, tile = at % p.tiles,
                  left = p.tiles - tile < stop - at ? p.tiles - tile : stop - at;
    count = left < block ? left : block;
    transform_inputs(p, term, tile, count, c0, c0 + own, V, own, in, read);
    transform_gradients(p, dy[term], tile, count, k0, outputs, M, width, above);
    for (int64_t s = 0; s < planes; ++s) {
      for (int64_t q = 0; q < width; q += panel) {
        const Matrix<T> v{V + s * in, 1, own}, u{M + s * above + q, width, 1};
        multiply_panel<true>(v, u, own, count, W + filter_of<Scheme>(s) * sums + q, width);
      }
    }
  }
  for (int64_t c = 0; c < own; ++c) {
    transform_weight_transpose<Scheme>(W + c * width, sums, outputs,
                                       dweight + (k0 * p.c + c0 + c) * 9, p.c * 9);
  }
}

// The sum over the terms of their gradients; dy[term] [n, oh, ow, k].  A unit goes through its
// tiles in their order, and the parts of the tiles, whose number does not depend on the threads,
// are added up in order: no sum depends on the threads.
template <typename Scheme, typename T, typename Read>
KD_INLINE void run_weight_pass(const Pass<Scheme>& p, const T* const (&dy)[2],
                               const WeightPlan<T>& plan, const Read& read) {
  constexpr int64_t panel = Widest<T>::panel;
  // whole vectors: the numbers of a channel must not depend on where a part ends
  const int64_t panels_in = (p.c + panel - 1) / panel, panels_out = (p.k + panel - 1) / panel,
                size = p.k * p.c * 9;
  const int64_t of_inputs = plan.of_inputs, of_outputs = plan.of_outputs,
                units = plan.of_tiles * of_inputs * of_outputs;
  KD_CHECK(plan.block > 0 && units > 0 && plan.threads > 0,
           "winograd_conv: expected a block, parts and threads");
  const int64_t most = (panels_in + of_inputs - 1) / of_inputs * panel,
                widest = (panels_out + of_outputs - 1) / of_outputs * panel;
  const int64_t needed =
      kPlanes<Scheme> * (plan.block * (most + widest) + 2 * kGap) + 36 * (most * widest + kGap);
  KD_CHECK(needed <= plan.per_thread, "winograd_conv: expected more scratch");
#pragma omp parallel for num_threads(plan.threads) schedule(static, 1)
  for (int thread = 0; thread < plan.threads; ++thread) {
    for (int64_t unit = units * thread / plan.threads; unit < units * (thread + 1) / plan.threads;
         ++unit) {
      const int64_t part = unit / (of_inputs * of_outputs), i = unit / of_outputs % of_inputs,
                    o = unit % of_outputs;
      const int64_t c0 = panels_in * i / of_inputs * panel,
                    c1 = panels_in * (i + 1) / of_inputs * panel;
      const int64_t k0 = panels_out * o / of_outputs * panel,
                    k1 = panels_out * (o + 1) / of_outputs * panel;
      const int64_t first = p.terms * p.tiles * part / plan.of_tiles,
                    stop = p.terms * p.tiles * (part + 1) / plan.of_tiles;
      run_weight_unit(p, dy, plan.partials + part * size, plan.scratch + thread * plan.per_thread,
                      plan.block, first, stop, c0, (p.c < c1 ? p.c : c1) - c0, k0, k1 - k0, read);
    }
  }
  for (int64_t part = 1; part < plan.of_tiles; ++part) {
    for (int64_t at = 0; at < size; ++at) plan.partials[at] += plan.partials[part * size + at];
  }
}

}  // namespace
}  // namespace kd::KD_ISA
