// The six linear maps of a 3x3 convolution by Winograd's F(4x4, 3x3); the 36 matrix products between them are the library's.
//   x, dx [n, h, w, c], y, dy [n, oh, ow, k] row-major, contiguous; oh = h + 2 padding - 2, likewise ow
//   weight, dweight [k, c, 3, 3]; U [36][c][k], V [36][tiles][c], M [36][tiles][k] with `stride` elements between two planes
// Tiles are numbered over images, rows, columns; a tile makes 4x4 outputs from 6x6 inputs, what lies outside is zero.
//   V = B' d B, U = G g G', y = A' M A, and their transposes: dx += B X B', dweight = G' W G, M' = A dy A'
// One unit of work is a row of tiles (an image, where tiles overlap in what they write); every inner loop is a vector over channels.
// Truth: kdistill/backends/reference/winograd_conv.py, derivation: docs/ops/winograd_conv.md

#include "common/check.hpp"
#include "cpu/ops.hpp"
#include "cpu/winograd_pass.hpp"

namespace kd::KD_ISA {
namespace {

constexpr int64_t kBlock = 16;  // channels: a cache line of float32
constexpr int64_t kParallel = 16384;  // fewer elements are not worth waking the other threads

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

// y = conv(x) in one pass; turned: weight [c, k, 3, 3].
template <typename T>
void winograd_conv(const T* x, const T* weight, T* y, T* scratch, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k,
                   int64_t padding, bool turned, int64_t block, bool by_panels, int64_t shared, int64_t per_thread, int threads) {
  const Pass pass(n, h, w, c, k, padding);
  const auto read = [&](auto zero, int64_t image, int64_t i, int64_t j, int64_t q) __attribute__((always_inline)) {
    return load<decltype(zero)>(x + ((image * h + i) * w + j) * c + q);
  };
  const auto write = [&](int64_t, const Place& at, int64_t q0, int64_t channels, const T* planes, int64_t stride) {
    for_vectors<T>(channels, [&](auto zero, int64_t q) __attribute__((always_inline)) {
      using Vec = decltype(zero);
      put_results<T, Vec>(planes + q, stride, [&](int i, int j, Vec v) __attribute__((always_inline)) {
        if (at.top + i >= pass.oh || at.left + j >= pass.ow) return;
        store(y + ((at.image * pass.oh + at.top + i) * pass.ow + at.left + j) * k + q0 + q, v);
      });
    });
  };
  run_pass(pass, Filters<T>{weight, c, k, turned}, Plan<T>{block, by_panels, scratch, shared, per_thread, threads}, read, write);
}

// dweight of conv(x * scale), scale [n, c] or null, in one pass.
template <typename T>
void winograd_conv_weight_grad(const T* x, const T* scale, const T* dy, T* dweight, T* scratch, int64_t n, int64_t h, int64_t w,
                               int64_t c, int64_t k, int64_t padding, int64_t block, int64_t per_thread, int threads) {
  const Pass pass(n, h, w, c, k, padding);
  const Plan<T> plan{block, false, scratch, 0, per_thread, threads};
  if (scale) {
    run_weight_pass(pass, dy, dweight, plan,
                    [&](auto zero, int64_t image, int64_t i, int64_t j, int64_t q) __attribute__((always_inline)) {
                      using Vec = decltype(zero);
                      return Vec(load<Vec>(x + ((image * h + i) * w + j) * c + q) * load<Vec>(scale + image * c + q));
                    });
  } else {
    run_weight_pass(pass, dy, dweight, plan,
                    [&](auto zero, int64_t image, int64_t i, int64_t j, int64_t q) __attribute__((always_inline)) {
                      return load<decltype(zero)>(x + ((image * h + i) * w + j) * c + q);
                    });
  }
}

#define KD_INSTANTIATE(T)                                                                                                  \
  template void winograd_conv_input(const T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);              \
  template void winograd_conv_input_bwd(const T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);          \
  template void winograd_conv_output(const T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, int);                      \
  template void winograd_conv_output_bwd(const T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, int);                  \
  template void winograd_conv(const T*, const T*, T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool,       \
                              int64_t, bool, int64_t, int64_t, int);                                                       \
  template void winograd_conv_weight_grad(const T*, const T*, const T*, T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, \
                                          int64_t, int64_t, int64_t, int);                                                 \
  template void winograd_conv_weight(const T*, T*, int64_t, int64_t, int64_t, int);                                                 \
  template void winograd_conv_weight_bwd(const T*, T*, int64_t, int64_t, int64_t, int);
KD_INSTANTIATE(float)
KD_INSTANTIATE(double)

}  // namespace kd::KD_ISA
