// The six linear maps of a 3x3 convolution by Winograd's F(4x4, 3x3); the 36 matrix products between them are the library's.
//   x, dx [n, h, w, c], y, dy [n, oh, ow, k] row-major, contiguous; oh = h + 2 padding - 2, likewise ow
//   weight, dweight [k, c, 3, 3]; U [36][c][k], V [36][tiles][c], M [36][tiles][k] with `stride` elements between two planes
// Tiles are numbered over images, rows, columns; a tile makes 4x4 outputs from 6x6 inputs, what lies outside is zero.
//   V = B' d B, U = G g G', y = A' M A, and their transposes: dx += B X B', dweight = G' W G, M' = A dy A'
// One unit of work is a row of tiles (an image, where tiles overlap in what they write); every inner loop is a vector over channels.
// Points 0, +-5/8, +-3/2, infinity: exact in binary, half the rounding error of 0, +-1, +-2.
// Truth: kdistill/backends/reference/winograd_conv.py, derivation: docs/ops/winograd_conv.md
#include <type_traits>

#include "common/check.hpp"
#include "cpu/ops.hpp"
#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

constexpr double a = 0.625, b = 1.5, a2 = a * a, b2 = b * b;
constexpr double na = 1 / (2 * a2 * (a2 - b2)), nb = 1 / (2 * b2 * (b2 - a2)), n0 = 1 / (a2 * b2);
constexpr int64_t kBlock = 16;  // channels: a cache line of float32
constexpr int64_t kParallel = 16384;  // fewer elements are not worth waking the other threads

// The one-dimensional maps: from(i) reads entry i, to(i, v) writes it; T is the element, V a vector of it.
template <typename T, typename From, typename To>
KD_INLINE void input_map(const From& from, const To& to) {  // B'
  const auto d1 = from(1), d2 = from(2), d3 = from(3), d4 = from(4);
  to(0, T(a2 * b2) * from(0) - T(a2 + b2) * d2 + d4);
  to(5, T(a2 * b2) * d1 - T(a2 + b2) * d3 + from(5));
  const auto ea = d4 - T(b2) * d2, oa = T(a) * (d3 - T(b2) * d1), eb = d4 - T(a2) * d2, ob = T(b) * (d3 - T(a2) * d1);
  to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
}

template <typename T, typename From, typename To>
KD_INLINE void input_map_transposed(const From& from, const To& to) {  // B
  const auto t0 = from(0), t5 = from(5), pa = from(1) + from(2), ma = from(1) - from(2), pb = from(3) + from(4),
             mb = from(3) - from(4);
  to(0, T(a2 * b2) * t0), to(5, t5);
  to(1, T(a2 * b2) * t5 - T(a * b2) * ma - T(b * a2) * mb);
  to(2, -(T(a2 + b2) * t0) - T(b2) * pa - T(a2) * pb);
  to(3, T(a) * ma + T(b) * mb - T(a2 + b2) * t5);
  to(4, t0 + pa + pb);
}

template <typename T, typename From, typename To>
KD_INLINE void output_map(const From& from, const To& to) {  // A'
  const auto pa = from(1) + from(2), ma = from(1) - from(2), pb = from(3) + from(4), mb = from(3) - from(4);
  to(0, from(0) + pa + pb);
  to(1, T(a) * ma + T(b) * mb);
  to(2, T(a2) * pa + T(b2) * pb);
  to(3, T(a * a2) * ma + T(b * b2) * mb + from(5));
}

template <typename T, typename From, typename To>
KD_INLINE void output_map_transposed(const From& from, const To& to) {  // A
  const auto y0 = from(0), y1 = from(1), y2 = from(2), y3 = from(3);
  to(0, y0), to(5, y3);
  const auto ea = y0 + T(a2) * y2, oa = T(a) * y1 + T(a * a2) * y3, eb = y0 + T(b2) * y2, ob = T(b) * y1 + T(b * b2) * y3;
  to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
}

template <typename T, typename From, typename To>
KD_INLINE void weight_map(const From& from, const To& to) {  // G
  const auto g0 = from(0), g1 = from(1), g2 = from(2);
  to(0, T(n0) * g0), to(5, g2);
  const auto ea = T(na) * g0 + T(na * a2) * g2, oa = T(na * a) * g1, eb = T(nb) * g0 + T(nb * b2) * g2, ob = T(nb * b) * g1;
  to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
}

template <typename T, typename From, typename To>
KD_INLINE void weight_map_transposed(const From& from, const To& to) {  // G'
  const auto pa = T(na) * (from(1) + from(2)), ma = T(na * a) * (from(1) - from(2));
  const auto pb = T(nb) * (from(3) + from(4)), mb = T(nb * b) * (from(3) - from(4));
  to(0, T(n0) * from(0) + pa + pb);
  to(1, ma + mb);
  to(2, T(a2) * pa + T(b2) * pb + from(5));
}

#define KD_MAP(name) [](const auto& from, const auto& to) __attribute__((always_inline)) { name<T>(from, to); }

// The map on columns, then on rows: read(i, j) of rows x rows entries, write(i, j, value) of results x results.
template <int rows, int results, typename V, typename Map, typename Read, typename Write>
KD_INLINE void both_sides(const Map& map, const Read& read, const Write& write) {
  V half[results][rows];
  for (int j = 0; j < rows; ++j) {
    map([&](int i) __attribute__((always_inline)) { return V(read(i, j)); },
        [&](int i, V v) __attribute__((always_inline)) { half[i][j] = v; });
  }
  for (int i = 0; i < results; ++i) {
    map([&](int j) __attribute__((always_inline)) { return half[i][j]; },
        [&](int j, V v) __attribute__((always_inline)) { write(i, j, v); });
  }
}

struct Tiles {
  int64_t n, h, w, c, padding, down, across;  // h, w: of the map that is read or written in 6x6 patches
  Tiles(int64_t n, int64_t h, int64_t w, int64_t c, int64_t padding)
      : n(n), h(h), w(w), c(c), padding(padding), down((h + 2 * padding + 1) / 4), across((w + 2 * padding + 1) / 4) {}
};

void check(int64_t n, int64_t h, int64_t w, int64_t c, int64_t padding, int threads) {
  KD_CHECK(n >= 0 && c >= 0 && h > 0 && w > 0 && padding >= 0 && threads > 0, "winograd_conv: expected sizes above 0");
  KD_CHECK(h + 2 * padding > 2 && w + 2 * padding > 2, "winograd_conv: expected maps of at least 3x3 with their padding");
}

// body(zero vector, first output channel, input channel) for all filters.  The weights of an output channel lie together and the
// planes have output channels inside: filters are turned around on the way, a cache line of output channels at a time.
template <typename T, typename F>
KD_INLINE void for_filters(int64_t k, int64_t c, int threads, const F& body) {
  KD_CHECK(k >= 0 && c >= 0 && threads > 0, "winograd_conv: expected sizes above 0");
#pragma omp parallel for num_threads(threads) schedule(static) if (9 * k * c >= kParallel)
  for (int64_t unit = 0; unit < (k + kBlock - 1) / kBlock * c; ++unit) {
    const int64_t first = unit / c * kBlock, width = k - first < kBlock ? k - first : kBlock;
    for_vectors<T>(width, [&](auto zero, int64_t step) __attribute__((always_inline)) { body(zero, first + step, unit % c); });
  }
}

}  // namespace

template <typename T>
void winograd_conv_input(const T* x, T* V, int64_t n, int64_t h, int64_t w, int64_t c, int64_t padding, int64_t stride,
                         int threads) {
  check(n, h, w, c, padding, threads);
  const Tiles g(n, h, w, c, padding);
#pragma omp parallel for num_threads(threads) schedule(static) if (n * h * w * c >= kParallel)
  for (int64_t unit = 0; unit < n * g.down; ++unit) {
    const T* image = x + unit / g.down * h * w * c;
    const int64_t top = unit % g.down * 4 - padding;
    for (int64_t j = 0; j < g.across; ++j) {
      const int64_t left = j * 4 - padding;
      T* to = V + (unit * g.across + j) * c;
      const bool inside = top >= 0 && left >= 0 && top + 6 <= h && left + 6 <= w;
      const auto transform = [&](auto is_inside) __attribute__((always_inline)) {
        for_vectors<T>(c, [&](auto zero, int64_t k) __attribute__((always_inline)) {
          using Vec = decltype(zero);
          both_sides<6, 6, Vec>(
              KD_MAP(input_map),
              [&](int i, int q) __attribute__((always_inline)) {
                if (!is_inside.value && (top + i < 0 || top + i >= h || left + q < 0 || left + q >= w)) return zero;
                return load<Vec>(image + ((top + i) * w + left + q) * c + k);
              },
              [&](int i, int q, Vec v) __attribute__((always_inline)) { store(to + (6 * i + q) * stride + k, v); });
        });
      };
      if (inside) {
        transform(std::true_type{});
      } else {
        transform(std::false_type{});
      }
    }
  }
}

// Tiles overlap: an image belongs to one unit, in blocks of channels; the first tile that meets a pixel writes it, others add.
template <typename T>
void winograd_conv_input_bwd(const T* X, T* dx, int64_t n, int64_t h, int64_t w, int64_t c, int64_t padding, int64_t stride,
                             int threads) {
  check(n, h, w, c, padding, threads);
  const Tiles g(n, h, w, c, padding);
  const int64_t block = n >= 2 * threads ? c : kBlock, blocks = block ? (c + block - 1) / block : 0;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * h * w * c >= kParallel)
  for (int64_t unit = 0; unit < n * blocks; ++unit) {
    const int64_t image = unit / blocks, k0 = unit % blocks * block, width = c - k0 < block ? c - k0 : block;
    T* out = dx + image * h * w * c + k0;
    for (int64_t tile = 0; tile < g.down * g.across; ++tile) {
      const int64_t row = tile / g.across, column = tile % g.across, top = 4 * row - padding, left = 4 * column - padding;
      const T* from = X + (image * g.down * g.across + tile) * c + k0;
      for_vectors<T>(width, [&](auto zero, int64_t k) __attribute__((always_inline)) {
        using Vec = decltype(zero);
        both_sides<6, 6, Vec>(
            KD_MAP(input_map_transposed),
            [&](int i, int j) __attribute__((always_inline)) { return load<Vec>(from + (6 * i + j) * stride + k); },
            [&](int i, int j, Vec v) __attribute__((always_inline)) {
              if (top + i < 0 || top + i >= h || left + j < 0 || left + j >= w) return;
              T* to = out + ((top + i) * w + left + j) * c + k;
              const bool first = (i >= 2 || row == 0) && (j >= 2 || column == 0);
              store(to, first ? v : Vec(load<Vec>(to) + v));
            });
      });
    }
  }
}

template <typename T>
void winograd_conv_output(const T* M, T* y, int64_t n, int64_t oh, int64_t ow, int64_t k, int64_t stride, int threads) {
  check(n, oh, ow, k, 1, threads);
  const int64_t down = (oh + 3) / 4, across = (ow + 3) / 4;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * oh * ow * k >= kParallel)
  for (int64_t unit = 0; unit < n * down; ++unit) {
    const int64_t top = unit % down * 4;
    T* image = y + unit / down * oh * ow * k;
    for (int64_t j = 0; j < across; ++j) {
      const T* from = M + (unit * across + j) * k;
      for_vectors<T>(k, [&](auto zero, int64_t q) __attribute__((always_inline)) {
        using Vec = decltype(zero);
        both_sides<6, 4, Vec>(
            KD_MAP(output_map),
            [&](int r, int s) __attribute__((always_inline)) { return load<Vec>(from + (6 * r + s) * stride + q); },
            [&](int r, int s, Vec v) __attribute__((always_inline)) {
              if (top + r < oh && 4 * j + s < ow) store(image + ((top + r) * ow + 4 * j + s) * k + q, v);
            });
      });
    }
  }
}

template <typename T>
void winograd_conv_output_bwd(const T* dy, T* M, int64_t n, int64_t oh, int64_t ow, int64_t k, int64_t stride, int threads) {
  check(n, oh, ow, k, 1, threads);
  const int64_t down = (oh + 3) / 4, across = (ow + 3) / 4;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * oh * ow * k >= kParallel)
  for (int64_t unit = 0; unit < n * down; ++unit) {
    const int64_t top = unit % down * 4;
    const T* image = dy + unit / down * oh * ow * k;
    for (int64_t j = 0; j < across; ++j) {
      T* to = M + (unit * across + j) * k;
      for_vectors<T>(k, [&](auto zero, int64_t q) __attribute__((always_inline)) {
        using Vec = decltype(zero);
        both_sides<4, 6, Vec>(
            KD_MAP(output_map_transposed),
            [&](int r, int s) __attribute__((always_inline)) {
              if (top + r >= oh || 4 * j + s >= ow) return zero;
              return load<Vec>(image + ((top + r) * ow + 4 * j + s) * k + q);
            },
            [&](int r, int s, Vec v) __attribute__((always_inline)) { store(to + (6 * r + s) * stride + q, v); });
      });
    }
  }
}

template <typename T>
void winograd_conv_weight(const T* weight, T* U, int64_t k, int64_t c, int64_t stride, int threads) {
  for_filters<T>(k, c, threads, [&](auto zero, int64_t q, int64_t i) __attribute__((always_inline)) {
    using Vec = decltype(zero);
    constexpr int lanes = sizeof(Vec) / sizeof(T);
    const T* from = weight + (q * c + i) * 9;
    both_sides<3, 6, Vec>(
        KD_MAP(weight_map),
        [&](int r, int s) __attribute__((always_inline)) {
          Vec v = zero;
          for (int lane = 0; lane < lanes; ++lane) v[lane] = from[lane * c * 9 + 3 * r + s];
          return v;
        },
        [&](int r, int s, Vec v) __attribute__((always_inline)) { store(U + (6 * r + s) * stride + i * k + q, v); });
  });
}

template <typename T>
void winograd_conv_weight_bwd(const T* W, T* dweight, int64_t k, int64_t c, int64_t stride, int threads) {
  for_filters<T>(k, c, threads, [&](auto zero, int64_t q, int64_t i) __attribute__((always_inline)) {
    using Vec = decltype(zero);
    constexpr int lanes = sizeof(Vec) / sizeof(T);
    T* to = dweight + (q * c + i) * 9;
    both_sides<6, 3, Vec>(
        KD_MAP(weight_map_transposed),
        [&](int r, int s) __attribute__((always_inline)) { return load<Vec>(W + (6 * r + s) * stride + i * k + q); },
        [&](int r, int s, Vec v) __attribute__((always_inline)) {
          for (int lane = 0; lane < lanes; ++lane) to[lane * c * 9 + 3 * r + s] = v[lane];
        });
  });
}

#define KD_INSTANTIATE(T)                                                                                                  \
  template void winograd_conv_input(const T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);              \
  template void winograd_conv_input_bwd(const T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);          \
  template void winograd_conv_output(const T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, int);                      \
  template void winograd_conv_output_bwd(const T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, int);                  \
  template void winograd_conv_weight(const T*, T*, int64_t, int64_t, int64_t, int);                                                 \
  template void winograd_conv_weight_bwd(const T*, T*, int64_t, int64_t, int64_t, int);
KD_INSTANTIATE(float)
KD_INSTANTIATE(double)

}  // namespace kd::KD_ISA
