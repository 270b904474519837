// out_n = sum over pairs (i, j) of output pixels and over the nine taps (dy, dx) of
//     gg[n, i, j] * gx[n, i + tap, j + tap],   taps outside of the image left out:
// the squared norm of image n's weight gradient of a 3x3 convolution, from the inner products of
// its pixels.
// Truth: kdistill/backends/reference/conv_grad_sqnorm.py
//   gx [n, H*W, H*W], gg [n, h*w, h*w] with h = H + 2p - 2 and w = W + 2p - 2: symmetric,
//   row-major, contiguous; out [n], partials [n, h].
// Both are symmetric: only pairs whose j is in the row of i or below it are read, the latter
// counted twice.  For each i the row of gg is laid out once per dx like the rows of gx, so that
// every tap is one long dot product.  Sums of a dot product in T, the rest in float64 and in a
// fixed order.
#include "common/check.hpp"
#include "cpu/ops.hpp"
#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

constexpr int64_t kStack = 4096;  // pixels of an image that fits the laid-out rows
// pairs under which waking a second thread costs more than it saves
constexpr int64_t kGrain = 1 << 15;

template <typename T>
KD_INLINE double dot(const T* a, const T* b, int64_t n) {
  constexpr int kLanes = kVectorBytes / int(sizeof(T));
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  Vector sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int chain = 0; chain < 4; ++chain) {
      sums[chain] += load<Vector>(a + i + chain * kLanes) * load<Vector>(b + i + chain * kLanes);
    }
  }
  for (; i + kLanes <= n; i += kLanes) sums[0] += load<Vector>(a + i) * load<Vector>(b + i);
  const Vector sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  T total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  for (; i < n; ++i) total += a[i] * b[i];
  return double(total);
}

struct Sizes {
  int64_t H, W, h, w, padding;
};

// the row of gg from image row `top` on, moved to where tap dx finds it in rows of gx; what is
// below `top` counts twice
template <typename T>
void lay_out(const T* row, T* laid, int64_t top, int64_t dx, const Sizes& s) {
  const int64_t shift = dx - s.padding;
  const int64_t first = shift > 0 ? shift : 0, last = s.w + shift < s.W ? s.w + shift : s.W;
  for (int64_t jy = top; jy < s.h; ++jy) {
    T* to = laid + (jy - top) * s.W;
    const T* from = row + jy * s.w;
    const T factor = jy == top ? T(1) : T(2);
    for (int64_t u = 0; u < first && u < s.W; ++u) to[u] = 0;
    for (int64_t u = first; u < last; ++u) to[u] = factor * from[u - shift];
    for (int64_t u = last > 0 ? last : 0; u < s.W; ++u) to[u] = 0;
  }
}

// of all pairs whose first pixel is in row iy
template <typename T>
double row_of_pairs(const T* gx, const T* gg, T* laid, int64_t iy, const Sizes& s) {
  double sum = 0;
  for (int64_t ix = 0; ix < s.w; ++ix) {
    for (int64_t dx = 0; dx < 3; ++dx) {
      const int64_t x = ix + dx - s.padding;
      if (x < 0 || x >= s.W) continue;
      lay_out(gg + (iy * s.w + ix) * s.h * s.w, laid, iy, dx, s);
      for (int64_t dy = 0; dy < 3; ++dy) {
        const int64_t y = iy + dy - s.padding;
        if (y < 0 || y >= s.H) continue;
        const int64_t rows = s.h - iy < s.H - y ? s.h - iy : s.H - y;
        sum += dot(laid, gx + (y * s.W + x) * s.H * s.W + y * s.W, rows * s.W);
      }
    }
  }
  return sum;
}

}  // namespace

template <typename T>
void conv_grad_sqnorm(const T* gx, const T* gg, double* out, double* partials, int64_t n, int64_t H,
                      int64_t W, int64_t padding, int threads) {
  const Sizes s{H, W, H + 2 * padding - 2, W + 2 * padding - 2, padding};
  KD_CHECK(n >= 0 && s.h > 0 && s.w > 0 && threads > 0,
           "conv_grad_sqnorm: expected n >= 0, an image and threads > 0");
  KD_CHECK(s.h * W <= kStack, "conv_grad_sqnorm: expected h*W <= 4096; take the form of products");
#pragma omp parallel for num_threads(threads) \
    schedule(dynamic, 1) if (n * s.h * s.w * s.h * s.w > kGrain)
  for (int64_t unit = 0; unit < n * s.h; ++unit) {
    alignas(64) T laid[kStack];
    const int64_t i = unit / s.h, iy = unit % s.h;
    partials[unit] =
        row_of_pairs(gx + i * H * W * H * W, gg + i * s.h * s.w * s.h * s.w, laid, iy, s);
  }
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t iy = 0; iy < s.h; ++iy) sum += partials[i * s.h + iy];
    out[i] = sum;
  }
}

KD_INSTANTIATE(conv_grad_sqnorm)

}  // namespace kd::KD_ISA
